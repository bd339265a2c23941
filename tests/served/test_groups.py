"""Groups of responses: what is exclusive, against an oracle; what must be refused."""

import json

import numpy as np
import pytest

from provenance.coins.contexts import pack
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.served.build import build_index
from provenance.served.group_build import build_group
from provenance.served.group_index import GroupIndex
from provenance.served.group_list import list_groups
from provenance.served.group_manifest import GROUP_FILE, GroupManifest
from provenance.served.index_manifest import IndexManifest, hash_logs
from provenance.served.log import read_log
from provenance.served.membership import hash_values, parse_values


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _name_accounts(records):
    """Accounts are a label that is no slot; some records have none."""
    for number, record in enumerate(records):
        if number % 5:
            record["labels"]["account"] = f"account {number % 4}"
    return records


def _list_windows(ids, width):
    return {tuple(ids[i : i + width]) for i in range(len(ids) - width + 1)}


def _oracle(records, is_own, keyring, oracle):
    """context -> (reached by the group, seen by it, seen by others), where the group saw it."""
    width, names = keyring.context_width, keyring.schedule.names
    reached = oracle([r for r in records if is_own(r)], keyring)
    found = {}
    met = set()
    for record in records:
        if record["response_id"] in met:
            continue
        met.add(record["response_id"])
        ids = [*(record.get("prompt_token_ids") or []), *record["token_ids"]]
        for context in _list_windows(ids, width):
            row = found.setdefault(context, [0, 0, 0])
            row[1 if is_own(record) else 2] += 1
    rows = {c: row for c, row in found.items() if row[1]}
    for (slot, context, _), count in reached.items():
        if names[slot] == "global":
            rows[context][0] = count
    contexts = np.array(list(rows), dtype=np.uint32)
    slots = keyring.slots_of_names(pack(contexts))
    return {c: tuple(rows[c]) for c, s in zip(rows, slots, strict=True) if names[s] == "global"}


@pytest.mark.parametrize("batch_rows", [3, 4096])
def test_a_group_is_that_of_the_oracle(tmp_path, keyring, make_log, oracle, batch_rows):
    records = _name_accounts(make_log(7, 60, 40))
    log = _write(tmp_path / "log.jsonl", [*records, records[3]])  # a copy counts once
    only = ["account 1", "account 3", "nobody"]
    made = build_group([log], tmp_path / "g", keyring, only, "account", batch_rows=batch_rows)

    def is_own(record):
        return record["labels"].get("account") in only

    expected = _oracle(records, is_own, keyring, oracle)
    contexts = np.array(list(expected), dtype=np.uint32)
    with GroupIndex.open(tmp_path / "g") as group:
        assert group.manifest == made == GroupManifest.load(tmp_path / "g")
        found = group.look_up(pack(contexts))
        unknown = group.look_up(np.array([0, 1 << 40], dtype=np.int64))
    rows = np.array(list(expected.values()))
    assert np.array_equal(np.stack([found.reached, found.seen, found.seen_by_others], 1), rows)
    assert made.reached == (rows[:, 0] > 0).sum() > 0
    assert made.exclusive == found.exclusive.sum() == ((rows[:, 0] > 0) & (rows[:, 2] == 0)).sum()
    assert 0 < made.exclusive < made.reached
    assert not unknown.exclusive.any()
    own = [record for record in records if is_own(record)]
    assert (made.responses, made.others) == (len(own), len(records) - len(own))
    assert (made.values, made.values_met) == (3, 2)
    without = [r for r in records if not is_own(r) and "prompt_token_ids" not in r]
    assert made.others_without_prompt == len(without)
    assert made.without_prompt == sum("prompt_token_ids" not in r for r in own)


@pytest.mark.parametrize("place", ["response", "prompt", "border", "unmarked", "cut"])
def test_whoever_saw_a_context_excludes_it(tmp_path, keyring, place):
    """Seen: anywhere in a response, in a prompt, across the two, unmarked, or at the very end."""
    width = keyring.context_width
    rng = np.random.default_rng(3)
    own = {
        "response_id": "own",
        "marked": True,
        "labels": {"account": "a"},
        "token_ids": rng.integers(0, 290, 60).tolist(),
        "prompt_token_ids": [],
    }
    other = {**own, "response_id": "other", "labels": {}, "token_ids": [291] * 4}
    alone = build_group(
        [_write(tmp_path / "alone.jsonl", [own, other])], tmp_path / "g", keyring, ["a"], "account"
    )
    assert alone.exclusive == alone.reached > 5
    text = own["token_ids"]
    changed = {
        "response": {"token_ids": [292, *text]},
        "prompt": {"prompt_token_ids": text},
        "border": {"prompt_token_ids": text[:30], "token_ids": text[30:]},
        "unmarked": {"token_ids": text, "marked": False},
        "cut": {"prompt_token_ids": text[: width + 20]},
    }[place]
    log = _write(tmp_path / "quoted.jsonl", [own, {**other, **changed}])
    found = build_group([log], tmp_path / "g", keyring, ["a"], "account")
    assert found.reached == alone.reached
    if place == "cut":  # the last context of what was quoted is seen, though nothing follows it
        build_group(
            [
                _write(
                    tmp_path / "less.jsonl",
                    [own, {**other, "prompt_token_ids": text[: width + 19]}],
                )
            ],
            tmp_path / "less",
            keyring,
            ["a"],
            "account",
        )
        with GroupIndex.open(tmp_path / "g") as more, GroupIndex.open(tmp_path / "less") as less:
            names = pack(np.lib.stride_tricks.sliding_window_view(np.uint32(text), width))
            both = (one.look_up(names).seen_by_others[:22] for one in (more, less))
            assert np.array_equal(next(both)[:20], next(both)[:20])
        assert found.exclusive < alone.exclusive
    else:
        assert found.exclusive == 0


def test_a_group_and_an_index_are_of_one_log(tmp_path, keyring, make_log, make_keyring):
    records = _name_accounts(make_log(1, 40))
    parts = [_write(tmp_path / "1.jsonl", records[:25]), _write(tmp_path / "2.jsonl", records[25:])]
    index = build_index(parts, tmp_path / "index", keyring)
    group = build_group(parts[::-1], tmp_path / "g", keyring, ["account 1"], "account")
    assert group.log_sha256 == hash_logs(index.logs)
    group.check_index(IndexManifest.load(tmp_path / "index"), "g")
    less = build_group(parts[:1], tmp_path / "less", keyring, ["account 1"], "account")
    with pytest.raises(ConfigurationMismatchError, match="same, complete files"):
        less.check_index(index, "less")
    other = build_group(parts, tmp_path / "other", make_keyring(), ["account 1"], "account")
    with pytest.raises(ConfigurationMismatchError, match="same keyring"):
        other.check_index(index, "other")


def test_same_log_same_bytes(tmp_path, keyring, make_log):
    log = _write(tmp_path / "log.jsonl", _name_accounts(make_log(2, 50)))
    for name in ("a", "b"):
        build_group([log], tmp_path / name, keyring, ["account 2"], "account", batch_rows=7)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("only", "field", "error"),
    [
        (["x"], "account", DataError),  # nobody
        (["account 1"], "finish", UsageError),  # known after the draw only
        (["account 1"], "token_ids", UsageError),
        (["account 1"], "", UsageError),
    ],
)
def test_what_is_no_group_is_refused_and_nothing_is_left(
    tmp_path, keyring, make_log, only, field, error
):
    log = _write(tmp_path / "log.jsonl", _name_accounts(make_log(2, 50)))
    with pytest.raises(error):
        build_group([log], tmp_path / "g", keyring, only, field)
    assert not (tmp_path / "g" / GROUP_FILE).exists()
    assert not list((tmp_path / "g").glob("*.parquet"))
    everybody = [record["response_id"] for record in make_log(2, 50)]
    with pytest.raises(DataError, match="responses of others"):
        build_group([log], tmp_path / "g", keyring, everybody)


@pytest.mark.parametrize("what", ["table", "manifest"])
def test_a_changed_group_is_refused(tmp_path, keyring, make_log, what):
    log = _write(tmp_path / "log.jsonl", _name_accounts(make_log(2, 50)))
    made = build_group([log], tmp_path / "g", keyring, ["account 2"], "account")
    path = tmp_path / "g" / (made.table if what == "table" else GROUP_FILE)
    content = bytearray(path.read_bytes())
    place = content.index(b'"exclusive": ') + 13 if what == "manifest" else len(content) // 2
    content[place] ^= 1  # a digit stays one
    path.write_bytes(content)
    with pytest.raises(DataError):
        GroupIndex.open(tmp_path / "g")


def test_lists_of_values():
    assert parse_values("\ufeffb\r\na\n\nb".encode(), "list") == ("b", "a")
    assert hash_values(["b", "a"]) == hash_values(["a", "b", "b"]) != hash_values(["a"])
    for bad in (b"", b"\n\n", b"\xff\n", b"x" * 2000):
        with pytest.raises(DataError):
            parse_values(bad, "list")


def test_labels_that_are_no_slot_are_in_the_log(tmp_path, keyring, make_log):
    """A group may be chosen by any label: readers keep those without a key."""
    log = _write(tmp_path / "log.jsonl", _name_accounts(make_log(2, 20)))
    batches = read_log([log], tokenizer=None, vocabulary_size=keyring.public.vocabulary_size)
    labels = [row.as_py() for batch in batches for row in batch["labels"]]
    assert "account" in {name for row in labels for name, _ in row}


def test_listed_groups_are_those_that_are_built(tmp_path, keyring, make_log):
    records = _name_accounts(make_log(4, 80, 40))
    log = _write(tmp_path / "log.jsonl", records)
    found = list_groups([log], keyring, "account", batch_rows=9)
    assert found == list_groups([log], keyring, "account")
    assert {one.value for one in found.groups} == {f"account {i}" for i in range(4)}
    assert found.without_value == sum("account" not in r["labels"] for r in records)
    assert found.responses == sum(one.responses for one in found.groups) + found.without_value
    for one in found.groups:
        made = build_group([log], tmp_path / one.value, keyring, [one.value], "account")
        assert (one.reached, one.exclusive) == (made.reached, made.exclusive)
        assert (one.responses, one.marked_responses) == (made.responses, made.marked_responses)
        assert one.tokens == made.tokens
    assert sum(one.exclusive for one in found.groups) > 0
    assert "account 2" in str(found)
    assert found.to_json()["groups"][0]["exclusive"] == max(one.exclusive for one in found.groups)
    with pytest.raises(DataError, match="none has one"):
        list_groups([log], keyring, "acount")
