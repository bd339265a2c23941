"""A foreign scheme as the mark under test: one key, every context, coins that pairs may share.

Everything of a check and a detection works as for our own keyring, with three differences. Pairs of
one effective unit are one coin: their weights are added up and cut to 1,023 levels before any coin
is looked at (`marks.units`). There is no control slot and no attribute: one key marks every
context. Placebo keys come from the scheme's own key space.

The id of such a mark fixes scheme, parameters, tokenizer and key. It is a slow hash (scrypt), since
foreign keys can be short: trying one key costs some 30 ms, more than trying it on marked text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import MAXIMUM_VOCABULARY, first_occurrences
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.commitment import Commitment
from provenance.keys.keyring import Keyring, SchemeSpecification
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY, SELECTOR, SINGLE_VALUE, Schedule
from provenance.marks.base import TextCoins, scored_positions
from provenance.marks.foreign.scheme import (
    ForeignScheme,
    ScoredOtherwise,
    ScoredTogether,
    Tokens,
)
from provenance.marks.sharing import (
    Groups,
    group_pairs,
    quantise_weights,
    sum_weights,
)
from provenance.stats.laws import NullLaw
from provenance.storage.files import canonical_json

Integers = NDArray[np.int64]

_PROBES: Final = 4096
_FEWEST_UNITS: Final = 0.9


@dataclass(frozen=True)
class ForeignKey:
    """One key of a foreign scheme: the scheme that holds it."""

    scheme: ForeignScheme
    slot: str = GLOBAL
    value: str = SINGLE_VALUE

    def group(self, contexts: Tokens, tokens: Tokens) -> Groups:
        """See `provenance.marks.OpenKey`; contexts may have more columns than the scheme's width.

        Which pairs are one coin may depend on the key, but not on how its coins fall. Cost: one
        sort.
        """
        contexts = cut_contexts(contexts, self.scheme)
        usable = self.scheme.usable(contexts, tokens)
        return group_pairs(self.scheme.units(contexts, tokens), usable)

    def score(self, contexts: Tokens, tokens: Tokens) -> Integers:
        """See `provenance.marks.OpenKey`."""
        return self.scheme.score(cut_contexts(contexts, self.scheme), tokens)

    def open(
        self, contexts: Tokens, tokens: Tokens, weights: Integers
    ) -> tuple[Integers, Integers]:
        """See `provenance.marks.OpenKey`. Cost: one sort and one score a coin."""
        groups = self.group(contexts, tokens)
        sums = sum_weights(weights, groups.coins, groups.first.shape[0])
        merged = quantise_weights(sums)
        some = merged != 0
        first = groups.first[some]
        return merged[some], self.score(contexts[first], tokens[first])


@dataclass(frozen=True)
class Original:
    """The original's own object, its key in it, and the vocabulary size given beside it.

    With the scheme's name all that fixes the scheme: what is disclosed, if the user says so.
    """

    configuration: Mapping[str, Any] = field(repr=False)
    vocabulary_size: int | None = None


class ForeignMark:
    """A scheme under its key, with the tokenizer that it is used with; satisfies `Mark`.

    Parameters
    ----------
    scheme : holds the key
    vocabulary_size : ids must be below it
    tokenizer_sha256 : hex digest of the served model's tokenizer.json
    original : what the scheme was read from; only needed if its key is to be disclosed

    Raises ConfigurationMismatchError (78) where no valid test of the scheme exists.
    """

    def __init__(
        self,
        scheme: ForeignScheme,
        vocabulary_size: int,
        tokenizer_sha256: str,
        original: Original | None = None,
    ) -> None:
        if not 2 <= vocabulary_size <= MAXIMUM_VOCABULARY:
            raise UsageError(
                f"vocabulary size must be 2 .. {MAXIMUM_VOCABULARY}; got {vocabulary_size}."
            )
        if scheme.refusal:
            raise ConfigurationMismatchError(
                f"a scheme must have a valid test; {scheme.name} has none: {scheme.refusal}. "
                "Nothing to do."
            )
        self.scheme = scheme
        self.original = original
        self.public = _describe(scheme, vocabulary_size, tokenizer_sha256)

    def __repr__(self) -> str:
        return f"ForeignMark(scheme={self.scheme.name!r}, id={self.public.id!r})"

    @property
    def schedule(self) -> Schedule:
        """Everything is `global`."""
        return self.public.schedule

    @property
    def context_width(self) -> int:
        """The scheme's width, at least 1: a scheme without context is still indexed by one."""
        return self.public.context_width

    @property
    def null_law(self) -> NullLaw:
        return self.scheme.null_law

    @property
    def caveat(self) -> str:
        """The scheme's, and what sharing coins costs."""
        said = [self.scheme.caveat]
        if self.shares_coins:
            said.append("contexts share coins, so the counts of the index weigh nothing")
        return "; ".join(text for text in said if text)

    @cached_property
    def shares_coins(self) -> bool:
        """By design, or because this very key makes many contexts share theirs."""
        if self.scheme.shares_coins:
            return True
        rng = np.random.default_rng(0)
        shape = (_PROBES, self.scheme.width)
        limit = min(self.public.vocabulary_size, 1 << 16)
        contexts = np.unique(rng.integers(0, limit, shape, dtype=np.uint32), axis=0)
        tokens = np.ones(contexts.shape[0], dtype=np.uint32)
        units = np.unique(self.scheme.units(contexts, tokens)).shape[0]
        return bool(units < _FEWEST_UNITS * contexts.shape[0])

    def slots_of_names(self, names: Integers) -> NDArray[np.uint8]:
        """`global` for every context: uint8 [n]."""
        return np.full(names.shape, self.schedule.names.index(GLOBAL), dtype=np.uint8)

    def open(self, slot: str, value: str) -> ForeignKey:
        """The one key. Raises ConfigurationMismatchError for another (slot, value)."""
        if (slot, value) != GLOBAL_KEY:
            raise ConfigurationMismatchError(
                f"a {self.scheme.name} mark must be asked for its {GLOBAL} key; got {slot}={value}."
            )
        return ForeignKey(self.scheme)

    def placebo(self, seed: bytes, number: int) -> ForeignKey:
        """A random key of the scheme's own key space that does not correlate with the true one."""
        words = np.frombuffer(hashlib.sha256(b"placebo" + seed).digest(), dtype=np.uint64)
        rng = np.random.default_rng([*words.tolist(), number])
        scheme = self.scheme.with_key(self.scheme.random_key(rng))
        return ForeignKey(scheme, "placebo", str(number))

    def read(self, token_ids: Tokens) -> Iterator[TextCoins]:
        """Every unit once, at its first occurrence.

        Where the original seeds the first tokens from its padding, they are scored too: a text that
        is no whole response only adds independent coins. Cost: one score a unit and one sort.
        """
        return self.read_pooled([token_ids])

    def read_pooled(self, texts: Sequence[Tokens]) -> Iterator[TextCoins]:
        """One key, which yields also where no text is long enough for a coin."""
        width, padding = self.scheme.width, self.scheme.padding
        before = 0 if padding is None else width
        pairs = [cut_windows(ids, width, padding) for ids in texts]
        contexts = np.concatenate([contexts for contexts, _ in pairs])
        tokens = np.concatenate([tokens for _, tokens in pairs])
        positions = scored_positions([ids.shape[0] for ids in texts], width - before)
        usable = self.scheme.usable(contexts, tokens)
        first = first_occurrences(self.scheme.units(contexts, tokens))
        # a unit that holds an unusable pair is one coin under every key, whichever pair comes first
        kept = np.flatnonzero(first & usable)
        contexts, tokens = contexts.take(kept, axis=0), tokens.take(kept)
        original = None
        if isinstance(self.scheme, ScoredTogether):
            scores, natural = self.scheme.score_both(contexts, tokens)
            original = float(natural.sum())
        else:
            scores = self.scheme.score(contexts, tokens)
            if isinstance(self.scheme, ScoredOtherwise):
                original = float(self.scheme.original_scores(contexts, tokens).sum())
        yield TextCoins(GLOBAL, SINGLE_VALUE, positions[kept], scores, original)


def cut_windows(ids: Tokens, width: int, padding: int | None) -> tuple[Tokens, Tokens]:
    """Every (context, token) of one text: contexts uint32 [n, width] and tokens uint32 [n].

    With padding, one for every token of the text; else the first `width` tokens have none.
    """
    before = 0 if padding is None else width
    ids = np.concatenate([np.full(before, padding or 0, dtype=np.uint32), ids])
    if ids.shape[0] <= width:
        return np.empty((0, width), dtype=np.uint32), np.empty(0, dtype=np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(ids, width + 1)
    return np.ascontiguousarray(windows[:, :width]), ids[width:]


def cut_contexts(contexts: Tokens, scheme: ForeignScheme) -> Tokens:
    """The last `width` tokens of each context: uint32 [n, width]."""
    return np.ascontiguousarray(contexts[:, contexts.shape[1] - scheme.width :])


def is_foreign(public: Keyring) -> bool:
    """Whether this is the description of such a mark, and not the public half of a keyring."""
    return (SELECTOR, SINGLE_VALUE) not in public.commitments


def derive_salt(public: Keyring) -> bytes:
    """What the id of such a mark fixes beside its key: scheme, vocabulary size and tokenizer."""
    fixed: dict[str, Any] = {
        "scheme": public.scheme.to_json(),
        "vocabulary_size": public.vocabulary_size,
        "tokenizer_sha256": public.tokenizer_sha256,
    }
    return hashlib.sha256(b"provenance-foreign-v1" + canonical_json(fixed)).digest()


def derive_id(commitment: Commitment) -> str:
    """The id of such a mark: a hash of its commitment."""
    return hashlib.sha256(commitment.sha256.encode()).hexdigest()[:16]


def _describe(scheme: ForeignScheme, vocabulary_size: int, tokenizer_sha256: str) -> Keyring:
    """The public half: what a keyring.json would say, but for an id that is a function of it."""
    described = Keyring(
        id="",
        scheme=SchemeSpecification(scheme.name, dict(scheme.parameters)),
        context_width=max(scheme.width, 1),
        vocabulary_size=vocabulary_size,
        tokenizer_sha256=tokenizer_sha256,
        schedule=Schedule.from_shares({GLOBAL: 1.0}),
        commitments={},
    )
    salt = derive_salt(described)
    key = getattr(scheme, "keys", None) or scheme.key  # type: ignore[attr-defined]
    stretched = hashlib.scrypt(canonical_json(key), salt=salt, n=1 << 14, r=8, p=1, dklen=32)
    commitment = Commitment(salt.hex(), hashlib.sha256(salt + stretched).hexdigest())
    return replace(described, id=derive_id(commitment), commitments={GLOBAL_KEY: commitment})
