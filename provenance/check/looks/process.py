"""observe -> weigh -> reveal -> control, batch after batch: a check that may be looked at any time.

`start` declares keys, rule, scale and alpha; `add_outputs` takes one batch of outputs, weighs it by
its own counts (never by a coin), and reveals only the coins that no earlier batch revealed, with
the weights fixed by then (`provenance.stats.eprocess`). Each key has an e-process of its own. The
family's e-value is their weighted average; a key's adjusted one comes from closed testing. There is
no function that weighs a revealed coin again, and none that takes a batch under other terms.

Another scheme's mark has one key, and its coins may belong to several pairs: `sheets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.check.controls import list_unserved
from provenance.check.examine import CheckSettings, has_control_slot
from provenance.check.inputs import describe_log, describe_observations
from provenance.check.looks.look_controls import control_placebos
from provenance.check.looks.revealed import (
    UNIT_NAME_WIDTH,
    Batch,
    Revealed,
    Role,
    SequentialCheck,
    TestedKeys,
    Units,
    extend_sheet,
)
from provenance.check.score import WeightedPairs, weigh_observations
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import Keyring, UnlockedKeyring
from provenance.keys.schedule import CONTROL, KeyName
from provenance.marks import Mark, OpenKey, as_mark
from provenance.marks.foreign.mark import is_foreign
from provenance.served.index import Index
from provenance.stats.eprocess import Reveal
from provenance.stats.eprocess import start as start_process
from provenance.storage.files import canonical_json
from provenance.suspect.observations import Observations

Tokens = NDArray[np.uint32]


def start(
    index: Index, keyring: UnlockedKeyring | Mark, settings: CheckSettings
) -> SequentialCheck:
    """Declare a sequential check before any output is seen: E = 1.

    Parameters
    ----------
    index : the marked responses; its values are the keys of the check
    keyring : unlocked, or another mark (`provenance.marks.foreign.mark`)
    settings : alpha of all keys and all looks together, weight rule, number of placebo keys

    Raises DataError for an index without marked responses; UsageError without a weight rule.
    """
    if settings.rule is None:
        raise UsageError(
            "a sequential check must declare its weight rule before any output is seen; it has "
            "none. Use log-sqrt, or residual with a reference."
        )
    mark = as_mark(keyring)
    public, shared = mark.public, is_foreign(mark.public)
    width = UNIT_NAME_WIDTH if shared else public.context_width + 1
    process = start_process(mark.null_law, MAXIMAL_WEIGHTS[settings.rule], width)
    tested = index.keys_served(keyring.schedule)
    if not tested:
        raise DataError(
            "the index must hold marked responses; it holds none. Nothing could ever be tested: "
            "name another index."
        )
    unserved = list_unserved(keyring.schedule, tested)
    groups: list[tuple[Role, str, list[KeyName]]] = [
        *(("tested", key[0], [key]) for key in tested),
        ("control slot", CONTROL, tested if has_control_slot(keyring.schedule) else []),
        *(
            ("unserved values", slot.name, [key for key in unserved if key[0] == slot.name])
            for slot in keyring.schedule.slots[2:]
        ),
    ]
    return SequentialCheck(
        keyring_id=public.id,
        index_sha256=index.manifest.content_sha256,
        scheme=public.scheme.to_json(),
        settings=settings,
        width=public.context_width,
        shared=shared,
        sheets=tuple(
            TestedKeys(role, slot, tuple(keys), (process,) * len(keys))
            for role, slot, keys in groups
            if keys
        ),
        log=describe_log(index.manifest, counts_weigh=not mark.shares_coins),
    )


def add_outputs(
    check: SequentialCheck,
    observations: Observations,
    index: Index,
    keyring: UnlockedKeyring | Mark,
) -> SequentialCheck:
    """Weigh one batch of outputs and reveal its new coins.

    Parameters
    ----------
    check : in progress; it is unchanged
    observations : counts of this batch alone
    index, keyring : those of `start`

    Raises
    ------
    ConfigurationMismatchError if keyring, index, scheme or reference are other ones; DataError if a
    file of the batch was in an earlier one; UsageError for weights or logprobs.

    Notes
    -----
    Valid if the batch was cut without looking at its own coins. Cost: as `check_outputs` for the
    batch, and the placebo keys on the pairs of all batches.
    """
    mark = as_mark(keyring)
    _refuse_other(check, observations, index, mark.public)
    if mark.shares_coins:  # no count of the log may weigh anything
        index = index.with_equal_counts()
    weighing = weigh_observations(observations, index, mark, str(check.settings.rule))
    sheets, revealed, known = [], [], []
    for sheet in check.sheets:
        pairs = sheet.pick(weighing)
        # only here are keys opened, on the new pairs, when add_batch has their weights
        extended, own, ignored = reveal_pairs(sheet, pairs, mark)
        sheets.append(extended)
        revealed.append(own)
        known.append(ignored)
    batch = Batch(describe_observations(observations), tuple(revealed), tuple(known), ())
    grown = replace(check, sheets=tuple(sheets), batches=(*check.batches, batch))
    batch = replace(batch, placebo=control_placebos(grown, mark))
    return replace(grown, batches=(*check.batches, batch))


def reveal_pairs(
    sheet: TestedKeys, pairs: WeightedPairs, mark: Mark
) -> tuple[TestedKeys, Revealed, int]:
    """`extend_sheet` under the keys of a mark: opens the coins of these pairs that are new."""
    keys = [mark.open(*key) for key in sheet.keys]
    groups = keys[0].group(pairs.contexts, pairs.tokens)
    bound = sheet.processes[0].maximal_weight
    units = Units.of_pairs(pairs) if groups is None else Units.of_groups(pairs, groups, bound)
    first = units.first
    part = (pairs.contexts[first], pairs.tokens[first])
    return extend_sheet(sheet, pairs, [_opener(*part, key) for key in keys], units)


def _opener(contexts: Tokens, tokens: Tokens, key: OpenKey) -> Reveal:
    def reveal(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return key.score(contexts[rows], tokens[rows])

    return reveal


def _refuse_other(
    check: SequentialCheck, observations: Observations, index: Index, public: Keyring
) -> None:
    """A batch under other terms, or one that was here before."""
    if not observations.sampled:
        raise UsageError(
            "a sequential check must have sampled outputs; got probabilities. "
            "Read weights or logprobs at once, with a plain check."
        )
    expected = {
        "keyring": (check.keyring_id, public.id),
        "index": (check.index_sha256, index.manifest.content_sha256),
        "scheme": (canonical_json(check.scheme), canonical_json(public.scheme.to_json())),
    }
    if check.batches:
        first = check.batches[0].outputs["reference"]
        expected["reference"] = (_fingerprint(first), _fingerprint(observations.reference))
    for name, (bound, found) in expected.items():
        if bound != found:
            raise ConfigurationMismatchError(
                f"{name} must be the one that this sequential check was started with; it is "
                f"another. Continue with the same {name}, or start anew with fresh outputs."
            )
    for number, batch in enumerate(check.batches, start=1):
        before = set(batch.outputs["sha256"].values())
        for path, sha256 in observations.sha256.items():
            if sha256 in before:
                raise DataError(
                    f"{path}: must be new; its content was in batch {number} of this sequential "
                    "check. Collect other outputs; without OUTPUTS the evidence so far is shown."
                )


def _fingerprint(reference: Mapping[str, Any]) -> bytes:
    """A reference without the paths of its files."""
    hashes = reference.get("sha256")
    if isinstance(hashes, Mapping):
        reference = {**reference, "sha256": sorted(hashes.values())}
    return canonical_json(dict(reference))
