"""A reference that is a language model: what it expected at each position of the outputs.

The model reads each output after its prompt (teacher forcing), and its probabilities of the next
token are added up per (context, token). Best is the suspect's own base model, then the unmarked
served model, then any model with the served tokenizer. Needs torch; safetensors only, and no code
of the model's folder is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.errors import MissingExtraError
from provenance.files import sha256_of_file
from provenance.keys.keyring import TOKENIZER_FILE, Keyring
from provenance.suspect.expectations import Expectations
from provenance.suspect.outputs import Positions

try:
    import torch

    from provenance.embed.transformers import load_model
except ImportError as error:
    raise MissingExtraError(
        "a reference model must have torch; it is not installed. "
        "Run: pip install 'provenance[torch]', or use --reference ngram"
    ) from error

__all__ = ["expect_with_model"]

_LEAST_PROBABILITY: Final = 0.002
_LONGEST: Final = 2048
_LOGITS: Final = 1 << 27
"""Most logits of one forward pass: half a gigabyte in float32."""
_MERGE_AT: Final = 1 << 22


@dataclass(frozen=True)
class _Segment:
    """Ids to read at once, and the positions (numbers in `Positions`) that they predict."""

    ids: NDArray[np.uint32]
    places: NDArray[np.int64]
    positions: NDArray[np.int64]


def expect_with_model(
    positions: Positions,
    wanted: NDArray[np.bool_],
    folder: Path | str,
    keyring: Keyring,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Expectations:
    """E(c, t) = sum over the positions of c of the model's probability of t.

    Parameters
    ----------
    positions : the suspect's outputs with their prompts
    wanted : bool [m], positions worth predicting (`provenance.scoring.find_served`)
    folder : transformers model with the served tokenizer and safetensors weights
    progress : called with (segments done, segments in all)

    Raises
    ------
    ConfigurationMismatchError if the model has another tokenizer; StorageError if it does not load.

    Notes
    -----
    Probabilities below .002 are left out: they round to weight 0. Cost: one forward pass over the
    outputs; memory: one batch of logits and 16 bytes per kept (context, token).
    """
    folder = Path(folder)
    keyring.check_tokenizer(folder / TOKENIZER_FILE)
    model = load_model(folder)
    longest = min(getattr(model.config, "max_position_embeddings", _LONGEST), _LONGEST)
    segments = sorted(_cut(positions, wanted, longest), key=lambda segment: len(segment.ids))
    contexts, rows = np.unique(positions.contexts, return_inverse=True)
    merger = _Merger(keyring.vocabulary_size)
    done = 0
    while done < len(segments):
        batch = _take(segments, done, keyring.vocabulary_size)
        done += len(batch)
        for segment, probabilities in zip(batch, _predict(model, batch, keyring), strict=True):
            place, token = (probabilities > _LEAST_PROBABILITY).nonzero(as_tuple=True)
            merger.add(
                rows[segment.positions][place.numpy()],
                token.numpy(),
                probabilities[place, token].numpy(),
            )
        if progress is not None:
            progress(done, len(segments))
    found, tokens, masses = merger.close()
    weights = sorted(folder.glob("*.safetensors"))
    reference = {
        "kind": "model",
        "sha256": {path.name: sha256_of_file(path) for path in weights},
        "positions": int(wanted.sum()),
    }
    return Expectations(contexts[found], tokens, masses, reference)


class _Merger:
    """Sums masses per (row, token) without keeping more than a few million entries apart."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys: list[NDArray[np.int64]] = []
        self._masses: list[NDArray[np.float64]] = []
        self._pending = 0

    def add(
        self, rows: NDArray[np.int64], tokens: NDArray[np.int64], masses: NDArray[np.float32]
    ) -> None:
        self._keys.append(rows * self._size + tokens)
        self._masses.append(masses.astype(np.float64))
        self._pending += rows.shape[0]
        if self._pending > _MERGE_AT:
            self._merge()

    def _merge(self) -> None:
        if self._keys:
            keys, inverse = np.unique(np.concatenate(self._keys), return_inverse=True)
            masses = np.bincount(inverse, weights=np.concatenate(self._masses))
            self._keys, self._masses, self._pending = [keys], [masses.astype(np.float64)], 0

    def close(self) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float64]]:
        """Rows, tokens and masses of all pairs."""
        self._merge()
        if not self._keys:
            none = np.empty(0, dtype=np.int64)
            return none, none.astype(np.uint32), np.empty(0)
        rows, tokens = np.divmod(self._keys[0], self._size)
        return rows, tokens.astype(np.uint32), self._masses[0]


def _cut(positions: Positions, wanted: NDArray[np.bool_], longest: int) -> Iterator[_Segment]:
    """Segments of at most `longest` ids; all but the first of an output predict their second half.

    The ids that predict a position are those before it, so its own id need not be read.
    """
    chosen = np.flatnonzero(wanted)
    rows = positions.rows[chosen]
    for row in np.unique(rows):
        own = chosen[np.searchsorted(rows, row) : np.searchsorted(rows, row, side="right")]
        prompt = positions.prompts[row]
        ids = np.concatenate([prompt, positions.outputs[row]])
        places = positions.offsets[own] + prompt.shape[0]
        start, predicted = 0, 0
        while predicted < ids.shape[0]:
            end = min(start + longest, ids.shape[0])
            inside = (places > predicted) & (places <= end)
            if inside.any():
                yield _Segment(ids[start:end], places[inside] - start, own[inside])
            predicted, start = end, end - longest // 2


def _take(segments: list[_Segment], start: int, size: int) -> list[_Segment]:
    """As many of the next segments (ascending lengths) as keep the logits of a pass in bounds."""
    end = start + 1
    while end < len(segments) and (end + 1 - start) * len(segments[end].ids) * size < _LOGITS:
        end += 1
    return segments[start:end]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _predict(model: Any, batch: list[_Segment], keyring: Keyring) -> Iterator[torch.Tensor]:
    """Probabilities at the places of each segment: float [places, vocabulary]."""
    width = max(len(segment.ids) for segment in batch)
    inputs = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, segment in enumerate(batch):
        inputs[row, : len(segment.ids)] = torch.from_numpy(segment.ids.astype(np.int64))
        mask[row, : len(segment.ids)] = 1
    logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
    for row, segment in enumerate(batch):
        before = torch.from_numpy(segment.places - 1)
        yield logits[row, before, : keyring.vocabulary_size].float().softmax(-1).cpu()
