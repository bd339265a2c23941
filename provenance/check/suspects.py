"""Several suspects under one keyring: what may be said of all of them together.

Two error rates, both valid under any dependence between suspects:

- *family-wise*: weighted Holm over suspects x keys. With probability <= alpha nobody is accused
  wrongly. Every suspect has an equal share of alpha; within it the shares are those of `families`
  over all keys that the keyring *committed* to, whether or not they were tried: a key that was
  left out counts as tried without success, so leaving keys out after looking gains nothing.
- *false discovery*: e-BH over suspects. Of the suspects named, a share <= the level is wrong on
  average. The e-value of a suspect is the weighted average over its keys of the mixture e-value of
  each class table (`stats.mixture`).

Numbers are recomputed from the class tables. A sequential report gives e-values, and p <= 1 / e. A
suspect whose controls failed, for whom nothing was scored, or against whose evidence something is
held, counts but is never named. Suspects under one mark of another scheme are judged together
likewise; its id fixes the key, and the law of a score is that of the tables, where all must agree.

The conclusion is evidence if somebody is accused; no evidence if nobody is and every check on its
own found none, with power; otherwise inconclusive, and why.

Does not know keys, outputs or an index: verdicts in.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from provenance.check.correlations import correlate_bundles
from provenance.check.family import Family, SuspectResult
from provenance.check.findings import Conclusion
from provenance.check.looks.result import SequentialVerdict
from provenance.check.reading import read_result
from provenance.check.verdict import Verdict
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import SELECTOR
from provenance.keys.schedule import CONTROL, KeyName
from provenance.marks.alpha import family_weights
from provenance.marks.foreign import FOREIGN_SCHEMES
from provenance.marks.own import SCHEMES, make_scheme
from provenance.marks.sharing import MAXIMUM_WEIGHT
from provenance.stats.evalues import average_e, e_bh
from provenance.stats.families import weighted_holm
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.mixture import log10_mixture, mixture_slopes
from provenance.stats.tables import ClassTable
from provenance.storage.documents import refuse_malformed
from provenance.storage.files import canonical_json

_TOLERANCE: Final = 1e-6
_ADVICE: Final = "Run `provenance verify`."


@dataclass(frozen=True)
class Suspect:
    """One verdict, read from its folder.

    Attributes
    ----------
    name : the folder as given
    sequential : whether it is a sequential report
    keyring_id, scheme, commitments : of the keyring, or of another scheme's mark
    law : of the score of one coin; None if another scheme's tables are all empty
    identity : what was checked: hashes of the outputs, rule and reference
    rule : weight rule
    usable : its p-values may accuse: controls passed, something was scored, nothing is held against
        evidence
    conclusion, reasons : of its own check
    tables : class table of each key that was tried, by (slot, value)
    """

    name: str
    sequential: bool
    keyring_id: str
    scheme: Mapping[str, Any]
    commitments: Mapping[str, str]
    law: NullLaw | None
    identity: bytes
    rule: str
    usable: bool
    conclusion: Conclusion
    reasons: tuple[str, ...]
    tables: Mapping[KeyName, ClassTable]


def read_suspect(folder: Path) -> Suspect:
    """Read the verdict.json or sequential.json of a folder.

    Raises StorageError if it holds none or both; DataError if a field is missing or impossible, or
    if a p-value is not the one of its class table.
    """
    try:
        return _take(str(folder), read_result(folder))
    except UsageError as error:  # of a scheme's parameters
        raise DataError(f"{folder}: {error}") from error


def judge_suspects(
    suspects: Sequence[Suspect], alpha: float = 1e-4, false_discovery_rate: float = 0.01
) -> Family:
    """Holm over suspects x committed keys, e-BH over suspects, correlations.

    Parameters
    ----------
    suspects : verdicts of one keyring, each check once
    alpha : family-wise error rate over all suspects and keys, in (0, .05]
    false_discovery_rate : level of e-BH, in (0, .5]

    Raises
    ------
    UsageError for no suspect, the same check twice or a level outside its domain;
    ConfigurationMismatchError for verdicts of several keyrings; DataError for damaged pairs.

    Notes
    -----
    Cost: one exact tail and one mixture per table; per two suspects and key, one sort of the pairs.
    """
    _refuse_other(suspects, alpha, false_discovery_rate)
    keys = _list_committed(suspects)
    weights = family_weights(keys)
    log10_e = np.array([[_evidence(suspect, key) for key in keys] for suspect in suspects])
    log10_p = np.array([[_tail(suspect, key) for key in keys] for suspect in suspects])
    adjusted = weighted_holm(
        log10_p.ravel(), np.tile(weights / len(suspects), len(suspects))
    ).reshape(log10_p.shape)
    averages = np.array([average_e(row, weights) for row in log10_e])
    levels = e_bh(averages)
    correlations, without = correlate_bundles(suspects, _list_committed(suspects))
    accused = [bool(row.min() <= math.log10(alpha)) for row in adjusted]
    obstacles = [] if any(accused) else _list_obstacles(suspects)
    return Family(
        keyring_id=suspects[0].keyring_id,
        committed_keys=len(keys),
        alpha=alpha,
        false_discovery_rate=false_discovery_rate,
        suspects=tuple(
            SuspectResult(
                name=suspect.name,
                usable=suspect.usable,
                log10_p=float(adjusted[i].min()),
                accused=accused[i],
                keys=tuple(
                    str(key)
                    for key, value in zip(keys, adjusted[i], strict=True)
                    if value <= math.log10(alpha)
                ),
                log10_e=float(averages[i]) if averages[i] > -math.inf else None,
                log10_level=float(levels[i]),
                discovered=bool(levels[i] <= math.log10(false_discovery_rate)),
            )
            for i, suspect in enumerate(suspects)
        ),
        correlations=correlations,
        without_pairs=without,
        conclusion="evidence" if any(accused) else "inconclusive" if obstacles else "no evidence",
        reasons=tuple(obstacles),
    )


def _list_obstacles(suspects: Sequence[Suspect]) -> list[str]:
    """Suspects of whom "no evidence" may not be said although nobody is accused, and why."""
    found = []
    for suspect in suspects:
        if suspect.conclusion == "evidence":
            why = f"which the keys of all {len(suspects)} suspects together do not bear out"
            found.append(f"{suspect.name}: its own check found evidence, {why}")
        elif suspect.conclusion != "no evidence":
            why = "; ".join(suspect.reasons) or "it does not say why"
            found.append(f"{suspect.name}: its own check is inconclusive: {why}")
    return found


def _refuse_other(suspects: Sequence[Suspect], alpha: float, rate: float) -> None:
    if not suspects or not 0 < alpha <= 0.05 or not 0 < rate <= 0.5:
        raise UsageError(
            "there must be one suspect or more, alpha in (0, 0.05] and the false discovery rate in "
            f"(0, 0.5]; got {len(suspects)}, {alpha} and {rate}. Use 1e-4 and 0.01."
        )
    seen: dict[bytes, str] = {}
    first = suspects[0]
    for suspect in suspects:
        if suspect.identity in seen:
            raise UsageError(
                f"{suspect.name}: must be another check than {seen[suspect.identity]}; it has the "
                "same outputs, rule and reference. Name each check once."
            )
        seen[suspect.identity] = suspect.name
        if (suspect.keyring_id, suspect.scheme) != (first.keyring_id, first.scheme):
            raise ConfigurationMismatchError(
                f"{suspect.name}: must be of keyring {first.keyring_id} and its scheme; it is of "
                f"{suspect.keyring_id}. Judge the suspects of each keyring on their own."
            )
        laws = {one.law for one in suspects if one.law is not None}
        if len(laws) > 1:
            raise DataError(
                f"{suspect.name}: the suspects' tables must have one law of a score, as one mark "
                "has; they have several. Run `provenance verify` on each."
            )
        for name, commitment in suspect.commitments.items():
            if first.commitments.get(name, commitment) != commitment:
                raise ConfigurationMismatchError(
                    f"{suspect.name}: its commitment to {name} must be that of {first.name}; it is "
                    "another. A committed key never changes: find out which verdict is real."
                )


def _list_committed(suspects: Sequence[Suspect]) -> list[KeyName]:
    """(slot, value) of every key that any of the verdicts could have opened."""
    names = {name for suspect in suspects for name in suspect.commitments}
    return [key for key in map(KeyName.parse, sorted(names)) if key.slot not in (SELECTOR, CONTROL)]


def _evidence(suspect: Suspect, key: KeyName) -> float:
    """log10 e of one key; 0 is what a key counts that was not tried, or failed its controls."""
    table = suspect.tables.get(key)
    if table is None or not suspect.usable or suspect.law is None:
        return -math.inf
    return log10_mixture(table, mixture_slopes(suspect.law, MAXIMAL_WEIGHTS[suspect.rule]))


def _tail(suspect: Suspect, key: KeyName) -> float:
    """log10 p of one key; 1 / e if the moment of the last batch may have depended on coins."""
    if suspect.sequential:
        return min(0.0, -max(_evidence(suspect, key), 0.0))
    table = suspect.tables.get(key)
    return 0.0 if table is None or not suspect.usable else log10_upper_tail(table)


def _find_law(name: str, scheme: Mapping[str, Any], laws: Collection[NullLaw]) -> NullLaw | None:
    """The law of our own scheme; of another's, which may depend on its key, that of its tables."""
    if scheme["name"] in SCHEMES:
        return make_scheme(scheme["name"], scheme["parameters"]).null_law
    if scheme["name"] not in FOREIGN_SCHEMES or len(laws) > 1 or any(not x.variance for x in laws):
        raise DataError(f"{name}: must be of a known scheme, with one law of a score; it is not.")
    return next(iter(laws), None)


def _take(name: str, verdict: Verdict | SequentialVerdict) -> Suspect:
    """What the family needs of one verdict. Raises DataError, UsageError."""
    rule, scheme = verdict.weight_rule, verdict.scheme
    if rule not in MAXIMAL_WEIGHTS or not {"name", "parameters"} <= set(scheme):
        raise DataError(f"{name}: must have a known scheme and weight rule; it has not. {_ADVICE}")
    sequential = isinstance(verdict, SequentialVerdict)
    bound = MAXIMAL_WEIGHTS[rule] if scheme["name"] in SCHEMES or sequential else MAXIMUM_WEIGHT
    tables = {result.key: result.table for result in verdict.hypotheses}
    rows = [row for table in tables.values() for row in table.classes]
    law = _find_law(name, scheme, {row.law for row in rows})
    if any(abs(row.weight) > bound or row.law != law for row in rows):
        raise DataError(
            f"{name}: class tables must keep to scheme and rule; they do not. {_ADVICE}"
        )
    if not {str(key) for key in tables} <= set(verdict.commitments):
        raise DataError(f"{name}: every key that was tried must have a commitment; one has none.")
    if isinstance(verdict, SequentialVerdict):
        checked = [look.outputs for look in verdict.looks]
        reserved = verdict.log10_p <= math.log10(verdict.alpha)  # and yet inconclusive
    else:
        _compare_tails(name, verdict)
        checked = [verdict.inputs["outputs"]]
        reserved = any(one.against != "no evidence" for one in verdict.reservations)
    return Suspect(
        name=name,
        sequential=sequential,
        keyring_id=verdict.keyring_id,
        scheme=scheme,
        commitments=verdict.commitments,
        law=law,
        identity=_identify(name, checked, rule),
        rule=rule,
        # too little data, for one, speaks against no accusation
        usable=verdict.conclusion != "inconclusive"
        or (verdict.controls_passed and any(row.weight for row in rows) and not reserved),
        conclusion=verdict.conclusion,
        reasons=verdict.reasons,
        tables=tables,
    )


def _compare_tails(name: str, verdict: Verdict) -> None:
    for one in verdict.hypotheses:
        if abs(one.tail.log10_p - log10_upper_tail(one.table)) > _TOLERANCE:
            raise DataError(
                f"{name}: log10 p of {one.name} must be that of its class table; it is not. "
                f"{_ADVICE}"
            )


def _identify(name: str, checked: Sequence[Mapping[str, Any]], rule: str) -> bytes:
    """What was checked: outputs, references and rule."""
    with refuse_malformed(f"{name}: must name the files of its outputs and reference", _ADVICE):
        hashes = [sorted(one["sha256"].values()) for one in checked]
        return canonical_json([hashes, [one["reference"] for one in checked], rule])
