"""Commands under somebody else's scheme: options, secrets, exit codes."""

import json

import numpy as np
import pytest

from benchmarks.calibration.world import (
    WORDS,
    Teacher,
    decode,
    learn,
    save_tokenizer,
    write_outputs,
)
from benchmarks.foreign.world import make_foreign_world
from provenance.schemes.foreign import make_foreign

KEY = 1_234_567_891
CONFIG = {"greenlist_ratio": 0.25, "bias": 2.0, "hashing_key": KEY, "seeding_scheme": "lefthash"}


def private(path, content):
    path.touch(mode=0o600)
    path.write_text(content)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A log marked under the key of CONFIG, outputs of a student and of a stranger."""
    folder = tmp_path_factory.mktemp("foreign")
    teacher = Teacher.draw(0)
    made = make_foreign("hf-lefthash", CONFIG, None, WORDS)
    world = make_foreign_world(folder, teacher, "hf-lefthash", 1, 150, 60, made)
    rng = np.random.default_rng(1)
    write_outputs(folder / "student.jsonl", learn(world, rng, 150, 60))
    write_outputs(folder / "stranger.jsonl", list(teacher.sample(rng, 60, 60)))
    (folder / "marked.txt").write_text(decode(world.served[:8].ravel()))
    (folder / "plain.txt").write_text(decode(teacher.sample(rng, 8, 60).ravel()))
    private(folder / "config.json", json.dumps(CONFIG))
    without = {name: value for name, value in CONFIG.items() if name != "hashing_key"}
    (folder / "public.json").write_text(json.dumps(without))
    private(folder / "key", f"{KEY}\n")
    world.index.close()
    return folder


def scheme(place, config="config.json", *more):
    return (
        *("--scheme", "hf-lefthash", "--scheme-config", place / config),
        *("--tokenizer", place / "tokenizer.json", *more),
    )


SIZE = ("--vocabulary-size", str(WORDS))


def test_the_whole_story_with_the_key_in_a_file_of_its_own(run, place, tmp_path):
    secret = ("--scheme-key-file", place / "key")
    index = tmp_path / "index"
    code, out, err = run(
        *("index", "build", place / "served.jsonl", "-o", index),
        *scheme(place, "public.json", *SIZE, *secret),
    )
    assert code == 0, err
    said = out + err
    code, out, err = run(
        *("check", place / "student.jsonl", "--index", index, "-o", tmp_path / "report"),
        *scheme(place, "public.json", *secret),
        *("--innocent", place / "stranger.jsonl", "--placebo-keys", "50"),
    )
    assert code == 1, err
    assert "EVIDENCE" in out
    assert "Caveat of this mark" in out
    said += out + err
    assert run("evidence", "new-signing-key", tmp_path / "signing.key")[0] == 0
    code, out, err = run(
        "evidence", "sign", tmp_path / "report", "--signing-key", tmp_path / "signing.key"
    )
    assert code == 0, err
    code, out, err = run("verify", tmp_path / "report")
    assert code == 0, out + err
    assert "not possible" in out  # its coins are those of another scheme's key
    said += out + err
    code, out, err = run(
        *("check", place / "stranger.jsonl", "--index", index, "--placebo-keys", "50", "--json"),
        *scheme(place, "public.json", *secret),
    )
    verdict = json.loads(out)
    assert code in (0, 3), err
    assert verdict["conclusion"] == {0: "no evidence", 3: "inconclusive"}[code]
    assert verdict["controls_passed"]
    assert verdict["log10_p"] > -3
    assert "no control slot" in verdict["caveat"]
    said += out + err
    written = "".join(
        path.read_text() for path in (*index.glob("*.json"), tmp_path / "report" / "verdict.json")
    )
    assert str(KEY) not in said + written


def test_detect_finds_the_marked_text_only(run, place):
    for name, expected in (("marked.txt", 1), ("plain.txt", 0)):
        code, out, err = run("detect", place / name, *scheme(place, "config.json", *SIZE))
        assert code == expected, err
        assert "Caveat: " in out
        assert str(KEY) not in out + err
    code, out, _ = run(
        "detect", place / "marked.txt", "--json", *scheme(place, "config.json", *SIZE)
    )
    assert json.loads(out)["texts"][0]["marked"]
    assert "one token seeds" in json.loads(out)["texts"][0]["caveat"]


def test_the_key_may_come_from_a_command(run, place):
    command = ("--scheme-key-cmd", f"cat {place / 'key'}")
    code, _, err = run(
        "detect", place / "marked.txt", *scheme(place, "public.json", *SIZE, *command)
    )
    assert code == 1, err
    code, _, err = run(
        *("detect", place / "marked.txt"),
        *scheme(place, "public.json", *SIZE, "--scheme-key-cmd", "false"),
    )
    assert (code, err.count("\n")) == (74, 1)


def test_a_configuration_with_a_key_that_others_can_read_is_refused(run, place, tmp_path):
    exposed = private(tmp_path / "config.json", json.dumps(CONFIG))
    exposed.chmod(0o644)
    code, _, err = run("detect", place / "plain.txt", *scheme(place, exposed, *SIZE))
    assert (code, err.count("\n")) == (77, 1)
    assert str(KEY) not in err
    key = private(tmp_path / "key", str(KEY))
    key.chmod(0o640)
    more = (*SIZE, "--scheme-key-file", key)
    assert run("detect", place / "plain.txt", *scheme(place, "public.json", *more))[0] == 77


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({**CONFIG, "device": "cuda:0"}, 78),
        ({**CONFIG, "hashing_key": -3}, 2),
        ({**CONFIG, "greenlist_ration": 0.5}, 2),
        ({**CONFIG, "vocab_size": WORDS + 1}, 78),
        ([CONFIG], 65),
        ("{", 65),
    ],
    ids=["gpu", "key", "typo", "size", "list", "broken"],
)
def test_a_configuration_that_cannot_be_used_says_so_in_one_line(
    run, place, tmp_path, config, code
):
    text = config if isinstance(config, str) else json.dumps(config)
    path = private(tmp_path / "config.json", text)
    found, out, err = run("detect", place / "plain.txt", *scheme(place, path, *SIZE))
    assert (found, err.count("\n"), out) == (code, 1, ""), err
    assert str(KEY) not in err


def test_a_key_that_is_no_number_is_not_quoted(run, place, tmp_path):
    for content in ("hunter2", '{"a": 1}', "[1, 2.5]", "true", "[]"):
        key = private(tmp_path / "key", content)
        code, _, err = run(
            *("detect", place / "plain.txt"),
            *scheme(place, "public.json", *SIZE, "--scheme-key-file", key),
        )
        assert code == 65
        assert "hunter2" not in err
    other = private(tmp_path / "key", "17")
    more = (*SIZE, "--scheme-key-file", other)
    code, _, err = run("detect", place / "plain.txt", *scheme(place, "config.json", *more))
    assert code == 78  # two keys that differ
    assert str(KEY) not in err


def test_wrong_combinations_of_options_are_usage_errors(run, place, tmp_path):
    text, keys = place / "plain.txt", ("--keys", tmp_path)
    for words in (
        ("detect", text),
        ("detect", text, *keys, *scheme(place)),
        ("detect", text, *keys, *SIZE),
        ("detect", text, "--scheme", "hf-lefthash", "--scheme-config", place / "config.json"),
        ("detect", text, *scheme(place)),  # the size of the vocabulary is missing
        ("detect", text, "--scheme", "sbw", *scheme(place)[2:]),
    ):
        code, out, err = run(*words)
        assert (code, err.count("\n"), out) == (2, 1, ""), (words, err)


def test_an_index_of_another_key_and_a_scheme_without_a_test_are_refused(run, place, tmp_path):
    other = private(tmp_path / "other.json", json.dumps({**CONFIG, "hashing_key": 5}))
    code, _, err = run(
        *("check", place / "student.jsonl", "--index", place / "index"), *scheme(place, other)
    )
    assert (code, err.count("\n")) == (78, 1)
    config = {"secret_key": 5, "watermark_type": "synthid"}
    seal = private(tmp_path / "seal.json", json.dumps(config))
    code, _, err = run(
        *("detect", place / "plain.txt", "--scheme", "textseal-synthid"),
        *("--scheme-config", seal, "--tokenizer", place / "tokenizer.json"),
    )
    assert (code, err.count("\n")) == (78, 1)
    assert "valid test" in err


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(run, place, tmp_path):
    save_tokenizer(tmp_path / "tokenizer.json")
    code, _, err = run(
        "detect", place / "plain.txt", *scheme(place, "config.json", "--vocabulary-size", "100")
    )
    assert (code, err.count("\n")) == (78, 1)


def test_a_suspects_tokenizer_that_was_saved_again_is_the_marks(place, tmp_path):
    from provenance.errors import ConfigurationMismatchError
    from provenance.marks.files import read_foreign_mark

    own = place / "tokenizer.json"
    mark = read_foreign_mark("hf-lefthash", place / "config.json", own, vocabulary_size=WORDS)
    document = json.loads(own.read_text())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**document, "padding": None, "post_processor": None}, indent=4))
    mark.public.check_tokenizer(path)
    document["model"]["vocab"].pop("w1")
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationMismatchError):
        mark.public.check_tokenizer(path)
