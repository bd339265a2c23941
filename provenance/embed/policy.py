"""Which labels a request gets: the one place that maps a caller to labels and to whether to mark.

A table has one row a caller (`provenance.embed.callers` says how it looks). Whoever is not in it
gets the default, or is refused. Labels of everybody are constants, and a week comes from the clock.

A name that is a slot of the keyring chooses a key. Any other (account, replica, payment) is a
*group label*: it is logged, so that groups can be formed afterwards. `account` and `organisation`
always are, if they are known. The API key and its hash are logged nowhere.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final, cast

from provenance.embed.callers import (
    CALLER_COLUMNS,
    KEY_COLUMN,
    MARK_COLUMN,
    MARKS,
    CallerTable,
)
from provenance.embed.rules import MarkWish
from provenance.errors import DataError, ProvenanceError, UsageError
from provenance.served.records import Labels
from provenance.storage.files import as_path, read_stamp

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS: Final = 1.0


@dataclass(frozen=True)
class Decision:
    """What a request gets.

    Attributes: labels of slots, which choose the keys; labels that are no slot, for groups; whether
    to mark; what decided: the columns of the row that matched, or `default`.
    """

    labels: Labels
    groups: Labels
    mark: MarkWish
    reason: str


def hash_api_key(api_key: str) -> str:
    """What stands in the column `api_key_sha256` for a key.

    >>> hash_api_key("sk-example")[:16]
    'f2d4b279b82ad928'
    """
    return hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest()


class LabelPolicy:
    """Decides by the caller which labels a request gets. Made by `load`; safe in threads.

    `decide` never reads the file. Whoever serves asks `has_changed` now and then and calls `reload`
    in a thread.
    """

    def __init__(
        self,
        table: CallerTable | None,
        slots: Collection[str],
        *,
        default: Labels | None,
        constants: Labels,
        week: str | None,
        mark: MarkWish,
    ) -> None:
        if mark not in MARKS:
            raise UsageError(f"mark must be one of {', '.join(MARKS)}; got {mark!a}.")
        self._slots, self._mark = frozenset(slots), mark
        self._default = None if default is None else dict(default)
        self._constants, self._week = dict(constants), week
        for name in self._name_others():
            if not name or "=" in name or name in (KEY_COLUMN, MARK_COLUMN):
                raise UsageError(f"a label must not be called {name!a}. Name it otherwise.")
        if week in constants:
            raise UsageError(f"label {week!a} must be a constant or the clock's; it is both.")
        self._lock, self._next_look = Lock(), 0.0
        self._take(table)

    @classmethod
    def load(
        cls,
        path: Path | str | None,
        slots: Collection[str],
        *,
        default: Labels | None = None,
        constants: Labels | None = None,
        week: str | None = None,
        mark: MarkWish = "always",
    ) -> LabelPolicy:
        """The policy of a table of callers.

        Parameters
        ----------
        path : the table (.parquet, .csv, .sqlite, .db); None: there is none, and without a default
            everybody gets the constants only
        slots : names of the keyring's slots: `keyring.schedule.attributes`
        default : labels of callers that are not in the table; None: they are refused
        constants : labels of everybody; what a row or the default says of the same name wins
        week : name of a label that the clock gives, the ISO week in UTC (`2026-W49`). Its value
            must have been distributed to the workers before the week begins
        mark : for callers whose row does not say

        Raises StorageError, DataError (with the row) or UsageError. Cost of a
        million rows: 2 seconds and 250 MB (SQLite 8 seconds), once more at a reload.
        """
        table = None if path is None else CallerTable.read(as_path(path, "the table of callers"))
        known = {} if path is None and default is None else default
        more = {} if constants is None else constants
        return cls(table, slots, default=known, constants=more, week=week, mark=mark)

    def decide(self, caller: Mapping[str, str]) -> Decision | None:
        """What the caller's request gets; None if the caller is not known and must be refused.

        Parameters: what is known of the caller, by the names of `callers.CALLER_COLUMNS`. Cost: a
        look-up in at most 7 dictionaries, one for each set of columns that rows fill in.
        """
        found = None if self._table is None else self._table.find(caller)
        if found is None and self._default is None:
            return None
        row, reason = found or (self._default or {}, "default")
        known = {name: caller[name] for name in CALLER_COLUMNS if caller.get(name)}
        labels = {**self._constants, **self._tell_week(), **known, **row}
        labels.pop(KEY_COLUMN, None)
        mark = cast(MarkWish, labels.pop(MARK_COLUMN, self._mark))
        chosen = {name: value for name, value in labels.items() if name in self._slots}
        groups = {name: value for name, value in labels.items() if name not in self._slots}
        return Decision(chosen, groups, mark, reason)

    def has_changed(self) -> bool:
        """Whether the file is another than was read last; looks at most once a second."""
        now = time.monotonic()
        if self._table is None or now < self._next_look:
            return False
        self._next_look = now + _SECONDS_BETWEEN_LOOKS
        return read_stamp(self._table.path) != self._stamp

    def reload(self) -> bool:
        """Read the file again; whether what it says now is in use.

        A file that is damaged or gone leaves the table of before in use: one WARNING says so, and
        the file is not tried again before it changes.
        """
        if self._table is None or not self._lock.acquire(blocking=False):
            return False
        try:
            self._stamp = read_stamp(self._table.path)
            self._take(CallerTable.read(self._table.path))
        except ProvenanceError as error:
            _log.warning("label policy: the callers of before stay in use: %s", error)
            return False
        finally:
            self._lock.release()
        return True

    def _take(self, table: CallerTable | None) -> None:
        columns = frozenset[str]() if table is None else table.labels
        if table is not None and self._week in columns:
            raise DataError(f"{table.path}: {self._week} must not be a column, the clock gives it.")
        self._table, self._stamp = table, None if table is None else table.stamp
        names = columns | self._name_others()
        _log.info(
            "label policy: %d callers; slots: %s; for groups: %s",
            0 if table is None else len(table),
            ", ".join(sorted(names & self._slots)) or "none",
            ", ".join(sorted(names - self._slots)) or "none",
        )
        if self._slots - names:
            silent = ", ".join(sorted(self._slots - names))
            _log.warning("label policy: nothing names a value of %s: not marked there", silent)

    def _name_others(self) -> frozenset[str]:
        """Names of the labels that come from elsewhere than the table."""
        clock = () if self._week is None else (self._week,)
        return frozenset([*self._constants, *(self._default or ()), *clock])

    def _tell_week(self) -> dict[str, str]:
        return {} if self._week is None else {self._week: f"{datetime.now(UTC):%G-W%V}"}
