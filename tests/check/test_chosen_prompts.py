"""Choosing prompts: what is read, what is kept, and that innocents who are asked stay innocent."""

import json
from pathlib import Path

import numpy as np
import pytest

import provenance as pv
from provenance.check.weigh import PairCounts, weigh
from provenance.errors import DataError, UsageError
from provenance.suspect.collect.prompts import Prompts
from provenance.suspect.expected import Expected
from provenance.suspect.positions import find_positions
from tests.world.innocents import gate
from tests.world.innocents.coins import marks_of
from tests.world.innocents.counting import count_served, list_draws
from tests.world.innocents.language import draw_language
from tests.world.innocents.traffic import Traffic, serve
from tests.world.synthetic import LABELS, Teacher, decode, make_world, write_outputs

PROMPTS, CHOSEN, LONGEST, SHARE, KEYS = 1500, 150, 8, 0.8, 150
LANGUAGE = draw_language(1, 1200, 1, candidates=3)


def _answers(beginnings, repeats, key, seed):
    """Answers to prompts that decide how an answer begins: how much a prompt decides at most."""
    rows = np.repeat(beginnings, repeats, axis=0)
    return serve(LANGUAGE, Traffic(len(rows), LONGEST), key, SHARE, seed, rows)


def _value(responses):
    """Mean expected evidence of each prompt, as the product computes it from unmarked answers."""
    outputs = np.split(responses.ids.astype(np.uint32), np.cumsum(responses.lengths)[:-1])
    positions = find_positions(outputs, [], [], LANGUAGE.width, {})
    sums, tokens = Expected(positions, LANGUAGE.ids, LANGUAGE.width).value_outputs()
    return sums.reshape(PROMPTS, -1).sum(axis=1) / tokens.reshape(PROMPTS, -1).sum(axis=1)


def _mean_score(responses, key):
    """The fault: how high the coins of the tokens are that a marked answer drew."""
    draws = list_draws(responses, LANGUAGE)
    kept = marks_of(key, draws.contexts, SHARE)
    scores = np.where(kept, gate.score(key, draws.contexts, draws.tokens), 0)
    marked = np.bincount(draws.rows, kept, minlength=PROMPTS)
    return np.bincount(draws.rows, scores, minlength=PROMPTS) / np.maximum(marked, 1)


@pytest.fixture(scope="module")
def z_of_innocents():
    """z of an innocent under fresh keys, by how the prompts were chosen that it is asked.

    The log is drawn with the coins, to all prompts; counted, weighed and scored like a check.
    """
    rng = np.random.default_rng(0)
    beginnings = rng.integers(0, LANGUAGE.words, (PROMPTS, 1))
    chosen = np.argsort(-_value(_answers(beginnings, 4, None, 999)))[:CHOSEN]
    asked = _answers(beginnings, 4, None, 12345)
    draws = list_draws(asked, LANGUAGE)
    found = {"chosen": [], "random": [], "by coins": []}
    for number in range(KEYS):
        key = int(np.random.default_rng([number, 5]).integers(2**62))
        log = _answers(beginnings, 1, key, number)
        n = count_served(log, LANGUAGE)
        ways = {
            "chosen": chosen,
            "random": rng.permutation(PROMPTS)[:CHOSEN],
            "by coins": np.argsort(-_mean_score(log, key))[:CHOSEN],
        }
        for way, rows in ways.items():
            kept = np.isin(draws.rows // 4, rows)
            codes = draws.contexts[kept] * LANGUAGE.ids + draws.tokens[kept]
            pairs, counts = np.unique(codes, return_counts=True)
            contexts, tokens = np.divmod(pairs, LANGUAGE.ids)
            used = marks_of(key, contexts, SHARE) & (n[contexts] > 0)
            masses, n_used = counts[used].astype(np.float64), n[contexts[used]]
            weights = weigh(PairCounts(masses, counts[used], n_used, np.zeros(used.sum())))
            found[way].append(gate.z_of(weights, gate.score(key, contexts[used], tokens[used])))
    return {way: np.array(z) for way, z in found.items()}


def test_innocents_who_are_asked_chosen_prompts_stay_innocent(z_of_innocents):
    for way in ("chosen", "random"):
        z = z_of_innocents[way]
        assert abs(z.mean()) < 4 * z.std() / np.sqrt(KEYS), way
        assert 0.75 < z.std() < 1.25, way


def test_prompts_that_are_chosen_by_the_coins_of_marked_answers_accuse_innocents(z_of_innocents):
    z = z_of_innocents["by coins"]
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


def test_a_log_without_prompts_is_refused(world, unmarked, tmp_path):
    with pytest.raises(DataError, match="prompt_token_ids"):
        _choose(world, world.folder / "served.jsonl", unmarked, tmp_path)
