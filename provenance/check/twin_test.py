"""The test of membership from twins: exact, without a watermark.

H0: in each pair it was decided by a fair coin, independent of everything the suspect is a function
of, which response was served. Then the signs of the differences are independent fair coins given
their sizes, and the statistic of Wilcoxon's signed ranks has an exactly known law: a weighted sum
of fair bits, whose tail the same code bounds that bounds those of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.check.findings import TwinsResult
from provenance.errors import DataError
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.suspect.access.twins import LikelihoodReader, Twins, compare_twins

_LEVELS = 255


@dataclass(frozen=True)
class MeasuredTwins:
    """Twins with what models said of them; not yet a verdict, since alpha is shared out elsewhere.

    Attributes
    ----------
    twins : the pairs
    differences : float64 [pairs] of `provenance.suspect.access.twins.compare_twins`
    suspect, reference : which models were asked; the reference is empty if there was none
    """

    twins: Twins
    differences: NDArray[np.float64]
    suspect: Mapping[str, Any]
    reference: Mapping[str, Any]

    def judge(self, alpha: float) -> TwinsResult:
        """The test at this line's share of alpha; raises what `judge_twins` raises."""
        result = judge_twins(self.twins, self.differences, alpha)
        return replace(result, suspect=self.suspect, reference=self.reference)


def measure_twins(
    twins: Twins, suspect: LikelihoodReader, reference: LikelihoodReader | None
) -> MeasuredTwins:
    """Ask the models how likely they find both twins of each pair.

    Parameters and cost: as `check_twins`. Judges nothing: `examine` takes it from here.
    """
    described = dict(reference.description) if reference is not None else {}
    differences = compare_twins(twins, suspect, reference)
    return MeasuredTwins(twins, differences, dict(suspect.description), described)


def check_twins(
    twins: Twins,
    suspect: LikelihoodReader,
    reference: LikelihoodReader | None,
    alpha: float,
) -> TwinsResult:
    """Does the suspect find the served twins likelier than chance allows?

    Parameters
    ----------
    twins : the pairs
    suspect, reference : models; the reference must not know the coins either
    alpha : share of alpha of this line of evidence

    Raises
    ------
    DataError if a likelihood is not finite. Cost: a forward pass of each model over all responses.
    """
    return measure_twins(twins, suspect, reference).judge(alpha)


def judge_twins(twins: Twins, differences: NDArray[np.float64], alpha: float) -> TwinsResult:
    """The test itself, from float64 [pairs] of `provenance.suspect.access.twins.compare_twins`.

    Raises DataError if a difference is not finite. Cost: one sort and one tail.
    """
    if not np.isfinite(differences).all():
        raise DataError(
            "the likelihood of every twin must be finite; it is not. The model's weights are "
            "broken, or a response is impossible under it."
        )
    weights = weigh_twins(differences)
    scores = (differences > 0).astype(np.int64)
    counted = weights > 0
    table = ClassTable.from_scores(weights[counted], scores[counted], NullLaw.bernoulli(1, total=2))
    tail = upper_tail(table)
    return TwinsResult(
        pairs=int(counted.sum()),
        favour_served=int(scores[counted].sum()),
        reused=twins.reused,
        equal=twins.equal,
        tail=tail,
        alpha=alpha,
        rejected=bool(tail.log10_p <= np.log10(alpha)),
        table=table,
        sha256=dict(twins.sha256),
        suspect={},
        reference={},
    )


def weigh_twins(differences: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of the sizes in 255 levels, equal sizes their mean rank; 0 for a difference of 0.

    >>> weigh_twins(np.array([0.1, -0.4, 0.0, 0.1])).tolist()
    [128, 255, 0, 128]
    """
    sizes = np.abs(differences)
    distinct, names, counts = np.unique(sizes[sizes > 0], return_inverse=True, return_counts=True)
    del distinct
    highest = np.cumsum(counts)
    ranks = np.zeros(sizes.shape[0])
    ranks[sizes > 0] = (highest - (counts - 1) / 2)[names]
    largest = ranks.max(initial=0.0)
    if not largest:
        return np.zeros(sizes.shape[0], dtype=np.int64)
    # rounding up keeps every pair in
    return np.asarray(np.ceil(ranks * (_LEVELS / largest)), dtype=np.int64)
