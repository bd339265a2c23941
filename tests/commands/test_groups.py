"""`index build --only`, `index groups`, `check --group`, `plan new --group` through the shell."""

import json

import numpy as np
import pytest

from tests.world.synthetic import write_outputs


@pytest.fixture(scope="module")
def made(synthetic_world, tmp_path_factory):
    """A log with accounts whose prompts are known, and a list of accounts."""
    folder = tmp_path_factory.mktemp("groups")
    world = synthetic_world
    with (folder / "log.jsonl").open("w") as file:
        for i, (ids, labels) in enumerate(zip(world.served, world.labels, strict=True)):
            record = {
                "response_id": f"r{i}",
                "marked": True,
                "labels": {**labels, "account": f"a{i % 4}"},
                "token_ids": ids.tolist(),
                "prompt_token_ids": [],
                "finish": "length",
            }
            file.write(json.dumps(record) + "\n")
    (folder / "accounts.txt").write_text("a1\na3\nnobody\n")
    rows = list(world.teacher.sample(np.random.default_rng(4), 60, 60))
    write_outputs(folder / "outputs.jsonl", rows)
    return folder


def test_from_accounts_to_a_verdict(run, made, synthetic_world):
    keys = ("--keys", synthetic_world.folder / "keys")
    log, group, index = made / "log.jsonl", made / "group", made / "index"
    assert run("index", "build", log, *keys, "-o", index)[0] == 0
    only = ("--only", made / "accounts.txt", "--field", "account")
    code, _, said = run("index", "build", log, *keys, *only, "-o", group)
    assert code == 0
    assert "2 of 3 values met" in said
    assert run("index", "build", log, *keys, *only, "-o", group)[0] == 74  # it is there
    assert run("index", "build", log, *keys, *only, "-o", group, "--force")[0] == 0
    code, listed, _ = run("index", "groups", log, *keys, "--field", "account", "--json")
    assert code == 0
    assert [one["responses"] for one in json.loads(listed)["groups"]] == [50] * 4
    assert run("index", "groups", log, *keys, "--field", "account")[1].count("a2") == 1

    check = ("check", made / "outputs.jsonl", *keys, "--index", index, "--placebo-keys", "60")
    code, out, said = run(*check, "--group", f"campaign={group}", "--json")
    assert code in (0, 3)
    found = json.loads(out)
    assert [one["side"] for one in found["groups"]] == ["group", "others"]
    facts = found["inputs"]["groups"]["campaign"]
    assert f"with {facts['coins']['group']:,} coins" in said  # before a key is opened

    plan = ("plan", "new", made / "plan.json", "--index", index, *keys, "--suspect", "x")
    group = ("--group", f"campaign={group}")
    assert run(*plan, "--sequential", *group)[0] == 2
    assert run(*plan, "--outputs", "60", "--placebo-keys", "60", *group)[0] == 0
    assert run(*check, "--plan", made / "plan.json", *group)[0] in (0, 3)
    assert run(*check, "--plan", made / "plan.json")[0] == 78  # the group is missing


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--group", "campaign"), 2),
        (("--group", "a b=x"), 2),
        (("--group", "campaign=nowhere"), 74),
        (("--group", "campaign=x", "--sequential", "state"), 2),
    ],
)
def test_what_is_no_group_is_refused(run, made, synthetic_world, words, code):
    folder = synthetic_world.folder
    keyed = ("--keys", folder / "keys", "--index", folder / "index")
    assert run("check", made / "outputs.jsonl", *keyed, *words)[0] == code


def test_a_group_of_another_log_is_refused(run, made, synthetic_world, tmp_path):
    folder = synthetic_world.folder
    keys = ("--keys", folder / "keys")
    only = ("--only", made / "accounts.txt", "--field", "account")
    assert run("index", "build", made / "log.jsonl", *keys, *only, "-o", tmp_path / "g")[0] == 0
    words = ("--index", folder / "index", "--group", f"campaign={tmp_path / 'g'}")
    code, _, said = run("check", made / "outputs.jsonl", *keys, *words)
    assert code == 78
    assert "same, complete files" in said
