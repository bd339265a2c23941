"""A small tokenizer and a keyring that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from provenance.keys.keyring import SchemeSpecification, UnlockedKeyring, create_keyring
from provenance.keys.schedule import Schedule

if TYPE_CHECKING:
    from tests.world.synthetic import World

VALUES = {
    "week": ["2026-W17", "2026-W18", "2026-W19"],
    "capability": ["code", "prose"],
    "cohort": ["a", "b"],
}
GUMBEL = SchemeSpecification("gumbel")
SHARES = {"global": 0.25, "week": 0.15, "capability": 0.15, "cohort": 0.05}


@pytest.fixture(autouse=True)
def _no_secret_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROVENANCE_KEY_FILE", "PROVENANCE_KEY_CMD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 400 tokens: round-trips any text."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    # a text of its own, which nobody edits: with other merges, every test would read other tokens
    text = (Path(__file__).parent / "world/tokenizer_text.txt").read_text()
    return train_tokenizer(path, 400, text.splitlines(), ["<pad>", "<end>"])


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_path))


@pytest.fixture(scope="session")
def keyring_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "ring"
    make_keyring(folder, tokenizer_path)
    return folder


@pytest.fixture(scope="session")
def keyring(keyring_folder: Path) -> UnlockedKeyring:
    from provenance.keys.keyring import Keyring

    return Keyring.load(keyring_folder).unlock(keyring_folder)


def train_tokenizer(path: Path, size: int, text: list[str], special: list[str]) -> Path:
    """A byte-level BPE, saved as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(str(path))
    return path


def make_keyring(
    folder: Path,
    tokenizer_path: Path,
    scheme: SchemeSpecification = GUMBEL,
    width: int = 2,
    shares: dict[str, float] = SHARES,
    values: dict[str, list[str]] = VALUES,
    reads_prompt: bool = True,
) -> UnlockedKeyring:
    size = Tokenizer.from_file(str(tokenizer_path)).get_vocab_size()
    schedule = Schedule.from_shares(shares, values)
    return create_keyring(folder, tokenizer_path, size, scheme, schedule, width, reads_prompt)


@pytest.fixture(scope="session")
def synthetic_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small language, served marked and indexed: for tests that need suspects of both kinds."""
    from tests.world.synthetic import Teacher, make_world

    return make_world(tmp_path_factory.mktemp("synthetic"), Teacher.draw(0), 1)
