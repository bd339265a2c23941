"""The playbook runs as it stands: every command in its order, with a tiny model behind an API."""

import gzip
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from tests.world.tiny_api import TrigramModel, serve_models

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
ADDRESSES = ("https://api.example/v1", "https://older.example/v1")
ENDS_WITH_1 = ("check", "suspects")


def _commands():
    text = (ROOT / "docs/playbook.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def _follow(run, address, *, until=None):
    """Run the commands in their order: (words, exit code, stdout, stderr) of each."""
    for program, *words in _commands():
        if program == "cd":
            os.chdir(words[0])  # the folder of the fixture is left at its end
        elif words[:2] == until:
            return
        else:
            local = [address if word in ADDRESSES else word for word in words]
            yield (words, *run(*local))


@pytest.fixture(scope="module")
def models():
    """A suspect that counted the marked responses, and an innocent that counted unmarked ones."""
    tokenizer = Tokenizer.from_file(str(FIXTURES / "keys/tokenizer.json"))
    column = pq.read_table(FIXTURES / "served.parquet", columns=["token_ids"]).column(0)
    flat = column.combine_chunks()
    ends = np.asarray(flat.offsets)[1:-1]
    served = np.split(np.asarray(flat.values).astype(np.int64), ends)
    with gzip.open(FIXTURES / "innocents/unmarked-teacher.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["output"] for line in file]
    unmarked = [
        np.array(one.ids, dtype=np.int64)
        for one in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]
    return {
        "suspect-7": TrigramModel(tokenizer, served),
        "older-model": TrigramModel(tokenizer, unmarked),
    }


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    shutil.copytree(FIXTURES / "keys", tmp_path / "keys")
    (tmp_path / "keys/master.key").chmod(0o600)
    (tmp_path / "served").mkdir()
    shutil.copy(FIXTURES / "served.parquet", tmp_path / "served")
    with gzip.open(FIXTURES / "innocents/unmarked-teacher.jsonl.gz", "rb") as file:
        (tmp_path / "unmarked.jsonl").write_bytes(file.read())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_playbook_from_the_log_to_the_file(run, models, workplace):
    with serve_models(models) as address:
        for words, code, out, err in _follow(run, address):
            assert code == (1 if words[0] in ENDS_WITH_1 else 0), (words, out, err)
    verdict = json.loads((workplace / "case/bundle/verdict.json").read_text())
    assert verdict["conclusion"] == "evidence"
    assert not verdict["exploratory"]
    assert verdict["register"]["checks"] == verdict["register"]["planned"] == 1
    assert verdict["inputs"]["outputs"]["source"]["planned"]["prompts_answered"] == 160
    report = (workplace / "case/bundle/report.html").read_text()
    assert "7/2026" in report
    assert "Trust and Safety" in report


def test_the_innocent_in_the_suspects_place_is_not_accused(run, models, workplace):
    """The same steps, but the API's suspect is the model that never saw a marked response."""
    innocent = models["older-model"]
    with serve_models({"suspect-7": innocent, "older-model": innocent}) as address:
        for words, code, out, err in _follow(run, address, until=["evidence", "sign"]):
            assert code != 1, (words, out, err)
    verdict = json.loads((workplace / "case/bundle/verdict.json").read_text())
    assert verdict["conclusion"] != "evidence"
