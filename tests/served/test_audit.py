"""The audit of a served log: who really marks, and what the log lacks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from provenance.embed.rules import find_marked
from provenance.embed.watermark import Watermark
from provenance.errors import DataError, UsageError
from provenance.keys.keyring import create_keyring
from provenance.keys.schedule import Schedule
from provenance.marks.own import Gumbel
from provenance.served.audit import audit_log
from provenance.served.audit_result import AuditedGroup, judge_groups
from provenance.served.build import build_index
from provenance.served.records import ServedResponse
from provenance.served.writer import LogWriter
from tests.world.calibration import binomial_limit
from tests.world.synthetic import (
    GUMBEL,
    LABELS,
    SHARES,
    WORDS,
    Teacher,
    save_tokenizer,
    seeded_secrets,
    serve,
)


@pytest.fixture(scope="module")
def teacher():
    return Teacher.draw(0)


@pytest.fixture(scope="module")
def keyrings(tmp_path_factory):
    """The operator's, and another one with the same schedule."""
    folder = tmp_path_factory.mktemp("audit")
    save_tokenizer(folder / "tokenizer.json")
    with seeded_secrets(3):
        return [
            create_keyring(
                folder / name,
                folder / "tokenizer.json",
                WORDS,
                GUMBEL,
                Schedule.from_shares(SHARES, LABELS),
                reads_prompt=False,  # nothing here has a prompt, and the seeds keep their keys
            )
            for name in ("own", "other")
        ]


@pytest.fixture(scope="module")
def served(teacher, keyrings):
    """Responses first .. last of a replica that marks, and their labels."""
    watermark = Watermark(keyrings[0], np.random.default_rng(1))
    ids, labels = serve(teacher, watermark, np.random.default_rng(2), 400, 60)
    return lambda first, last: (ids[first:last], labels[first:last])


def _plain(teacher, seed, count, tokens=60):
    """Responses of a replica without the processor."""
    rng = np.random.default_rng(seed)
    labels = [{n: str(rng.choice(v)) for n, v in LABELS.items()} for _ in range(count)]
    return teacher.sample(rng, count, tokens), labels


def _write(path, keyring, *parts):
    """A log of parts, each responses with labels, replica, hours; bits as `keyring` demands."""
    with LogWriter(path) as log:
        for number, ((responses, labels), replica, hours) in enumerate(parts):
            for i, (ids, own) in enumerate(zip(responses, labels, strict=True)):
                bits = find_marked(keyring, own, ids, [])
                named = {} if replica is None else {"replica": replica}
                log.append(
                    ServedResponse(
                        f"{number}-{i}",
                        marked=bool(bits.any()),
                        labels={**own, **named},
                        token_ids=ids,
                        time=f"2026-04-20T{hours[i % len(hours)]:02d}:30:00+00:00",
                        drawn=bits,
                    )
                )
    return path


def _states(found, kind="replica"):
    return {one.name: one.state for one in found.groups if one.kind == kind}


def test_a_fleet_that_marks_passes(tmp_path, teacher, keyrings, served):
    own, _ = keyrings
    parts = [(served(40 * i, 40 * i + 40), f"r{i}", (8, 9)) for i in range(2)]
    found = audit_log([_write(tmp_path / "a.jsonl", own, *parts)], own)
    assert found.conclusion == "passed"
    assert found.exit_code == 0
    assert set(_states(found).values()) == {"marking"}
    assert set(_states(found, "hour")) == {"2026-04-20T08", "2026-04-20T09"}
    assert _states(found, "key")["global"] == "marking"
    assert set(_states(found, "key")) == {
        "global",
        *(f"{name}={value}" for name, values in LABELS.items() for value in values),
    }
    for one in found.groups:
        assert one.coins <= one.drawn
        assert one.mean > found.null_law.mean
    replicas = [one for one in found.groups if one.kind == "replica"]
    assert sum(one.records for one in replicas) == 80
    assert sum(one.tokens for one in replicas) == 80 * 60
    assert str(found).startswith("LOG AUDIT passed: every replica marks.")
    document = json.loads(json.dumps(found.to_json()))
    assert document["conclusion"] == "passed"
    assert len(document["groups"]) == len(found.groups)


def test_a_coin_counts_once_in_a_group_whatever_the_batches(tmp_path, teacher, keyrings, served):
    """The sums are those of a plain loop over tokens."""
    own, _ = keyrings
    responses, labels = served(0, 30)
    twice = np.concatenate([responses, responses]), labels + labels
    log = _write(tmp_path / "a.jsonl", own, (twice, None, (8,)))
    found = audit_log([log], own, batch_rows=7)
    assert found.groups == audit_log([log], own).groups
    law = found.null_law
    expected, drawn = {}, 0
    for ids, labelled in zip(*twice, strict=True):
        for i in np.flatnonzero(find_marked(own, labelled, ids, [])):
            slot = own.schedule.slots[int(own.slots_of(ids[np.newaxis, i - 2 : i])[0])].name
            key = own.key(slot, labelled.get(slot, ""))
            word = key.words(ids[np.newaxis, i - 2 : i], ids[i : i + 1])
            expected[slot, labelled.get(slot, ""), *ids[i - 2 : i + 1].tolist()] = word
            drawn += 1
    edges = np.cumsum(law.masses)
    scores = [int(np.searchsorted(edges, int(word[0]), side="right")) for word in expected.values()]
    (one,) = [one for one in found.groups if one.kind == "replica"]
    assert (one.name, one.drawn, one.coins) == ("all", drawn, len(expected))
    assert one.mean == pytest.approx(np.mean(scores))
    keys = [one for one in found.groups if one.kind == "key"]
    assert sum(one.coins for one in keys) == len(expected)


def test_a_replica_without_the_processor_is_named(tmp_path, teacher, keyrings, served):
    own, _ = keyrings
    log = _write(
        tmp_path / "a.jsonl",
        own,
        (served(0, 40), "good-1", (8,)),
        (served(40, 80), "good-2", (8,)),
        (_plain(teacher, 3, 200), "bare", (8,)),
    )
    found = audit_log([log], own)
    assert _states(found) == {"bare": "not marking", "good-1": "marking", "good-2": "marking"}
    assert found.exit_code == 1
    assert "replica bare" in str(found).splitlines()[0]
    assert found.counts["misplaced"] == 0


def test_a_replica_with_another_keyring_is_named(tmp_path, teacher, keyrings, served):
    """Its own rules say what it drew: most of that stands where no key of ours decides."""
    own, other = keyrings
    good = _write(tmp_path / "a.jsonl", own, (served(0, 60), "good", (8,)))
    watermark = Watermark(other, np.random.default_rng(3))
    strange = serve(teacher, watermark, np.random.default_rng(4), 250, 60)
    bad = _write(tmp_path / "b.jsonl", other, (strange, "strange", (9,)))
    lines = bad.read_text().replace('"0-', '"s-')
    bad.write_text(lines)
    found = audit_log([good, bad], own)
    assert _states(found) == {"good": "marking", "strange": "not marking"}
    misplaced = {one.name: one.misplaced for one in found.groups if one.kind == "replica"}
    assert misplaced["good"] == 0
    assert misplaced["strange"] == found.counts["misplaced"] > 1000
    assert found.first_misplaced.startswith("s-")
    assert found.exit_code == 1
    with pytest.raises(DataError, match="only where a key"):
        build_index([good, bad], tmp_path / "i", own)


def test_hours_without_the_mark_are_named_though_the_replica_marks(
    tmp_path, teacher, keyrings, served
):
    own, _ = keyrings
    log = _write(
        tmp_path / "a.jsonl",
        own,
        (served(0, 80), "one", (8, 9)),
        (_plain(teacher, 3, 160), "one", (10,)),
    )
    found = audit_log([log], own)
    assert _states(found) == {"one": "marking"}
    assert _states(found, "hour") == {
        "2026-04-20T08": "marking",
        "2026-04-20T09": "marking",
        "2026-04-20T10": "not marking",
    }
    assert found.conclusion == "failed"


def test_a_key_that_did_not_decide_is_named(tmp_path, teacher, keyrings, served):
    """A replica that draws week W1 where the request, and the record, say W2."""
    own, _ = keyrings
    responses, labels = served(0, 400)
    week = [{**one, "week": {"W1": "W2", "W2": "W1"}[one["week"]]} for one in labels]
    found = audit_log([_write(tmp_path / "a.jsonl", own, ((responses, week), None, (8,)))], own)
    states = _states(found, "key")
    swapped = {states["week=W1"], states["week=W2"]}
    assert "not marking" in swapped
    assert "marking" not in swapped
    assert states["global"] == "marking"
    assert found.exit_code == 1


def test_nothing_is_said_of_few_coins_or_of_a_fleet_with_nothing_to_compare(
    tmp_path, teacher, keyrings, served
):
    own, _ = keyrings
    good = (served(0, 40), "good", (8,))
    few = _write(tmp_path / "a.jsonl", own, good, (_plain(teacher, 3, 2), "few", (8,)))
    found = audit_log([few], own)
    assert _states(found) == {"good": "marking", "few": "too little to say"}
    assert found.exit_code == 3
    assert "few: too little to say" in str(found)
    bare = _write(tmp_path / "b.jsonl", own, (_plain(teacher, 4, 300), "bare", (8,)))
    found = audit_log([bare], own)
    assert _states(found) == {"bare": "too little to say"}
    assert found.exit_code == 3


@pytest.mark.parametrize(
    ("coins", "shift", "state"),
    [
        (60_000, 0.0, "not marking"),
        (1_000, 0.0, "too little to say"),
        (60_000, 0.1, "marking"),
        (20_000, 0.01, "too little to say"),
    ],
)
def test_a_fleet_of_one_that_does_not_mark_fails_when_there_are_coins_enough(coins, shift, state):
    law = Gumbel().null_law
    total = round(coins * (law.mean + shift * law.variance**0.5))
    alone = AuditedGroup("replica", "all", 9, 9, coins, 0, coins, coins, total)
    (found,) = judge_groups([alone], law, 1e-4)
    assert found.state == state, found


def test_without_the_processor_the_p_is_calibrated(tmp_path, teacher, keyrings, served):
    """200 logs of a server without it, with repeats across responses: mean of z, rejections."""
    own, _ = keyrings
    z, rejected = [], 0
    for seed in range(200):
        responses, labels = _plain(teacher, 1000 + seed, 12)
        log = tmp_path / "a.jsonl"
        _write(
            log,
            own,
            ((np.concatenate([responses, responses[:3]]), labels + labels[:3]), None, (8,)),
        )
        found = audit_log([log], own)
        (one,) = [one for one in found.groups if one.kind == "replica"]
        law = found.null_law
        z.append((one.mean - law.mean) * np.sqrt(one.coins / law.variance))
        rejected += one.log10_p <= -2
        log.unlink()
    assert abs(np.mean(z)) < 4 / np.sqrt(len(z))
    assert 0.75 < np.std(z) < 1.25
    assert rejected <= binomial_limit(200, 1e-2)


def test_what_a_log_lacks_is_counted(tmp_path, teacher, keyrings, served):
    own, _ = keyrings
    responses, _ = _plain(teacher, 3, 7)
    labels = [
        {"week": "w1"},
        {"week": "w1", "capability": "code"},
        {"Week": "W1"},
        {"wek": "W1", "account": "7"},
        {"weeks": "W1", "week": "W1"},
        {"replica": "a", "weather": "fine"},
        {},
    ]
    path = tmp_path / "a.jsonl"
    with LogWriter(path) as log:
        for i, (ids, own_labels) in enumerate(zip(responses, labels, strict=True)):
            log.write(f"{i}", labels=own_labels, marked=i != 6, token_ids=ids, conversation_id="c")
        log.write("text", labels={}, marked=True, text="w1 w2 w3", time="yesterday", finish="end")
        log.write("0", labels=labels[0], marked=True, token_ids=responses[0], conversation_id="c")
    found = audit_log([path], own, own.public.tokenizer_copy)
    assert found.unkeyed == {"week=w1": 2}
    assert found.misspelt == {"Week": 1, "wek": 1}
    counts = found.counts
    assert (counts["records"], counts["marked"], counts["duplicates"]) == (8, 7, 1)
    assert (counts["retokenised"], counts["without_drawn"]) == (1, 7)
    assert (counts["without_conversation"], counts["without_prompt"]) == (1, 7)
    assert (counts["without_finish"], counts["without_time"]) == (6, 6)
    assert _states(found) == {"(no label)": "no drawn bits", "a": "no drawn bits"}
    assert _states(found, "hour") == {"unknown": "no drawn bits"}
    assert found.exit_code == 3
    assert "Label week=w1 has no key: 2 marked responses." in str(found)
    assert "Label wek is no slot" in str(found)


def test_what_cannot_be_audited_is_refused(tmp_path, teacher, keyrings, served):
    own, _ = keyrings
    log = _write(tmp_path / "a.jsonl", own, (_plain(teacher, 3, 2), None, (8,)))
    with pytest.raises(UsageError, match="alpha"):
        audit_log([log], own, alpha=0.5)
    with pytest.raises(UsageError, match="memory limit"):
        audit_log([log], own, memory_limit="much")
