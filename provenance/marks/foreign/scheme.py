"""What every foreign scheme is: a window in, an integer score and the exact null law out.

A foreign scheme is someone else's watermark, recomputed bit by bit without its library. Unlike our
own schemes it does not start from a 32-bit coin of `coins.py`: it has its own pseudo-random
function, and many of these make different (context, token) pairs share one coin. So each scheme
names the *effective unit* of a pair. A valid test counts every unit once over all that is tested;
nothing else is deduplicated, and nothing is deduplicated by anything finer.

Knows token ids and keys. Knows no tokenizer, file, serving stack or verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import hash_columns
from provenance.errors import UsageError
from provenance.stats.laws import NullLaw

Tokens = NDArray[np.uint32]
Secret = int | Sequence[int] | None
"""A key as its own library takes it: one integer, or one a layer; None = it is in the config."""


@runtime_checkable
class ForeignScheme(Protocol):
    """The protocol. Instances are immutable; their repr and parameters never show the key.

    name : name in the registry
    key_field : field of the original's configuration that holds the key
    width : tokens before the scored one that its coin depends on; 0 if none
    self_salted : whether the scored token is part of the seed of its own list (self-hash)
    padding : what stands before the first token of a response when the original seeds its first
        coins, as uint32; None where the original leaves those positions unmarked or lets them see
        the prompt, so that they cannot be scored from the response alone
    refusal : why no valid test exists; empty if one does
    shares_coins : whether one coin serves many contexts by design, as where only the smallest hash
        of a window counts; accidents of a hash do not make it so
    caveat : one sentence about what makes the test weaker than the law says, for the report;
        empty if nothing does
    """

    name: ClassVar[str]
    key_field: ClassVar[str]
    refusal: ClassVar[str]

    @property
    def width(self) -> int:
        """Tokens before the scored one that its coin depends on."""
        ...

    @property
    def self_salted(self) -> bool:
        """Whether the scored token is part of its own seed."""
        ...

    @property
    def padding(self) -> int | None:
        """What stands before the first token, if the original seeds its first coins."""
        ...

    @property
    def shares_coins(self) -> bool:
        """Whether one coin serves many contexts by design."""
        ...

    @property
    def caveat(self) -> str:
        """What makes the test weaker than its law says, one sentence; or nothing."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON-able public parameters; with `name` and the key, all that fixes the scheme."""
        ...

    @property
    def null_law(self) -> NullLaw:
        """Law of the score of one unit over a random key."""
        ...

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Effective unit of each pair: pairs of one unit share one coin under this key.

        Parameters: contexts uint32 [n, width], oldest token first; tokens uint32 [n].
        Returns int64 [n], any sign. Units of different instances are not comparable.
        """
        ...

    def usable(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.bool_]:
        """False where the coin is the same under every key: it says nothing about this one."""
        ...

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Score of each pair, non-negative: 0/1 for green lists, else a sum of bits or steps."""
        ...

    def random_key(self, rng: np.random.Generator) -> int | tuple[int, ...]:
        """A placebo key of the scheme's own key space whose coins do not follow this key's."""
        ...

    def with_key(self, key: int | Sequence[int]) -> Self:
        """The same scheme under another key."""
        ...

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """The scheme of the original's own configuration object.

        Parameters
        ----------
        config : the JSON object that the original reads or writes; fields that only matter while
            generating are kept or ignored, unknown ones refused
        secret : the key, where it was taken out of `config`; must agree with it where both have it
        vocabulary_size : size that the original's generator permutes (the model config's
            `vocab_size`, often more than the tokenizer has); ignored where no coin depends on it

        Raises
        ------
        UsageError for a field that is missing, unknown or outside its domain, or no key;
        ConfigurationMismatchError for two keys that differ, or coins drawn by a CUDA generator.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Common:
    """What most schemes are: no padding, no coin shared by design, every pair usable, one key.

    For a frozen dataclass with the field `key`, or `keys` where there are several.
    """

    refusal: ClassVar[str] = ""

    @property
    def width(self) -> int:
        """As in `ForeignScheme`; each scheme has its own."""
        raise NotImplementedError

    @property
    def self_salted(self) -> bool:
        """No: the seed is a function of the context."""
        return False

    @property
    def padding(self) -> int | None:
        """None: the first tokens of a response cannot be scored from the response alone."""
        return None

    @property
    def shares_coins(self) -> bool:
        """No: pairs share a coin by accident only."""
        return False

    @property
    def caveat(self) -> str:
        """Nothing to warn of."""
        return ""

    def usable(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.bool_]:
        """Every pair."""
        check_pairs(contexts, tokens, self.width, getattr(self, "vocabulary_size", None))
        return np.ones(tokens.shape, dtype=np.bool_)

    def with_key(self, key: int | Sequence[int]) -> Self:
        """The same scheme under another key, or other keys. UsageError if it takes the other."""
        several = hasattr(self, "keys")
        if several == isinstance(key, int):
            needed = ("a list of integers", "one integer")[:: 1 if several else -1]
            raise UsageError(f"the key of this scheme must be {needed[0]}; got {needed[1]}.")
        changed: Any = {"key": key} if isinstance(key, int) else {"keys": tuple(key)}
        return replace(self, **changed)


@runtime_checkable
class ScoredOtherwise(Protocol):
    """A scheme whose original does not add up our whole scores: Gumbel schemes add -ln(1 - u)."""

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """Score of each pair as the original has it, float64 [n]: for comparison only."""
        ...


@runtime_checkable
class ScoredTogether(ScoredOtherwise, Protocol):
    """One that finds both scores from the same words, at half the cost."""

    def score_both(
        self, contexts: Tokens, tokens: Tokens
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`score` and `original_scores`, int64 [n] and float64 [n]."""
        ...


def check_pairs(contexts: Tokens, tokens: Tokens, width: int, vocabulary_size: int | None) -> None:
    """Raise UsageError unless contexts are uint32 [n, width] and tokens uint32 [n], in range."""
    if contexts.dtype != np.uint32 or contexts.ndim != 2 or contexts.shape[1] != width:
        raise UsageError(
            f"contexts must be uint32 of shape (n, {width}); got {contexts.dtype} of shape "
            f"{contexts.shape}. Cut windows of the scheme's own width."
        )
    if tokens.dtype != np.uint32 or tokens.shape != (contexts.shape[0],):
        raise UsageError(
            f"tokens must be uint32 of shape ({contexts.shape[0]},); got {tokens.dtype} of shape "
            f"{tokens.shape}. Pass one token per row of contexts."
        )
    if vocabulary_size is None or tokens.shape[0] == 0:
        return
    highest = max(int(tokens.max()), int(contexts.max(initial=0)))
    if highest >= vocabulary_size:
        raise UsageError(
            f"token ids must be below the vocabulary_size {vocabulary_size}; got {highest}. "
            "Use the tokenizer and the vocabulary size of the marked model."
        )


def pack_units(seeds: NDArray[np.uint32], tokens: Tokens) -> NDArray[np.int64]:
    """Exact unit of a (seed, token) coin, token below 2**31: seed in the high bits. No collision.

    >>> pack_units(np.array([1], dtype=np.uint32), np.array([5], dtype=np.uint32)).tolist()
    [2147483653]
    """
    return (seeds.astype(np.int64) << 31) | tokens.astype(np.int64)


def hash_units(contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
    """Unit of a coin that depends on the whole tuple: a 64-bit hash of it.

    Two different tuples share a unit with probability 2**-64, so among 10**8 tuples any two do
    with probability below 3e-4; the cost of such an accident is one pair not counted.
    Cost: a few nanoseconds a token.
    """
    return hash_columns(*contexts.T, tokens).view(np.int64)
