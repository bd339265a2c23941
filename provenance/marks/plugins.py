"""Schemes of other distributions: found by name in the group `provenance.schemes`, then tried.

An entry point names a class: of our own kind (`marks.own.scheme.Scheme`, made from parameters and
named in a keyring) or of the foreign kind (`marks.foreign.scheme.ForeignScheme`, which has
`from_config`). A p-value is as good as the null law that a scheme states, so its scores are held
against that law before it is used: a scheme that is seen to break its law is refused. That the law
is exact remains the claim of whoever wrote the scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from provenance.errors import UsageError
from provenance.marks.own.draws import choose
from provenance.stats.laws import NullLaw
from provenance.storage.plugins import Plugin, find_plugin

GROUP: Final = "provenance.schemes"
_WORDS, _KEYS, _PAIRS, _DRAWS = 1 << 16, 64, 64, 64
_FEWEST, _LEVEL = 10.0, 1e-6

T = TypeVar("T")


class Registry(dict[str, T]):
    """Schemes by name; a name that is none of these is looked for among the plug-ins of the kind.

    Iterating lists our own.
    """

    def __init__(self, ours: dict[str, T], protocol: type, foreign: bool) -> None:
        super().__init__(ours)
        self._protocol, self._foreign = protocol, foreign

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._find(name) is not None

    def __missing__(self, name: str) -> T:
        if (plugin := self._find(name)) is None:
            raise KeyError(name)
        target: T = plugin.target
        return target

    def make(self, name: str, build: Callable[[], Any]) -> Any:
        """What `build` makes; of a plug-in, only after it was tried. UsageError otherwise."""
        plugin = None if super().__contains__(name) else self._find(name)
        if plugin is None:
            return build()
        try:
            scheme = build()
            fault = "it does not satisfy the protocol"
            if isinstance(scheme, self._protocol) and getattr(scheme, "name", "") == name:
                fault = (_try_foreign if self._foreign else _try_own)(scheme)
        except Exception as error:  # code that is not ours
            raise plugin.failure(error) from error
        if fault:
            raise UsageError(
                f"scheme {name} of the distribution {plugin.distribution} must keep to what it "
                f"states; {fault}. Its p-values would be wrong: do not use it."
            )
        return scheme

    def _find(self, name: object) -> Plugin | None:
        plugin = find_plugin(GROUP, name) if isinstance(name, str) else None
        if plugin is None or hasattr(plugin.target, "from_config") != self._foreign:
            return None
        return plugin


def _try_own(scheme: Any) -> str:
    """Scores of random words follow the law; each depends on its word; both ways to draw agree."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 32, _WORDS, dtype=np.uint32)
    scores = scheme.score(words)
    if not np.array_equal(scores, scheme.score(words[::-1])[::-1]):
        return "the score of a word depends on more than the word"
    for row in words[: _DRAWS * 8].reshape(_DRAWS, 8):
        p, uniform = rng.dirichlet(np.ones(8)), float(rng.random())
        if scheme.draw(p.copy(), row, uniform) != choose(*scheme.code, p.copy(), row, uniform):
            return "draw and code do not draw the same"
    return _compare(scores, scheme.null_law)


def _try_foreign(scheme: Any) -> str:
    """Scores of random pairs over random keys follow the law."""
    rng = np.random.default_rng(0)
    size = getattr(scheme, "vocabulary_size", None) or 1 << 15
    scores = []
    for _ in range(_KEYS):
        one = scheme.with_key(scheme.random_key(rng))
        contexts = rng.integers(0, size, (_PAIRS, one.width), dtype=np.uint32)
        tokens = rng.integers(0, size, _PAIRS, dtype=np.uint32)
        usable = one.usable(contexts, tokens)
        units = one.units(contexts, tokens)
        first = np.isin(np.arange(_PAIRS), np.unique(units, return_index=True)[1])
        scores.append(one.score(contexts, tokens)[usable & first])
    return _compare(np.concatenate(scores), scheme.null_law)


def _compare(scores: NDArray[np.int64], law: NullLaw) -> str:
    """Chi-square of the counts of each score, rare ones together; false alarm 1e-6."""
    if scores.dtype != np.int64 or not np.isin(scores, law.support).all():
        return "its scores are not integers of its null law"
    shares = np.array(law.masses, dtype=np.float64) / law.total
    expected = np.array(shares * scores.size, dtype=np.float64)
    found = np.bincount(scores, minlength=expected.size)
    often = expected >= _FEWEST
    both = [np.append(x[often], x[~often].sum()) for x in (found, expected)]
    kept = both[1] > 0
    statistic = float((((both[0] - both[1]) ** 2)[kept] / both[1][kept]).sum())
    if chdtrc(max(int(kept.sum()) - 1, 1), statistic) < _LEVEL:
        return "its scores of random words do not follow its null law"
    return ""
