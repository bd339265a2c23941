"""README's commands in README's order, with files of their names; then the script for strangers."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openai")

from tests.commands.conftest import run
from tests.commands.test_check_access import _model, _write_logprobs
from tests.suspect.collect.server import serve
from tests.world.synthetic import WORDS, decode, save_tokenizer

__all__ = ["run"]

ROOT = Path(__file__).parents[1]
OUTPUTS = 2000
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    for line in block.splitlines()
    if line.startswith("provenance ") and "/tmp/provenance" not in line  # the first example's own
]
FOREIGN = ("--scheme", "--scheme-config")


def write_texts(path, rows, field="output"):
    """Rows of ids as records."""
    path.write_text("".join(json.dumps({field: decode(row)}) + "\n" for row in rows))


def prepare(folder, rng):
    """Every file that README names and none of its commands makes, but those of the index."""
    save_tokenizer(folder / "tokenizer.json")
    for name in ("model", "suspect", "base-model"):
        model = _model(folder / name, folder / "tokenizer.json", 1)
    from transformers import PreTrainedTokenizerFast

    own = (folder / "tokenizer.json").read_bytes()
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="w0", eos_token="w1"
    )
    fast.save_pretrained(folder / "model")
    (folder / "model/tokenizer.json").write_bytes(own)  # byte for byte, as the keyring fixes it
    _write_logprobs(folder / "top20.jsonl", model, rng.integers(0, WORDS, (20, 30)))
    prompts = [{"prompt": decode(rng.integers(0, WORDS, 5))} for _ in range(48)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    write_texts(folder / "unmarked.jsonl", rng.integers(0, WORDS, (50, 30)))
    write_texts(folder / "batch-3.jsonl", rng.integers(0, WORDS, (50, 30)))
    (folder / "essay.txt").write_text(decode(rng.integers(0, WORDS, 100)))
    body = {"choices": [{"message": {"role": "assistant", "content": "w1 w2"}}]}
    answer = {"custom_id": "a", "response": {"status_code": 200, "body": body}}
    asked = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "w3"}]}}
    (folder / "batch_output.jsonl").write_text(json.dumps(answer) + "\n")
    (folder / "batch_input.jsonl").write_text(json.dumps(asked) + "\n")


def write_outputs_of_a_thief(folder, rng):
    """The served texts again and again, with other words between them."""
    lines = (folder / "served.jsonl").read_text().splitlines()
    served = [json.loads(line)["token_ids"] for line in lines]
    rows = []
    for number in range(OUTPUTS):
        ids = served[number % len(served)]
        start = int(rng.integers(0, max(1, len(ids) - 12)))
        rows.append([*rng.integers(0, WORDS, 3), *ids[start : start + 12]])
    write_texts(folder / "outputs.jsonl", rows)


def test_the_commands_of_the_readme_give_a_bundle_that_a_stranger_reproduces(
    run, tmp_path, monkeypatch
):
    rng = np.random.default_rng(4)
    prepare(tmp_path, rng)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    done = []
    with serve() as server:
        for words in COMMANDS:
            if set(FOREIGN) & set(words):
                continue  # of another log: tests/commands/test_foreign_parity.py
            command = " ".join(words[:2])
            if command == "log audit":  # what README's example in Python would have written
                again = ["generate", "--model", "model/", "--prompts", "prompts.jsonl"]
                assert run(*again, "--keys", "keys/", "-o", "served/")[0] == 0
            if command.startswith("suspects"):
                for name, file in (("a", "unmarked"), ("b", "batch-3"), ("c", "outputs")):
                    fast = ("--placebo-keys", 50, "-o", f"bundle-{name}/")
                    keyed = ("--keys", "keys/", "--index", "index/")
                    assert run("check", f"{file}.jsonl", *keyed, *fast)[0] in (0, 1, 3)
            words = [word.replace("https://api.example/v1", server.url) for word in words]
            code, _, err = run(*words)
            assert code in (0, 1, 3), (words, err)
            assert not err.startswith("provenance: "), (words, err)
            done.append(command)
            if command.startswith("generate"):
                write_outputs_of_a_thief(tmp_path, rng)
    assert {"evidence sign", "verify bundle/", "plan commit"} <= set(done)
    assert "2026-017" in (tmp_path / "bundle/report.html").read_text()
    command = [sys.executable, ROOT / "docs/verify_without_us.py", "bundle"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert found.stdout.splitlines()[-1] == "REPRODUCED"
