"""TextSeal's own mark since 2026: two keys, one drawn afresh for every token (arXiv 2605.12456).

The pseudo-random function is that of `textseal.py`. A token follows key A with probability
`mixing_alpha`, else key B, which is A + 12345 unless the configuration says otherwise; the score
adds both coins' in the whole ratio nearest to mixing_alpha : 1 - mixing_alpha.

The two coins of a pair are the function at two places a fixed amount apart, so they are not quite
independent: their scores correlate by -.01 for the default offset, a little below what the law
says. Offsets at which they correlate by more than .03 are refused. Placebo keys keep the offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks.foreign.configuration import (
    check_fields,
    is_whole,
    keys_differ,
    no_key,
    read_secret_pair,
    whole_number,
)
from provenance.marks.foreign.scheme import Common, Secret, Tokens
from provenance.marks.foreign.textseal import (
    CORRELATED,
    TEXTSEAL_FIELDS,
    TextSealGumbel,
    check_type,
)
from provenance.marks.foreign.weighted import add_laws, whole_weights
from provenance.stats.laws import NullLaw

_OFFSET: Final = 12345
_NAMES: Final = ("secret_key", "secret_key_b")


@dataclass(frozen=True, kw_only=True)
class TextSealDualKey(Common):
    """keys: A and B; ngram: window; mixing_alpha: share of tokens that follow key A."""

    keys: tuple[int, ...] = field(repr=False)
    ngram: int = 1
    mixing_alpha: float = 0.5
    name: ClassVar[str] = "textseal-dual-key"
    key_field: ClassVar[str] = "secret_key"
    more_key_fields: ClassVar[tuple[str, ...]] = ("secret_key_b",)

    def __post_init__(self) -> None:
        if len(self.keys) != 2:
            raise UsageError("the keys of this scheme must be two integers, A and B.")
        first, second = self.parts
        if first.correlation(second.key) > CORRELATED:
            raise ConfigurationMismatchError(
                "secret_key and secret_key_b must give independent coins; theirs correlate, since "
                "TextSeal's function is nearly linear in the key, and no valid test of their sum "
                "is known. Test each key alone as textseal-gumbel."
            )

    @cached_property
    def parts(self) -> tuple[TextSealGumbel, TextSealGumbel]:
        """The schemes of key A and key B."""
        first, second = (TextSealGumbel(key=key, ngram=self.ngram) for key in self.keys)
        return first, second

    @property
    def width(self) -> int:
        return self.ngram

    @property
    def caveat(self) -> str:
        return self.parts[0].caveat

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"ngram": self.ngram, "mixing_alpha": self.mixing_alpha}

    @property
    def weights(self) -> tuple[int, int]:
        """Whole weights of the coins of A and B."""
        return whole_weights(1 - self.mixing_alpha)

    @cached_property
    def null_law(self) -> NullLaw:
        """Law of the weighted sum of two independent lattice scores."""
        return add_laws(self.parts[0].null_law, self.weights)

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """The linear form, which both coins are functions of."""
        return self.parts[0].units(contexts, tokens)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Weighted sum of both coins' scores."""
        first, second = (part.score(contexts, tokens) for part in self.parts)
        return first * self.weights[0] + second * self.weights[1]

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """mixing_alpha * score of A + (1 - mixing_alpha) * score of B; no entropy weights."""
        first, second = (part.original_scores(contexts, tokens) for part in self.parts)
        return self.mixing_alpha * first + (1 - self.mixing_alpha) * second

    def random_key(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Two keys as far apart as the true ones; neither correlates with either of them."""
        offset = self.keys[1] - self.keys[0]
        while True:
            first = self.parts[0].random_key(rng)
            pair = first, first + offset
            if all(abs(part.correlation(key)) < CORRELATED for part in self.parts for key in pair):
                return pair

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads TextSeal's `WatermarkConfig` of type textseal; the secret is A, or [A, B]."""
        del vocabulary_size
        check_fields(config, TEXTSEAL_FIELDS, cls.name)
        check_type(config, ("textseal",), cls.name)
        alpha = config.get("mixing_alpha", 0.5)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise UsageError(
                f"mixing_alpha must be in [0, 1]; got {alpha!r}. Their default is 0.5."
            )
        return cls(
            keys=_read_pair(config, secret),
            ngram=whole_number(config.get("ngram", 1), "ngram", 1, 10),
            mixing_alpha=float(alpha),
        )


def _read_pair(config: Mapping[str, Any], secret: Secret) -> tuple[int, int]:
    """A and B; a negative or missing secret_key_b means A + 12345, as there."""
    pairs: list[list[int | None]] = [[config.get("secret_key"), config.get("secret_key_b")]]
    if secret is not None:
        pairs.append([*read_secret_pair(secret, "secret_key"), None][:2])
    found: list[int | None] = [None, None]
    for pair in pairs:
        for number, (name, key) in enumerate(zip(_NAMES, pair, strict=True)):
            if key is None or (number and key == -1):
                continue
            if not is_whole(key) or not 0 <= key < 1 << 63:
                raise UsageError(
                    f"{name} must be a whole number of at most 63 bits; it is not. Check the key."
                )
            if found[number] not in (None, key):
                raise keys_differ(name)
            found[number] = key
    if found[0] is None:
        raise no_key("secret_key")
    return found[0], found[0] + _OFFSET if found[1] is None else found[1]
