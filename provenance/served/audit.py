"""Is every replica really marking? An audit of a served log under the operator's own keyring.

    log -> drawn tokens -> coins of the keys that should have decided them -> sums per group -> p

A server that marks lets the coins choose its tokens, so the scores of the coins at drawn tokens lie
far above their null law. One without the processor, or with another keyring, writes the same
records with scores at the law. Groups are the replicas (label `replica`), the keys, and the hours.

H0 of a group: its tokens do not depend on this keyring's coins. The p is exact under H0, since each
coin of a key counts once in a group, and the tokens that count are those whose `drawn` bit is set.
**Where nothing marks, these bits must not depend on the coins either.** They do not if they follow
from the rules (selector, labels, contexts) or from the number of candidates; bits that somebody
chose by the coins of the tokens would void the test. Knows keys and coins; no suspect, no index.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.coins.contexts import hash_columns, name_contexts
from provenance.errors import UsageError
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import KeyName
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks import Mark, as_mark
from provenance.marks.foreign.mark import is_foreign
from provenance.served.audit_result import AuditedGroup, LogAudit, judge_groups
from provenance.served.grouping import COINS, group_coins
from provenance.served.log import LogStatistics, read_log
from provenance.served.records import unpack_drawn
from provenance.served.windows import label_numbers

_WANTED: Final = {
    "drawn": "drawn",
    "conversation": "conversation_id",
    "prompt": "prompt_token_ids",
    "finish": "finish",
    "time": "time",
}
"""What a marked record should say, and the column of it."""
_FIELDS: Final = ("records", "marked", "tokens", "misplaced")
_NO_COINS: Final = {"drawn": 0, "coins": 0, "total": 0, "squares": 0}
_HOUR: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d"

Integers = NDArray[np.int64]


def audit_log(
    logs: Sequence[Path | str],
    keyring: UnlockedKeyring | Mark,
    tokenizer: Path | str | None = None,
    *,
    alpha: float = 1e-4,
    memory_limit: str = "512MiB",
    batch_rows: int = 4096,
) -> LogAudit:
    """Test for every replica, key and hour of a served log whether it was really marked.

    Parameters
    ----------
    logs : files or folders of the log; only records with `drawn` bits can be tested
    keyring : unlocked; the one that the log claims to be served under
    tokenizer : tokenizer.json of the keyring; needed if some records hold text only
    alpha : of calling any group marking that is not, over all groups, in (0, .05]
    memory_limit : of the database; beyond it coins are spilt to the folder of temporary files
    batch_rows : responses per batch; changes nothing in the result

    Returns
    -------
    LogAudit. See the module for H0 and what it assumes.

    Raises
    ------
    UsageError for the arguments, or a mark whose pairs share coins; what `read_log` raises.

    Notes
    -----
    Cost: .5 CPU-seconds a million tokens (8 M tokens in Parquet, a fifth of them drawn, 16
    replicas, 168 hours: 4.3 CPU-seconds and 750 MiB); memory as the limit says.
    """
    mark = as_mark(keyring)
    if is_foreign(mark.public):
        raise UsageError(
            "an audit must have a keyring of our own, whose logs say which tokens a key drew; "
            f"{mark.public.scheme.name} is somebody else's mark. Pool the texts of each replica "
            "instead: provenance detect --pool TEXTS."
        )
    if not 0 < alpha <= 0.05:
        raise UsageError(f"alpha must be in (0, 0.05]; got {alpha}. Use 1e-4.")
    reader = read_log(
        [Path(path) for path in logs],
        tokenizer=None if tokenizer is None else load_tokenizer(tokenizer, mark.public),
        vocabulary_size=mark.public.vocabulary_size,
        batch_rows=batch_rows,
    )
    found = _Gathering(mark)
    with tempfile.TemporaryDirectory(prefix="provenance-audit-") as scratch:
        coins = (found.read(batch) for batch in reader)
        with group_coins(coins, Path(scratch) / "spill", memory_limit) as result:
            sums = [row for rows in result for row in rows.to_pylist()]
    return LogAudit(
        judge_groups(found.add_up(sums), mark.null_law, alpha),
        mark.null_law,
        alpha,
        found.count(reader.statistics),
        found.first_misplaced,
        dict(found.unkeyed.most_common()),
        dict(found.misspelt.most_common()),
    )


class _Gathering:
    """What is counted while the log is read: groups by their number, labels and draws in doubt."""

    def __init__(self, mark: Mark) -> None:
        self._mark, self._schedule = mark, mark.schedule
        self._groups: dict[tuple[str, str], int] = {}
        self._sums: Counter[tuple[str, int]] = Counter()
        self._counts: Counter[str] = Counter()
        self.unkeyed: Counter[str] = Counter()
        self.misspelt: Counter[str] = Counter()
        self.first_misplaced: str | None = None
        self._keys: list[KeyName] = []
        slots = self._schedule.slots
        # group of each slot and value; -1 for control, and (last column) for no value with a key
        widest = max(len(slot.values) for slot in slots)
        self._of_value = np.full((len(slots), widest + 1), -1, dtype=np.int64)
        for place, slot in enumerate(slots[1:], start=1):
            for number, value in enumerate(slot.values):
                self._keys.append(KeyName(slot.name, value))
                self._of_value[place, number] = self._number("key", str(self._keys[-1]))

    def read(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Count the records of a batch; a row (COINS) per drawn token and group that it is in."""
        labels = batch.column("labels")
        keys = self._of_value[
            np.arange(len(self._schedule.slots))[:, np.newaxis],
            label_numbers(labels, self._schedule),
        ]
        named = pc.map_lookup(labels, "replica", "first")
        of_row = [
            self._numbers("replica", pc.fill_null(named, "")),
            self._numbers("hour", _hours(batch.column("time"))),
        ]
        marked = batch.column("marked").to_numpy(zero_copy_only=False)
        tokens = batch.column("token_ids").value_lengths().to_numpy(zero_copy_only=False)
        for numbers in (*of_row, *keys[1:]):
            member = numbers >= 0
            self._add("records", numbers[member])
            self._add("marked", numbers[member & marked])
            self._add("tokens", numbers[member], tokens[member])
        self._count_records(batch.filter(batch.column("marked")))
        return self._read_draws(batch, keys, of_row)

    def _read_draws(
        self, batch: pa.RecordBatch, keys: Integers, of_row: Sequence[Integers]
    ) -> pa.RecordBatch:
        """The coins at the drawn tokens of a batch.

        Parameters: the batch; int64 [slots, rows], the key that each slot has for each record;
        int64 [rows] each, the replica and the hour.
        """
        width = self._mark.context_width
        stated = batch.column("drawn").is_valid()
        batch, records = batch.filter(stated), np.flatnonzero(stated)
        lists = batch.column("token_ids")
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        ids = lists.flatten().to_numpy(zero_copy_only=False)
        places = np.flatnonzero(unpack_drawn(batch.column("drawn"), lengths))
        rows = np.repeat(np.arange(lengths.shape[0]), lengths)[places]
        late = places - (np.cumsum(lengths) - lengths)[rows] >= width
        before = places[late, np.newaxis] + np.arange(-width, 0)
        contexts, tokens = ids[before], ids[places[late]]
        key = np.full(places.shape, -1, dtype=np.int64)
        slots = self._mark.slots_of_names(name_contexts(contexts))
        key[late] = keys[slots, records[rows[late]]]
        self._count_misplaced(batch, rows[key < 0], [of[records] for of in of_row])
        right = key[late] >= 0
        contexts, tokens, rows, key = contexts[right], tokens[right], rows[key >= 0], key[key >= 0]
        coins = hash_columns(*contexts.T, tokens, key.astype(np.uint32)).view(np.int64)
        groups = [key, *(of[records[rows]] for of in of_row)]
        return pa.RecordBatch.from_arrays(
            [
                pa.array(np.concatenate(groups).astype(np.uint32)),
                pa.array(np.tile(coins, len(groups))),
                pa.array(np.tile(self._score(key, contexts, tokens), len(groups))),
            ],
            schema=COINS,
        )

    def _score(
        self, key: Integers, contexts: NDArray[np.uint32], tokens: NDArray[np.uint32]
    ) -> NDArray[np.int32]:
        """Score of the coin of each pair under its own key: int32 [n]."""
        scores = np.empty(key.shape, dtype=np.int32)
        order = np.argsort(key, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if part.size:
                opened = self._mark.open(*self._keys[int(key[part[0]])])
                scores[part] = opened.score(contexts[part], tokens[part])
        return scores

    def _count_misplaced(
        self, batch: pa.RecordBatch, rows: Integers, of_row: Sequence[Integers]
    ) -> None:
        """Count the tokens, by their rows, that no key of the record can have decided."""
        if not rows.size:
            return
        self._counts["misplaced"] += rows.size
        self._counts["misplaced_records"] += np.unique(rows).size
        self.first_misplaced = (
            self.first_misplaced or batch.column("response_id")[int(rows.min())].as_py()
        )
        for of in of_row:
            self._add("misplaced", of[rows])

    def _count_records(self, marked: pa.RecordBatch) -> None:
        """What marked records do not say, and labels of theirs that have no key."""
        for name, column in _WANTED.items():
            self._counts[name] += marked.column(column).null_count
        labels, attributes = marked.column("labels"), self._schedule.attributes
        numbers = label_numbers(labels, self._schedule)
        values = {
            name: pc.map_lookup(labels, name, "first").cast(pa.string()) for name in attributes
        }
        for place, name in enumerate(attributes, start=2):
            lost = values[name].filter(pa.array(numbers[place] < 0)).drop_null()
            for entry in lost.value_counts().to_pylist():
                self.unkeyed[str(KeyName(name, entry["values"]))] += entry["counts"]
        for name in pc.unique(labels.keys).to_pylist():
            slot = self._schedule.find_alike(name)
            if slot is not None:
                found = pc.map_lookup(labels, name, "first")
                alone = pc.and_(found.is_valid(), values[slot].is_null()).true_count
                if alone:
                    self.misspelt[name] += alone

    def _number(self, kind: str, name: str) -> int:
        return self._groups.setdefault((kind, name), len(self._groups))

    def _numbers(self, kind: str, names: pa.Array) -> Integers:
        """The group of each record: strings [rows] -> int64 [rows]."""
        coded = names.dictionary_encode()
        known = [self._number(kind, name) for name in coded.dictionary.to_pylist()]
        indices: Integers = coded.indices.to_numpy(zero_copy_only=False)
        return np.array(known, dtype=np.int64)[indices]

    def _add(self, field: str, groups: Integers, amounts: Integers | None = None) -> None:
        sums = np.bincount(groups, weights=amounts)
        for group in np.flatnonzero(sums).tolist():
            self._sums[field, group] += int(sums[group])

    def add_up(self, sums: list[dict[str, int]]) -> list[AuditedGroup]:
        """Every group that has a record, with the rows that `group_coins` gave."""
        of_coins = {row.pop("group"): row for row in sums}
        alone = sum(kind == "replica" for kind, _ in self._groups) == 1
        found = []
        for (kind, name), number in self._groups.items():
            fields: dict[str, Any] = {field: self._sums[field, number] for field in _FIELDS}
            if fields["records"]:
                fields["name"] = name or ("all" if alone else "(no label)")
                fields |= of_coins.get(number, _NO_COINS)
                found.append(AuditedGroup(kind, **fields))
        # the keys stay in the order of the schedule
        return sorted(found, key=lambda one: (one.kind, one.name if one.kind != "key" else ""))

    def count(self, found: LogStatistics) -> dict[str, int]:
        """Counts of the whole log, when it has been read."""
        names = ("duplicates", "conflicts", "retokenised")
        return {
            "records": found.responses,
            "marked": found.marked,
            **{name: getattr(found, name) for name in names},
            **{f"without_{name}": self._counts[name] for name in _WANTED},
            **{name: self._counts[name] for name in ("misplaced_records", "misplaced")},
        }


def _hours(times: pa.Array) -> pa.Array:
    """Date and hour of each time as they are written, else `unknown`: strings [rows]."""
    known = pc.fill_null(pc.match_substring_regex(times, _HOUR), False)
    hours = pc.replace_substring(pc.utf8_slice_codeunits(times, 0, 13), " ", "T")
    return pc.if_else(known, hours, "unknown")
