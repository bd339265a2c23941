"""A sequential check on disk: continued by one call per batch, each batch wholly in or not at all.

::

    STATE_DIR/
        state.json       canonical JSON; written last, so it is the commit point of every batch
        0001.parquet     what batch 1 revealed: sheet, context, token, weight, one score per key
        0002.parquet     ...

Where several pairs share a coin (other people's schemes), a column `unit` numbers it, and `weight`
is that of the pair: the coin's weight is their sum, cut to `maximal_weight`.

state.json holds what the check is bound to, a checksum of itself and, per batch, the hashes of its
outputs and of its Parquet file. E-processes are not stored: loading replays every batch through the
rules of `provenance.stats.eprocess` and compares slots and scores with those of the keyring, so a
file that breaks a rule is refused. What a crash left behind is overwritten, since state.json does
not name it.

What cannot be noticed: an older copy of the whole folder, or weights that were changed together
with the hash. The SHA-256 of state.json covers both; write it down after every batch. Whoever has
the outputs repeats the batches into an empty folder and gets the same bytes. The files are as
confidential as the index, mode 0600.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.check.examine import CheckSettings
from provenance.check.findings import Control
from provenance.check.looks.process import add_outputs, reveal_pairs, start
from provenance.check.looks.revealed import Batch, Revealed, SequentialCheck
from provenance.check.score import WeightedPairs
from provenance.check.weigh import choose_rule, refuse_retired
from provenance.coins.contexts import name_contexts
from provenance.errors import ConfigurationMismatchError, DataError, UsageError, say_briefly
from provenance.keys.keyring import UnlockedKeyring
from provenance.marks import Mark, as_mark
from provenance.served.index import Index
from provenance.storage.documents import read_fields, refuse_malformed, take_stated
from provenance.storage.files import (
    canonical_json,
    lock_folder,
    parse_json,
    read_bytes,
    write_atomically,
)
from provenance.suspect.observations import Observations

STATE_FILE: Final = "state.json"

_FORMAT: Final = "provenance sequential check 1"
_PARTS: Final = ("settings", "batches")
_MODE = 0o600
_MAXIMUM_BYTES = 1 << 33


@dataclass(frozen=True)
class StoredBatch:
    """One batch: hashes and counts of its outputs, known coins per sheet, and its controls."""

    outputs: Mapping[str, Any]
    known: tuple[int, ...]
    placebo: tuple[Control, ...]
    pairs_sha256: str


@dataclass(frozen=True)
class StoredState:
    """What state.json holds: what every batch has in common, and the batches.

    `keys` are (slot, value) of every key of every sheet; docs/formats.md explains the others.
    """

    keyring_id: str
    index_sha256: str
    scheme: Mapping[str, Any]
    settings: CheckSettings
    maximal_weight: int
    keys: tuple[tuple[tuple[str, ...], ...], ...]
    batches: tuple[StoredBatch, ...]

    @classmethod
    def of(cls, check: SequentialCheck) -> StoredState:
        """Of a check whose batches are all written."""
        return cls(
            check.keyring_id,
            check.index_sha256,
            dict(check.scheme),
            check.settings,
            check.sheets[0].processes[0].maximal_weight,
            tuple(sheet.keys for sheet in check.sheets),
            tuple(
                StoredBatch(batch.outputs, batch.known, batch.placebo, batch.pairs_sha256)
                for batch in check.batches
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """The document, with a checksum that sees damage in what nothing else depends on."""
        document = {"format": _FORMAT, **asdict(self)}
        return {**document, "content_sha256": _checksum(document)}

    @classmethod
    def from_json(cls, document: object) -> StoredState:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        stated = take_stated(document, frozenset({"format", "content_sha256"}))
        if document["format"] != _FORMAT:  # type: ignore[index]
            raise ValueError("another format")
        state = read_fields(cls, stated)
        if canonical_json(state.to_json()) != canonical_json(document):
            raise ValueError("a checksum or numbers in another form")
        return state


def continue_check(
    folder: Path,
    observations: Observations | None,
    index: Index,
    keyring: UnlockedKeyring | Mark,
    settings: CheckSettings,
) -> tuple[SequentialCheck, str]:
    """Add one batch to the check in a folder (a new one if there is none), under its lock.

    Parameters
    ----------
    folder : of the state
    observations : counts of the batch alone; None to look at the evidence so far
    index, keyring, settings : those that the check was started with; a rule that nobody chose is
        the one for these observations

    Returns
    -------
    The check, and the hex SHA-256 of its state.json ("" if there is none).

    Raises
    ------
    ConfigurationMismatchError if something is bound to another one; DataError for a file that is
    damaged or breaks a rule, or for outputs that were in an earlier batch; LockedError;
    StorageError. After an error the folder holds the check without the batch.

    Notes
    -----
    Cost: replays the pairs of all batches (15 ms per key and batch for E, and sorting), then as
    `process.add_outputs`.
    """
    if settings.rule is None:
        has_reference = observations is not None and bool(observations.reference)
        rule = choose_rule(sampled=True, has_reference=has_reference)
        settings = replace(settings, rule=rule)
    mark = as_mark(keyring)
    with lock_folder(folder):
        check, sha256 = _load(folder, start(index, mark, settings), mark)
        if observations is None:
            return check, sha256
        check = add_outputs(check, observations, index, mark)
        return check, _save(folder, check)


def _load(folder: Path, check: SequentialCheck, mark: Mark) -> tuple[SequentialCheck, str]:
    """Replay what the folder holds onto a new check."""
    path = folder / STATE_FILE
    if not path.exists():
        refuse_retired(str(check.settings.rule))
        return check, ""
    content = read_bytes(path)
    for number, record in enumerate(_read_batches(content, check, str(path)), start=1):
        file = folder / _pairs_file(number)
        revealed = _read_pairs(file, record.pairs_sha256, check)
        check = _replay(check, revealed, record, mark, str(file))
    return check, hashlib.sha256(content).hexdigest()


def _save(folder: Path, check: SequentialCheck) -> str:
    """Write what the last batch revealed, then state.json; returns the state's hex SHA-256."""
    pairs = _write_pairs(check.batches[-1], check)
    write_atomically(folder / _pairs_file(len(check.batches)), pairs, _MODE)
    last = replace(check.batches[-1], pairs_sha256=hashlib.sha256(pairs).hexdigest())
    check = replace(check, batches=(*check.batches[:-1], last))
    content = canonical_json(StoredState.of(check).to_json())
    write_atomically(folder / STATE_FILE, content, _MODE)
    return hashlib.sha256(content).hexdigest()


def _checksum(state: Mapping[str, Any]) -> str:
    """Over all fields but itself."""
    rest = {name: value for name, value in state.items() if name != "content_sha256"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def _pairs_file(number: int) -> str:
    return f"{number:04d}.parquet"


def _read_batches(content: bytes, check: SequentialCheck, origin: str) -> tuple[StoredBatch, ...]:
    """The batches of state.json, if it is canonical and bound to the same inputs."""
    document = parse_json(content, origin)
    claim = f"{origin}: must be a state of format {_FORMAT!r} as it was written"
    with refuse_malformed(claim, "Restore the file, or name a new folder."):
        state = StoredState.from_json(document)
        if canonical_json(document) != content:
            raise ValueError("another spacing or order")
        if any(len(one.known) != len(check.sheets) or min(one.known) < 0 for one in state.batches):
            raise ValueError("batches of other sheets")
    bound = _list_bound(StoredState.of(check))
    for (name, stored), (_, found) in zip(_list_bound(state), bound, strict=True):
        if canonical_json(stored) != canonical_json(found):
            raise ConfigurationMismatchError(
                f"{origin}: {name} must be {_short(stored)} as when it was started; got "
                f"{_short(found)}. Continue with that, or start a new folder with fresh outputs."
            )
    return state.batches


def _list_bound(state: StoredState) -> list[tuple[str, object]]:
    """What every batch has in common, by name; the settings one by one."""
    settings = [(f"settings.{name}", value) for name, value in asdict(state.settings).items()]
    rest = [(name, value) for name, value in vars(state).items() if name not in _PARTS]
    return [*settings, *rest]


def _short(value: object) -> str:
    text = canonical_json(value).decode("ascii")
    return text if len(text) <= 60 else text[:60] + "..."


def _replay(
    check: SequentialCheck,
    revealed: tuple[Revealed, ...],
    record: StoredBatch,
    mark: Mark,
    origin: str,
) -> SequentialCheck:
    """Run one stored batch through the rules that it went through when it was added."""
    sheets = []
    for sheet, own in zip(check.sheets, revealed, strict=True):
        try:
            grown, again, known = reveal_pairs(sheet, own.pairs, mark)
        except (UsageError, DataError) as error:
            raise DataError(f"{origin}: breaks a rule of sequential checks: {error}") from error
        if known or len(again.pairs) != len(own.pairs):
            raise DataError(
                f"{origin}: must hold new pairs only; it repeats revealed ones. "
                "Restore the file as it was written."
            )
        names = name_contexts(own.pairs.contexts)
        slots = np.array(mark.schedule.names)[mark.slots_of_names(names)]
        same = np.array_equal(again.scores, own.scores) and _equal(again.units, own.units)
        if not same or (slots != sheet.slot).any():
            raise DataError(
                f"{origin}: its slots, units and scores must be those that the keyring gives; they "
                "are "
                "not. Restore the file as it was written."
            )
        sheets.append(grown)
    batch = Batch(
        record.outputs,
        revealed,
        record.known,
        record.placebo,
        record.pairs_sha256,
    )
    return replace(check, sheets=tuple(sheets), batches=(*check.batches, batch))


def _equal(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    return np.array_equal(one, other) if one is not None and other is not None else one is other


def _write_pairs(batch: Batch, check: SequentialCheck) -> bytes:
    """One row per pair and sheet; `scores` has one entry per key of the sheet."""
    pairs = [own.pairs for own in batch.revealed]
    widths = np.repeat([own.scores.shape[1] for own in batch.revealed], list(map(len, pairs)))
    contexts = np.concatenate([own.contexts for own in pairs])
    scores = np.concatenate([own.scores.ravel() for own in batch.revealed])
    columns = {
        "sheet": np.repeat(np.arange(len(pairs)), list(map(len, pairs))).astype(np.uint16),
        **{f"c{i + 1}": contexts[:, i].astype(np.uint32) for i in range(check.width)},
        "token": np.concatenate([own.tokens for own in pairs]).astype(np.uint32),
        "weight": np.concatenate([own.weights for own in pairs]).astype(np.int64),
        **({"unit": _number_units(batch).astype(np.uint32)} if check.shared else {}),
        "scores": pa.LargeListArray.from_arrays(
            np.concatenate([[0], np.cumsum(widths)]).astype(np.int64), scores.astype(np.int32)
        ),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, _schema(check)), sink, compression="zstd")
    return sink.getvalue()


def _number_units(batch: Batch) -> NDArray[np.int64]:
    """The coin of each row, from 0 in every sheet."""
    return np.concatenate([own.units for own in batch.revealed if own.units is not None])


def _read_pairs(path: Path, sha256: str, check: SequentialCheck) -> tuple[Revealed, ...]:
    content = read_bytes(path, _MAXIMUM_BYTES)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path}: must have the hash that {STATE_FILE} names; it has another. "
            "Restore the file as it was written."
        )
    schema = _schema(check)
    try:
        table = pq.read_table(io.BytesIO(content)).combine_chunks()
        if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
            raise ValueError(f"other columns than {schema.names}, or missing values")
        sheet = table["sheet"].to_numpy()
        scores = table["scores"].combine_chunks()
        widths = np.array([len(own.keys) for own in check.sheets])
        if not np.array_equal(np.diff(scores.offsets.to_numpy()), widths[sheet]):
            raise ValueError("another number of scores than keys")
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: must hold the pairs of a batch; got: {say_briefly(error)}. Restore the file."
        ) from error
    places = [f"c{i + 1}" for i in range(check.width)]
    contexts = np.column_stack([table[name].to_numpy() for name in places])
    tokens, weights = table["token"].to_numpy(), table["weight"].to_numpy()
    units = table["unit"].to_numpy().astype(np.int64) if check.shared else None
    flat, owner = scores.flatten().to_numpy().astype(np.int64), np.repeat(sheet, widths[sheet])
    return tuple(
        Revealed(
            WeightedPairs(
                contexts[sheet == number], tokens[sheet == number], weights[sheet == number]
            ),
            flat[owner == number].reshape(-1, widths[number]),
            None if units is None else units[sheet == number],
        )
        for number in range(len(check.sheets))
    )


def _schema(check: SequentialCheck) -> Any:
    """Columns of a pairs file."""
    return pa.schema(
        [
            ("sheet", pa.uint16()),
            *((f"c{i + 1}", pa.uint32()) for i in range(check.width)),
            ("token", pa.uint32()),
            ("weight", pa.int64()),
            *([("unit", pa.uint32())] if check.shared else []),
            ("scores", pa.large_list(pa.int32())),
        ]
    )
