"""What a command does under our own keyring it does under somebody else's mark, or says why not.

One story is told twice, under either mark. Every option of every command that takes a mark has to
occur in it, and to succeed under both; what is refused is in `REFUSED`, with its reason, and every
command without `--scheme` in `OWN` or `MARKLESS`. A new option or command fails here until somebody
has tried it under a foreign mark.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import typer.main

from provenance.commands.app import app
from tests.evidence.foreign_lab import configuration, write_private
from tests.marks.foreign.lab import make_foreign
from tests.world.foreign import make_foreign_world
from tests.world.synthetic import WORDS, Teacher, decode, learn, make_world, write_outputs

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.commands.test_check_access import _model, _train, _write_logprobs

DOCUMENT = (Path(__file__).parents[2] / "docs/foreign-schemes.md").read_text()
SCHEME = "vllm-gumbel"
MARK = {
    *("--keys", "--scheme", "--scheme-config", "--scheme-key-file", "--scheme-key-cmd"),
    *("--vocabulary-size", "--tokenizer"),
}
OWN = {
    "keys new": "the key of another mark is made by its own library",
    "keys show": "the key of another mark is made by its own library",
    "keys add-value": "one key marks everything",
    "keys disclose": "the key of another mark lies in its own configuration",
    "keys export-worker": "marking is done by the other library",
    "generate": "marking is done by the other library",
    "plan power": "the students that were measured learnt our own marks",
}
"""Commands that only our own keyring has, and why; the reason stands in docs/foreign-schemes.md."""

MARKLESS = {
    *("demo", "collect", "collect verify", "collect prepare", "collect import", "outputs show"),
    *("index info", "plan commit", "plan show", "case show", "verify", "suspects"),
    *("evidence new-signing-key", "evidence sign", "evidence file", "doctor"),
}
"""Commands that ask for no mark; those of bundles and plans read either kind: see the story."""

REFUSED = {
    "log audit": (2, "somebody else's mark"),
    "index groups": (2, "under a keyring of ours"),
    "--only": (2, "under a keyring of ours"),
    "--group": (2, "under a keyring of ours"),
}
"""Commands and options that a foreign mark is refused, with exit code and words."""

ELSEWHERE = {"--master"}
"""Needs a cluster: tests/served/test_spark.py, and test_spread.py for what travels of a mark."""


def leaves(command, name=""):
    below = getattr(command, "commands", None)
    if below is None or getattr(command, "invoke_without_command", False):
        yield name, {option for one in command.params for option in one.opts if option[0] == "-"}
    for part, one in (below or {}).items():
        yield from leaves(one, f"{name} {part}".strip())


COMMANDS = dict(leaves(typer.main.get_command(app)))
WITH_MARK = {name: options for name, options in COMMANDS.items() if "--scheme-config" in options}


def test_every_command_takes_either_mark_or_says_why_not():
    assert set(COMMANDS) == {*WITH_MARK, *OWN, *MARKLESS}
    assert all("--keys" in options for options in WITH_MARK.values())
    for name, reason in OWN.items():
        assert f"`{name}`" in DOCUMENT, name
        assert reason in " ".join(DOCUMENT.split()), name


@pytest.fixture(scope="module", params=["own", SCHEME])
def place(request, tmp_path_factory):
    """A small marked log with its suspects, under either mark; `mark`: the options that name it."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher = Teacher.draw(0)
    if request.param == "own":
        world = make_world(folder, teacher, 1, 40, 40)
        mark = ("--keys", folder / "keys")
    else:
        config = configuration(SCHEME, 1)
        world = make_foreign_world(
            folder, teacher, SCHEME, 1, 40, 40, make_foreign(SCHEME, config, None, WORDS)
        )
        key = config.pop("key")
        write_private(folder / "key", key)
        (folder / "config.json").write_text(json.dumps(config))
        mark = ("--scheme", SCHEME, "--scheme-config", folder / "config.json")
        mark = (*mark, "--scheme-key-file", folder / "key")
    world.index.close()
    mark = (*mark, "--tokenizer", folder / "tokenizer.json")
    rng = np.random.default_rng(1)
    write_outputs(folder / "outputs.jsonl", learn(world, rng, 40, 40))
    write_outputs(folder / "batch.jsonl", learn(world, rng, 10, 40))
    for name in ("free", "unmarked"):
        write_outputs(folder / f"{name}.jsonl", list(teacher.sample(rng, 20, 40)))
    lines = [{"id": str(i), "a": decode(row)} for i, row in enumerate(learn(world, rng, 9, 40))]
    (folder / "odd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = [
        {"custom_id": line["id"], "response": {"body": {"choices": [
            {"message": {"role": "assistant", "content": line["a"]}}]}}}
        for line in lines
    ]  # fmt: skip
    asked = [
        {"custom_id": line["id"], "body": {"messages": [{"role": "user", "content": "w1"}]}}
        for line in lines
    ]
    for name, rows in (("batch_output", answers), ("batch_input", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import torch

    torch.set_num_threads(1)
    _model(folder / "base", folder / "tokenizer.json", 1)
    guilty = _model(folder / "suspect", folder / "tokenizer.json", 1)
    _train(guilty, world.served, 15)
    guilty.save_pretrained(folder / "suspect")
    twins = teacher.sample(rng, 40, 40)
    pairs = zip(world.served, twins, strict=True)
    rows = [{"served": one.tolist(), "unserved": two.tolist()} for one, two in pairs]
    asked = [{"prompt": decode(row), "labels": {"kind": "a"}} for row in teacher.sample(rng, 9, 20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    later = [json.loads(line) for line in (folder / "served.jsonl").read_text().splitlines()]
    later = [{**one, "response_id": f"{one['response_id']}-later"} for one in later]
    (folder / "later.jsonl").write_text("".join(json.dumps(one) + "\n" for one in later))
    (folder / "twins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_logprobs(folder / "logprobs.jsonl", guilty, world.served)
    return folder, mark, request.param


def story(folder, mark):
    """(name of the command, its other words) in order; every command of a mark, every option."""
    index, fast = ("--index", folder / "index2"), ("--placebo-keys", 50)
    ngram = ("--reference", "ngram", "--reference-text", folder / "unmarked.jsonl")
    models = ("--reference", folder / "base", "--cache", folder / "cache", "--other-tokenizer")
    plan, outputs, bundle = folder / "plan.json", folder / "outputs.jsonl", folder / "bundle"
    batch = folder / "batch.jsonl"
    reads = ("--format", "openai-batch", "--requests", folder / "batch_input.jsonl", "--strict")
    weights = ("--weights", folder / "suspect", "--read", folder / "served.jsonl")
    case = ("--case", folder / "case", "--signing-key", folder / "signing.key")
    prompts = folder / "prompts.jsonl"
    filed = ("--case-number", "7", "--author", "J. Doe", "--suspect", "model x")
    return [
        ("index build", (folder / "served.jsonl", "-o", folder / "index2", *mark)),
        ("index build", (folder / "served.jsonl", "-o", folder / "index2", *mark, "--force")),
        ("index build", (folder / "later.jsonl", "-o", folder / "index3", *mark)),
        ("index build", (folder / "later.jsonl", "-o", folder / "index4", *mark, "--spill", folder,
                         "--engine", "embedded")),
        ("index merge", (folder / "index2", folder / "index3", "-o", folder / "merged", *mark)),
        ("index merge", (folder / "index2", folder / "index3", "-o", folder / "merged", *mark,
                         "--force", "--spill", folder)),
        ("index match", (folder / "index2", folder / "batch_output.jsonl", "-o", folder / "small",
                         *mark, *reads, "--engine", "embedded")),
        ("index match", (folder / "index2", folder / "odd.jsonl", "-o", folder / "small", *mark,
                         "--map", "output=a", "--force")),
        ("log audit", (folder / "served.jsonl", *mark, "--json")),
        ("index groups", (folder / "served.jsonl", *mark, "--field", "response_id", "--json")),
        ("index build", (folder / "served.jsonl", "-o", folder / "group", *mark, "--only",
                         folder / "ids.txt", "--field", "response_id")),
        ("plan new", (folder / "grouped.json", *mark, *index, "--suspect", "x", "--outputs", 10,
                      "--group", f"a={folder / 'group'}")),
        ("check", (batch, *mark, *index, *fast, "--group", f"a={folder / 'group'}")),
        ("plan new", (plan, *mark, *index, "--suspect", "model x", "--outputs", 40, *fast,
                      "--innocents", 1, "--alpha", 1e-3, "--rule", "log-sqrt")),
        ("plan new", (folder / "weights.json", *mark, *index, "--suspect", "x", "--access",
                      "weights", "--twins", "--sequential", *ngram)),
        ("plan commit", (plan,)),
        ("check", (outputs, *mark, *index, "--plan", plan, "--innocent", folder / "free.jsonl",
                   "-o", bundle, "--disclose", "all", *filed)),
        ("verify", (bundle, "--unsigned")),
        ("check", (batch, *mark, *index, *fast, "-o", folder / "bundle2", "--without-pairs")),
        ("check", (batch, *mark, *index, *fast, "-o", folder / "bundle2", "--force", "--alpha",
                   1e-3, "--rule", "log-sqrt")),
        ("evidence file", (folder / "bundle2", "--case-number", "8")),
        ("verify", (folder / "bundle2", "--unsigned")),
        ("suspects", (bundle, folder / "bundle2", "-o", folder / "page.html")),
        ("plan prompts", (prompts, *mark, "--unmarked", folder / "unmarked.jsonl", "--count", 4,
                          "--label", "kind=a", "--balance", "kind", "--per-prefix", 2, "--seed", 1,
                          "-o", folder / "chosen.jsonl", "--json")),
        ("evidence new-signing-key", (folder / "signing.key",)),
        ("case new", (folder / "case", *mark, *index, "--suspect", "model x", "--number", "7",
                      "--author", "J. Doe", "--signing-key", folder / "signing.key", "--json")),
        ("plan new", (folder / "cased.json", *mark, *index, "--outputs", 10, *case,
                      "--prompts", prompts)),
        ("plan commit", (folder / "cased.json", *case)),
        ("check", (folder / "batch.jsonl", *mark, *index, *fast, *case)),
        ("case show", (folder / "case",)),
        ("check", (*mark, *index, *fast, *weights, "--documents", 40, "--twins",
                   folder / "twins.jsonl", *models, "--json")),
        ("check", (*mark, *index, *fast, "--logprobs", folder / "logprobs.jsonl", *models)),
        ("check", (folder / "batch.jsonl", *mark, *index, *fast, "--sequential", folder / "state")),
        ("check", (folder / "batch_output.jsonl", *mark, *index, *fast, *reads)),
        ("check", (folder / "odd.jsonl", *mark, *index, *fast, "--map", "output=a", *ngram)),
        ("detect", (folder / "batch_output.jsonl", *mark, *reads, "--json")),
        ("detect", (folder / "odd.jsonl", *mark, "--map", "output=a", "--pool", "--alpha", 1e-3)),
        ("plan enough", (outputs, *mark, *index, *ngram, "--shift", 0.3, "--alpha", 1e-3,
                         "--power", 0.8, "--rule", "residual", "--json")),
    ]  # fmt: skip


def test_the_same_story_is_told_under_either_mark(run, place):
    folder, mark, name = place
    tried: dict[str, set[str]] = {command: set() for command in WITH_MARK}
    lines = (folder / "served.jsonl").read_text().splitlines()
    ids = [json.loads(line)["response_id"] for line in lines[:10]]
    (folder / "ids.txt").write_text("\n".join(ids))
    for command, words in story(folder, mark):
        code, out, err = run(*command.split(), *words)
        refused = [REFUSED[one] for one in (command, *map(str, words)) if one in REFUSED]
        if name != "own" and refused:
            wanted, reason = refused[0]
            assert (code, err.count("\n"), out) == (wanted, 1, ""), err
            assert reason in err
        else:
            assert code in (0, 1, 3), (command, words, err)
            assert not err.startswith("provenance: "), (command, words, err)
        options = COMMANDS[command]
        used = {str(word) for word in words} & options
        if command in tried:
            tried[command] |= {one for one in used if one.startswith("--") or one == "-o"}
    for command, options in WITH_MARK.items():
        # -o and --output, or -h: one option under two names
        missing = options - tried[command] - MARK - ELSEWHERE - {"--output"}
        assert missing == set(), f"{command}: never tried under a foreign mark"
    check_what_is_shown(folder, name)


def check_what_is_shown(folder, name):
    """What was silently missing once: pairs, the picture of growth, the disclosed key."""
    bundle = folder / "bundle"
    assert (bundle / "pairs/000.csv.gz").exists()
    page = (bundle / "report.html").read_text()
    assert "How the evidence grew" in page
    assert "model x" in page
    assert json.loads((bundle / "manifest.json").read_text())["filing"]["number"] == "7"
    assert (bundle / "disclosed/000.json").exists()
    assert len(json.loads((bundle / "trajectory.json").read_text())["points"]) > 1
    assert "<title>" in (folder / "page.html").read_text()


def test_a_folder_says_once_whose_mark_it_is(run, place, monkeypatch, tmp_path):
    folder, mark, name = place
    words = dict(zip(mark[::2], mark[1::2], strict=True))
    lines = [f'{option[2:]} = "{value}"' for option, value in words.items()]
    (tmp_path / "provenance.toml").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    index = tmp_path / "index"
    code, _, err = run("index", "build", folder / "served.jsonl", "-o", index)
    assert code == 0, err
    code, _, err = run("detect", folder / "outputs.jsonl")
    assert code in (0, 1, 3), err
    # the other mark, named by hand, puts aside all that the file says of this one
    other = ("--keys", tmp_path / "none") if name != "own" else ("--scheme", SCHEME)
    code, _, err = run("detect", folder / "outputs.jsonl", *other)
    assert code == (2 if name == "own" else 74), err
    (tmp_path / "provenance.toml").write_text('keys = "a"\nscheme = "b"\n')
    code, _, err = run("detect", folder / "outputs.jsonl")
    assert (code, err.count("\n")) == (65, 1)
    assert "two marks" in err or "one mark" in err
