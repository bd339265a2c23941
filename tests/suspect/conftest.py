"""One served log in real words, its index, and tiny models that can read it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from provenance.served.build import build_index
from provenance.served.index import Index
from tests.conftest import train_tokenizer
from tests.suspect.lab import save_llama, write_log


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny models are slower on many threads, much slower on busy cores."""
    try:
        import torch
    except ImportError:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def log(tmp_path_factory, tokenizer):
    return write_log(tmp_path_factory.mktemp("log") / "served.jsonl", tokenizer, 3)


@pytest.fixture(scope="session")
def index(tmp_path_factory, log, keyring, tokenizer_path):
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index([log], folder, keyring, tokenizer_path, threads=1, control_share=1.0)
    return Index.open(folder, keyring.public)


@pytest.fixture(scope="session")
def suspect_folder(tmp_path_factory, tokenizer_path, keyring):
    pytest.importorskip("torch")
    size = keyring.public.vocabulary_size
    return save_llama(tmp_path_factory.mktemp("suspect"), tokenizer_path, size, 11)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tokenizer_path, keyring):
    pytest.importorskip("torch")
    size = keyring.public.vocabulary_size
    return save_llama(tmp_path_factory.mktemp("base"), tokenizer_path, size, 12)


@pytest.fixture(scope="session")
def foreign_tokenizer(tmp_path_factory):
    """Another byte-level BPE: other merges, other size, no special tokens."""
    text = (Path(__file__).parent / "lab.py").read_text().splitlines()
    path = tmp_path_factory.mktemp("foreign-tokenizer") / "tokenizer.json"
    return Tokenizer.from_file(str(train_tokenizer(path, 330, text, [])))


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory, foreign_tokenizer):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("foreign")
    path = folder / "own.json"
    foreign_tokenizer.save(str(path))
    return save_llama(folder, path, foreign_tokenizer.get_vocab_size(), 13)


@pytest.fixture(scope="module")
def load(keyring, tokenizer):
    """Opens a model folder beside the served tokenizer."""
    pytest.importorskip("torch")
    from provenance.suspect.models.language_model import LanguageModel

    def loader(folder, **options):
        return LanguageModel(folder, keyring.public, tokenizer, **options)

    return loader
