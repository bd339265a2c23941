"""`provenance collect` from the shell: exit codes, words, JSON, and no secret anywhere."""

import json

import pytest

from tests.suspect.collect.server import serve
from tests.suspect.collect.test_batches import openai_line, write
from tests.suspect.collect.test_collect import write_prompts

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "p.jsonl", 5)


def _ask(server, *more):
    url = ("--base-url", server.url, "--model", "tiny", "--prompts", "p.jsonl", "-o", "out")
    return ("collect", *url, "--option", "max_tokens=20", "--backoff", "0.01", *more)


def test_collect_go_on_and_verify(run):
    with serve() as server:
        code, printed, _ = run(*_ask(server, "--price", "1,2", "--max-tokens-total", "300"))
        assert code == 3
        assert "Stopped: the budget is spent." in printed
        code, printed, said = run(*_ask(server, "--price", "1,2", "--json"))
    assert code == 0, said
    found = json.loads(printed)
    assert (found["answered"], found["unanswered"], found["tokens"]) == (5, 0, [35, 55])
    assert found["cost"] == pytest.approx(145e-6)
    assert set(server.asked.values()) == {1}
    code, printed, _ = run("collect", "verify", "out", "--head", found["head"])
    assert code == 0
    assert printed.startswith("5 of 5 outputs of tiny: 5 requests")
    code, printed, _ = run("collect", "verify", "out", "--head", "0" * 64)
    assert code == 1
    with open("out/outputs.jsonl", "a") as file:  # noqa: PTH123
        file.write("\n")
    code, printed, _ = run("collect", "verify", "out")
    assert code == 1
    assert "outputs.jsonl" in printed


def test_batches_there_and_back(run, tmp_path):
    asked = ("--model", "tiny", "--prompts", "p.jsonl", "-o", "out", "--option", "temperature=1")
    code, printed, _ = run("collect", "prepare", "--format", "openai-batch", *asked)
    assert code == 0
    assert "Written: out/batch-input.jsonl" in printed
    write(tmp_path / "r.jsonl", [openai_line(f"{n}-0") for n in range(1, 5)])
    code, printed, _ = run("collect", "import", "r.jsonl", "out")
    assert code == 0
    assert printed.startswith("4 of 5 outputs of tiny")
    assert run("collect", "verify", "out")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ((), 2, "--prompts and -o"),
        (("--prompts", "p.jsonl", "-o", "out"), 2, "--model"),
        (("--prompts", "p.jsonl", "-o", "out", "--model", "m"), 2, "--base-url"),
        (("verify", "nowhere"), 74, "ledger"),
        (("import", "p.jsonl", "nowhere"), 74, "must be a collection"),
        (
            ("prepare", "--format", "csv", "--prompts", "p.jsonl", "-o", "o", "--model", "m"),
            2,
            "csv",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(run, words, code, reason):
    got, printed, said = run("collect", *words)
    assert (got, printed) == (code, "")
    assert reason in said
    assert len(said.strip().splitlines()) == 1


def test_the_key_is_never_shown_even_with_debug(run, monkeypatch):
    key = "sk-canary-0123456789"
    monkeypatch.setenv("MY_KEY", key)

    def act(handler, _body, _before):
        handler.reply(401, json.dumps({"error": {"message": f"wrong {key}", "code": key}}).encode())
        return True

    with serve(act) as server:
        _, url, *_ = _ask(server)
        code, printed, said = run("--debug", *_ask(server, "--api-key-env", "MY_KEY"))
    assert code == 3
    assert "the API says 401" in printed
    assert url == "--base-url"
    assert "canary" not in printed + said
    assert server.headers[0]["authorization"] == f"Bearer {key}"
