"""observe -> weigh -> reveal -> control, batch after batch: a check that may be looked at any time.

`start` declares keys, rule, scale and alpha; `add_outputs` takes one batch of outputs, weighs it by
its own counts (never by a coin), and reveals only the coins that no earlier batch revealed, with
the weights fixed by then (`provenance.stats.sequential`). Each key has an e-process of its own. The
family's e-value is their weighted average; a key's adjusted one comes from closed testing. There is
no function that weighs a revealed coin again, and none that takes a batch under other terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.check import CheckSettings
from provenance.controls import list_unserved
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.files import canonical_json
from provenance.inputs import describe_observations
from provenance.keys.keyring import Key, UnlockedKeyring
from provenance.keys.schedule import CONTROL
from provenance.schemes import Scheme, make_scheme
from provenance.scoring import WeightedPairs, weigh_observations
from provenance.sequential.controls import control_placebos
from provenance.sequential.sheets import Batch, Role, SequentialCheck, Sheet, extend_sheet
from provenance.served.index import Index
from provenance.stats.sequential import Reveal
from provenance.stats.sequential import start as start_process
from provenance.suspect.observations import Observations
from provenance.weigh import MAXIMAL_WEIGHTS

__all__ = ["add_outputs", "list_reveals", "start"]


def start(index: Index, keyring: UnlockedKeyring, settings: CheckSettings) -> SequentialCheck:
    """Declare a sequential check before any output is seen: E = 1.

    Parameters
    ----------
    index : the marked responses; its values are the keys of the check
    keyring : unlocked
    settings : alpha of all keys and all looks together, weight rule, number of placebo keys

    Raises DataError for an index without marked responses; UsageError without a weight rule.
    """
    public = keyring.public
    if settings.rule is None:
        raise UsageError(
            "a sequential check must declare its weight rule before any output is seen; it has "
            "none. Use log-sqrt, or residual with a reference."
        )
    law = make_scheme(public.scheme.name, public.scheme.parameters).null_law
    process = start_process(law, MAXIMAL_WEIGHTS[settings.rule], keyring.context_width + 1)
    tested = index.keys_served(keyring.schedule)
    if not tested:
        raise DataError(
            "the index must hold marked responses; it holds none. Nothing could ever be tested: "
            "name another index."
        )
    unserved = list_unserved(keyring.schedule, tested)
    groups: list[tuple[Role, str, list[tuple[str, str]]]] = [
        *(("tested", key[0], [key]) for key in tested),
        ("control slot", CONTROL, tested),
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
        width=keyring.context_width,
        sheets=tuple(
            Sheet(role, slot, tuple(keys), (process,) * len(keys))
            for role, slot, keys in groups
            if keys
        ),
    )


def add_outputs(
    check: SequentialCheck, observations: Observations, index: Index, keyring: UnlockedKeyring
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
    _refuse_other(check, observations, index, keyring)
    weighing = weigh_observations(observations, index, keyring, str(check.settings.rule))
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    sheets, revealed, known = [], [], []
    for sheet in check.sheets:
        pairs = sheet.pick(weighing)
        # only here are keys opened, on the new pairs, when add_batch has their weights
        extended, own, ignored = extend_sheet(sheet, pairs, list_reveals(sheet, pairs, keyring))
        sheets.append(extended)
        revealed.append(own)
        known.append(ignored)
    batch = Batch(describe_observations(observations), tuple(revealed), tuple(known), ())
    grown = replace(check, sheets=tuple(sheets), batches=(*check.batches, batch))
    batch = replace(batch, placebo=control_placebos(grown, scheme))
    return replace(grown, batches=(*check.batches, batch))


def list_reveals(sheet: Sheet, pairs: WeightedPairs, keyring: UnlockedKeyring) -> list[Reveal]:
    """Callbacks that open coins of these pairs, one per key of the sheet; none is opened here."""
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    return [_opener(pairs, keyring.key(*key), scheme) for key in sheet.keys]


def _opener(pairs: WeightedPairs, key: Key, scheme: Scheme) -> Reveal:
    def reveal(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return scheme.score(key.words(pairs.contexts[rows], pairs.tokens[rows]))

    return reveal


def _refuse_other(
    check: SequentialCheck, observations: Observations, index: Index, keyring: UnlockedKeyring
) -> None:
    """A batch under other terms, or one that was here before."""
    if not observations.sampled:
        raise UsageError(
            "a sequential check must have sampled outputs; got probabilities. "
            "Read weights or logprobs at once, with a plain check."
        )
    expected = {
        "keyring": (check.keyring_id, keyring.public.id),
        "index": (check.index_sha256, index.manifest.content_sha256),
        "scheme": (canonical_json(check.scheme), canonical_json(keyring.public.scheme.to_json())),
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
