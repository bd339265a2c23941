"""The watermark itself: labels -> key of a context -> draw. Knows no serving stack.

For every token of a response:

1. The context is the last k tokens *of the response*. The first k tokens have none: ordinary draw.
2. A context that already stood before a token of the same response: ordinary draw. Without this
   rule text loops, and a single response would not be undistorted.
3. The selector gives the context's slot. `control`, or an attribute for which the request carries
   no label: ordinary draw.
4. Else the scheme draws with the coins of the key of (slot, value of the label).

Everything follows from the ids of the response alone, so nothing is kept between steps, and batch
neighbours, padding, speculative decoding and re-use of one object cannot change a mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from provenance.contexts import first_occurrences, pack, response_contexts
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.keyring import Key, Keyring, UnlockedKeyring
from provenance.keys.schedule import CONTROL, GLOBAL, SINGLE_VALUE
from provenance.schemes import Scheme, make_scheme
from provenance.schemes.base import draw_unmarked

__all__ = ["Draw", "Labels", "Watermark"]

Labels = Mapping[str, str]
"""Attribute values of one request, for example week=2026-W17. Names without a slot are ignored."""

_ROW_FROM = 4
"""From a quarter of the vocabulary on, a whole row of coins is cheaper than scattered ones."""


@dataclass(frozen=True)
class Draw:
    """One drawn token, and the key whose coins decided it (None: an ordinary draw)."""

    token: int
    key: Key | None


class Watermark:
    """Draws tokens under a keyring. Holds no state but its own source of fresh randomness.

    Parameters
    ----------
    keyring : the unlocked keyring; its scheme is used
    generator : source of fresh uniforms for ordinary draws (and for schemes that need them);
        default: a new one seeded by the operating system. No global generator is touched.
    """

    def __init__(
        self, keyring: UnlockedKeyring, generator: np.random.Generator | None = None
    ) -> None:
        self.keyring = keyring
        specification = keyring.public.scheme
        self.scheme: Scheme = make_scheme(specification.name, specification.parameters)
        self._generator = generator if generator is not None else np.random.default_rng()

    @classmethod
    def load(cls, folder: Path | str, generator: np.random.Generator | None = None) -> Watermark:
        """Open the keyring of a folder; see `Keyring.load` and `Keyring.unlock` for the errors."""
        return cls(Keyring.load(folder).unlock(folder), generator)

    def check_labels(self, labels: Labels) -> None:
        """Raise ConfigurationMismatchError if a label names a slot but has no key there.

        A new week must be added to the keyring before it is served: it is never silently unmarked.
        """
        for slot in self.keyring.schedule.slots[2:]:
            if slot.name in labels and labels[slot.name] not in slot.values:
                raise ConfigurationMismatchError(
                    f"label {slot.name}={labels[slot.name]} must have a key in keyring "
                    f"{self.keyring.public.id}; it has none. Run: provenance keys add-value"
                )

    def draw(
        self,
        labels: Labels,
        response: NDArray[np.uint32],
        candidates: NDArray[np.uint32],
        probabilities: NDArray[np.float64],
    ) -> Draw:
        """Draw the next token of one response.

        Parameters
        ----------
        labels : attribute values of the request
        response : uint32 [n], ids generated so far, without prompt and padding
        candidates : uint32 [m], ids that survive top-k / top-p
        probabilities : float64 [m], their *final* probabilities; need not be normalised

        Notes
        -----
        Cost: one coin a candidate where the context is marked; else one uniform.
        """
        key = self._keys([labels], [response])[0]
        return self._draw(key, response, candidates, probabilities, self._generator.random())

    def draw_batch(
        self,
        labels: Sequence[Labels],
        responses: Sequence[NDArray[np.uint32]],
        probabilities: NDArray[np.float64],
    ) -> list[Draw]:
        """Draw the next token of each row of a batch; rows are independent of each other.

        Parameters
        ----------
        labels, responses : one entry per row, as for `draw`
        probabilities : float64 [rows, vocabulary], final; tokens with probability 0 are no
            candidates
        """
        if not len(labels) == len(responses) == probabilities.shape[0]:
            raise UsageError(
                f"labels, responses and probabilities must have one entry per row; got "
                f"{len(labels)}, {len(responses)} and {probabilities.shape[0]}."
            )
        uniforms = self._generator.random(len(labels))
        keys = self._keys(labels, responses)
        plain = [row for row, key in enumerate(keys) if key is None]
        drawn = dict(zip(plain, _draw_rows(probabilities[plain], uniforms[plain]), strict=True))
        draws = []
        for row, key in enumerate(keys):
            if key is None:
                draws.append(Draw(int(drawn[row]), None))
                continue
            candidates = np.flatnonzero(probabilities[row]).astype(np.uint32)
            kept = probabilities[row, candidates]
            uniform = float(uniforms[row])
            draws.append(self._draw(key, responses[row], candidates, kept, uniform))
        return draws

    def marked_positions(self, labels: Labels, response: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which tokens of a finished response were drawn under a key (replayed from its ids).

        Returns bool [n]. Cost: one coin a token.
        """
        width = self.keyring.context_width
        contexts, _ = response_contexts(response, width)
        marked = np.zeros(response.shape[0], dtype=np.bool_)
        if contexts.shape[0]:
            slots = self.keyring.slots_of(contexts)
            keyed = [self._key_of_slot(name, labels) for name in self.keyring.schedule.names]
            has_key = np.array([key is not None for key in keyed])
            marked[width:] = has_key[slots] & first_occurrences(pack(contexts))
        return marked

    def _key_of_slot(self, slot: str, labels: Labels) -> Key | None:
        if slot == CONTROL:
            return None
        value = SINGLE_VALUE if slot == GLOBAL else labels.get(slot)
        return None if value is None else self.keyring.key(slot, value)

    def _keys(
        self, labels: Sequence[Labels], responses: Sequence[NDArray[np.uint32]]
    ) -> list[Key | None]:
        """Rules 1 to 3 for the next token of each row."""
        width = self.keyring.context_width
        keys: list[Key | None] = [None] * len(responses)
        lengths = np.array([ids.shape[0] for ids in responses])
        rows = []
        for length in np.unique(lengths[lengths >= width]):
            alike = np.flatnonzero(lengths == length)
            repeated = _are_repeated(np.stack([responses[int(i)] for i in alike]), width)
            rows += alike[~repeated].tolist()
        if rows:
            contexts = np.stack([responses[i][-width:] for i in rows])
            for i, slot in zip(rows, self.keyring.slots_of(contexts), strict=True):
                keys[i] = self._key_of_slot(self.keyring.schedule.names[slot], labels[i])
        return keys

    def _draw(
        self,
        key: Key | None,
        response: NDArray[np.uint32],
        candidates: NDArray[np.uint32],
        probabilities: NDArray[np.float64],
        uniform: float,
    ) -> Draw:
        if key is None:
            return Draw(int(candidates[draw_unmarked(probabilities, uniform)]), None)
        context = response[-self.keyring.context_width :]
        size = self.keyring.public.vocabulary_size
        if int(candidates.max()) >= size:
            raise ConfigurationMismatchError(
                f"candidates must be below the keyring's vocabulary size {size}; got "
                f"{int(candidates.max())}. Use the keyring of this model."
            )
        if candidates.shape[0] * _ROW_FROM >= size:
            words = key.row(context, size)[candidates]
        else:
            words = key.words(np.tile(context, (candidates.shape[0], 1)), candidates)
        return Draw(int(candidates[self.scheme.draw(probabilities, words, uniform)]), key)


def _are_repeated(responses: NDArray[np.uint32], width: int) -> NDArray[np.bool_]:
    """Rows whose last `width` ids already stood before a token: uint32 [rows, n] -> bool [rows]."""
    earlier = responses.shape[1] - width
    alike = np.ones((responses.shape[0], earlier), dtype=np.bool_)
    for j in range(width):
        alike &= responses[:, j : j + earlier] == responses[:, earlier + j, np.newaxis]
    return np.asarray(alike.any(axis=1))


def _draw_rows(
    probabilities: NDArray[np.float64], uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """`draw_unmarked` for each row of a dense batch: float64 [rows, V], [rows] -> int64 [rows]."""
    cumulative = np.cumsum(probabilities, axis=1)
    targets = uniforms * cumulative[:, -1]
    drawn = np.asarray((cumulative <= targets[:, np.newaxis]).sum(axis=1), dtype=np.int64)
    for row in np.flatnonzero(drawn == probabilities.shape[1]):
        drawn[row] = draw_unmarked(probabilities[row], float(uniforms[row]))
    return drawn
