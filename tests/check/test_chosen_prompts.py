"""Choosing prompts: what is read, what is kept, and that innocents who are asked stay innocent."""

import json
from pathlib import Path

import numpy as np
import pytest

import provenance as pv
from provenance.errors import DataError, UsageError
from provenance.suspect.collect.prompts import Prompts
from tests.world.innocents.choosing import run_keys
from tests.world.synthetic import LABELS, Teacher, decode, make_world, write_outputs

KEYS = 120


@pytest.fixture(scope="module")
def z_of_innocents():
    return {way: np.array(z) for way, z in run_keys(KEYS).items()}


def test_innocents_who_are_asked_chosen_prompts_stay_innocent(z_of_innocents):
    for way in ("chosen", "random"):
        z = z_of_innocents[way]
        assert abs(z.mean()) < 4 * z.std() / np.sqrt(KEYS), way
        assert 0.74 < z.std() < 1.26, way  # four standard errors


def test_prompts_that_are_chosen_by_the_coins_of_marked_answers_accuse_innocents(z_of_innocents):
    z = z_of_innocents["coins"]
    assert z.mean() > 10 * z.std() / np.sqrt(KEYS)


def _make(folder, records, name="prompts.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def _prompt(number):
    return f"question {number}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("prompts") / "w", Teacher.draw(0), 7, responses=40)


@pytest.fixture(scope="module")
def unmarked(world):
    rng = np.random.default_rng(5)
    path = world.folder / "unmarked.jsonl"
    return write_outputs(
        path, list(world.teacher.sample(rng, 60, 40)), [_prompt(i) for i in range(60)]
    )


def _choose(world, prompts, unmarked, tmp_path, **options):
    output = tmp_path / "chosen.jsonl"
    made = pv.choose_prompts(
        prompts, world.keyring.public, output, unmarked=unmarked, **{"count": 10, **options}
    )
    assert pv.ChosenPrompts.from_json(json.loads(json.dumps(made.to_json()))) == made
    taken = Prompts.read(output)
    assert taken.sha256 == made.sha256  # what `collect` will write down
    assert output.stat().st_mode & 0o777 == 0o600
    return made, list(taken.records)


def test_the_marked_answers_of_a_log_change_nothing(world, unmarked, tmp_path):
    """Two logs with the same prompts and other answers: the same choice, byte for byte."""
    vocabulary = [f"w{i}" for i in range(256)]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, 8).tolist() for _ in range(30)]
    hashes = set()
    for seed in (1, 2):
        own = np.random.default_rng(seed)
        records = [
            {
                "response_id": f"r{i}",
                "marked": True,
                "labels": {"capability": LABELS["capability"][i % 2]},
                "token_ids": own.integers(0, 256, 30).tolist(),
                "prompt_token_ids": prompt,
            }
            for i, prompt in enumerate(prompts)
        ]
        log = _make(tmp_path, records, f"log-{seed}.jsonl")
        made, taken = _choose(world, log, unmarked, tmp_path)
        hashes.add(made.sha256)
        assert {word for one in taken for word in one["prompt"].split()} <= set(vocabulary)
    assert len(hashes) == 1


def test_limits_labels_and_balance(world, unmarked, tmp_path):
    records = [
        {
            "prompt": f"please write a long text about {decode(row[2:8])}",
            "labels": {"capability": LABELS["capability"][i % 2]},
        }
        for i, row in enumerate(world.served)
    ]
    prompts = _make(tmp_path, records)
    made, taken = _choose(world, prompts, unmarked, tmp_path)
    assert made.chosen == len(taken) == 1  # all begin with the same letters
    assert "FEWER than the 10" in str(made)
    made, taken = _choose(world, prompts, unmarked, tmp_path, per_prefix=0)
    assert (made.chosen, made.candidates, made.answered) == (10, 40, 0)
    assert made.value > made.value_of_all
    made, taken = _choose(
        world, prompts, unmarked, tmp_path, per_prefix=0, labels={"capability": "code"}
    )
    assert {one["labels"]["capability"] for one in taken} == {"code"}
    assert made.left_out == {"other labels": 20}
    made, taken = _choose(world, prompts, unmarked, tmp_path, per_prefix=0, balance="capability")
    assert made.by_label == {"capability=code": 5, "capability=prose": 5}
    again, _ = _choose(world, prompts, unmarked, tmp_path, per_prefix=0, balance="capability")
    assert again == made
    other, _ = _choose(
        world, prompts, unmarked, tmp_path, per_prefix=0, balance="capability", seed=2
    )
    assert other.sha256 != made.sha256


def test_later_turns_templates_and_answers_are_no_prompts(world, unmarked, tmp_path):
    turn = [{"role": "user", "content": "w1 w2 w3"}]
    later = [*turn, {"role": "assistant", "content": "w4"}, {"role": "user", "content": "w5 w6"}]
    made, taken = _choose(
        world,
        _make(tmp_path, [{"messages": turn}, {"messages": later}, {"messages": turn}]),
        unmarked,
        tmp_path,
    )
    assert [one["messages"] for one in taken] == [turn]
    assert made.left_out == {"holds an answer of the model": 1, "shown before": 1}
    turns = (
        {"response_id": "b", "conversation_id": "c", "prompt_token_ids": [1, 2, 9, 9, 5]},
        {"response_id": "a", "conversation_id": "c", "prompt_token_ids": [1, 2]},
        {"response_id": "d"},
    )
    whole = [{"marked": True, "labels": {}, "token_ids": [3, 4, 5], **one} for one in turns]
    log = _make(tmp_path, whole, "log.jsonl")
    made, taken = _choose(world, log, unmarked, tmp_path)
    assert [one["prompt"] for one in taken] == ["w1 w2"]
    assert made.left_out == {
        "later turn of a conversation": 1,
        "no prompt, or one that a chat template wrote": 1,
    }


def test_a_file_of_outputs_gives_its_prompts(world, unmarked, tmp_path):
    made, taken = _choose(world, unmarked, unmarked, tmp_path)
    assert (made.chosen, made.answered, made.candidates) == (10, 10, 60)
    assert {one["prompt"] for one in taken} <= {_prompt(i) for i in range(60)}
    # of more than the most, the same part is kept in whatever order they come
    few, _ = _choose(world, unmarked, unmarked, tmp_path, most=12)
    lines = Path(unmarked).read_text().splitlines()[::-1]
    turned = _make(tmp_path, map(json.loads, lines), "turned.jsonl")
    again, _ = _choose(world, turned, unmarked, tmp_path, most=12)
    assert few.sha256 == again.sha256
    assert few.candidates == 12


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"count": 0}, UsageError), ({"per_prefix": -1}, UsageError), ({"unmarked": []}, UsageError)],
)
def test_bad_settings_are_refused(world, unmarked, tmp_path, options, kind):
    with pytest.raises(kind):
        _choose(world, unmarked, **{"unmarked": unmarked, "tmp_path": tmp_path, **options})
    assert not (tmp_path / "chosen.jsonl").exists()


def test_marked_text_cannot_choose(world, unmarked, tmp_path):
    """Answers that say they are marked would choose by the coins."""
    records = [json.loads(line) for line in Path(unmarked).read_text().splitlines()]
    marked = _make(tmp_path, [{**one, "marked": True} for one in records], "marked.jsonl")
    with pytest.raises(DataError, match="must be unmarked text"):
        _choose(world, unmarked, marked, tmp_path)
    plain = _make(tmp_path, [{**one, "marked": False} for one in records], "plain.jsonl")
    made, _ = _choose(world, unmarked, plain, tmp_path)
    assert made.answered == 10
    with pytest.raises(DataError, match="label capability"):
        _choose(world, unmarked, plain, tmp_path, balance="capability")


def test_a_log_without_prompts_is_refused(world, unmarked, tmp_path):
    with pytest.raises(DataError, match="prompt_token_ids"):
        _choose(world, world.folder / "served.jsonl", unmarked, tmp_path)
