"""`plan power` as the shell calls it: what is printed, and what is refused."""

import json

import pytest

from tests.test_docs import FIXTURES


def test_power_is_planned_and_says_what_it_rests_on(run):
    keys = ("--keys", FIXTURES / "keys")
    code, out, err = run("plan", "power", "--share", 1, *keys, "--reference", "ngram", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["outcome"] == "tokens"
    assert 0 < made["tokens"] < made["measured"]
    code, out, _ = run("plan", "power", "--share", 0.3, *keys)
    assert code == 3
    assert out.startswith("MORE THAN 196,118 tokens")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--share", 1),
        ("--share", 2, "--keys", FIXTURES / "keys"),
        ("--share", 1, "--keys", FIXTURES / "keys", "--mix", "code=much"),
        ("--share", 1, "--keys", FIXTURES / "keys", "--mix", "code=1"),
        ("--share", 1, "--keys", FIXTURES / "keys", "--access", "guess"),
    ],
)
def test_what_cannot_be_planned_is_one_line(run, words):
    code, out, err = run("plan", "power", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("provenance: ")


def test_a_folder_without_a_verdict_is_one_line(run, tmp_path):
    code, out, err = run("plan", "power", "--verdict", tmp_path)
    assert (code, out, err.count("\n")) == (74, "", 1), err
