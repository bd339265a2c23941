"""A causal language model that reads documents: its probabilities of the next served token.

Teacher forcing: the model reads prompt and document once, and every position's distribution is
read off. Used for the suspect's weights and for a reference, best the suspect's own base model,
then the unmarked served model, then any model of the kind. Needs torch; safetensors only, and no
code of the model's folder is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import ConfigurationMismatchError, DataError, MissingExtraError, say_briefly
from provenance.keys.keyring import TOKENIZER_FILE, Keyring
from provenance.keys.tokenizer import tokenise
from provenance.storage.checkpoint import TEMPLATE_FILES
from provenance.suspect.models.model_files import describe_model
from provenance.suspect.passes import Reading
from provenance.suspect.positions import Positions
from provenance.suspect.tokenizers.other import OtherTokenizer

try:
    import torch

    from provenance.served.model import check_rows, load_model, load_template_of, load_tokenizer_of
except ImportError as error:
    raise MissingExtraError(
        "reading with a model must have torch; it is not installed.",
        "torch",
        "use --reference ngram",
    ) from error

_LEAST_PROBABILITY: Final = 0.002
_LONGEST: Final = 2048
_LOGITS: Final = 1 << 27
"""Most logits of one forward pass: half a gigabyte in float32."""


@dataclass(frozen=True)
class _Segment:
    """Ids to read at once, the rows of logits to look at, and the positions that they predict."""

    ids: NDArray[np.uint32]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]


class LanguageModel:
    """A model of a folder, ready to read.

    Parameters
    ----------
    folder : transformers model with safetensors weights and tokenizer.json
    keyring : of the served model
    tokenizer : of the served model
    other_tokenizer : allow the folder's tokenizer to be another one, and load it. Say so only if
        the folder can be trusted: a tokenizer file can hang or crash whoever loads it

    Raises
    ------
    ConfigurationMismatchError if the model has another tokenizer and that was not allowed, or one
    whose tokens cannot be spelled; StorageError if it does not load.
    """

    def __init__(
        self,
        folder: Path | str,
        keyring: Keyring,
        tokenizer: Tokenizer,
        *,
        other_tokenizer: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._size, self._tokenizer = keyring.vocabulary_size, tokenizer
        self._other: OtherTokenizer | None = None
        self._own_tokenizer: bytes | None = None
        path = self.folder / TOKENIZER_FILE
        if not other_tokenizer or keyring.is_tokenizer(path):
            self._own_tokenizer = keyring.read_tokenizer(path)
        else:
            self._other = OtherTokenizer(path, tokenizer, keyring.vocabulary_size)

    @property
    def reads_other_tokens(self) -> bool:
        """Whether the model has another tokenizer than the served model."""
        return self._other is not None

    @cached_property
    def description(self) -> Mapping[str, Any]:
        """Hashes of all that determines what the model says."""
        return {**describe_model(self.folder), "least_probability": _LEAST_PROBABILITY}

    def read(self, positions: Positions, wanted: NDArray[np.bool_]) -> Reading:
        """What the model says at the wanted positions.

        Parameters: documents with their positions; bool [m], which of these are worth reading.

        Notes
        -----
        Probabilities below .002 are left out: they round to weight 0. Cost: one forward pass over
        the documents; memory: one batch of logits, and 20 bytes per kept (position, token).
        """
        segments = list(_cut(self._rows(positions, wanted), self._longest))
        places, read = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        tokens, masses = [np.empty(0, dtype=np.uint32)], [np.empty(0)]
        kept = 0.0
        for segment, logs in self._walk(segments):
            said, share = self._map(np.exp(logs))
            place, token = np.nonzero(said > _LEAST_PROBABILITY)
            places.append(segment.positions[place])
            tokens.append(token.astype(np.uint32))
            masses.append(said[place, token].astype(np.float64))
            read.append(segment.positions)
            kept += share
        seen = np.sort(np.concatenate(read))
        return Reading(
            contexts=positions.contexts[np.concatenate(places)],
            tokens=np.concatenate(tokens),
            masses=np.concatenate(masses),
            visited=positions.contexts[seen],
            tally={
                "positions": float(wanted.sum()),
                "positions_read": float(seen.shape[0]),
                "mass_kept": kept,
            },
        )

    def log_likelihoods(
        self, prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]]
    ) -> NDArray[np.float64]:
        """Mean log-probability (nats) per token of each response after its prompt: float64 [n].

        Prompts and responses are ids of the served tokenizer; a model with another one reads their
        text, and the mean is over its own tokens. Of a text longer than the model the end is read.
        Cost: one forward pass; memory: one batch of logits.
        """
        segments = []
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids, start = np.concatenate([prompt, response]), prompt.shape[0]
            if self._other is not None:
                ids, start = self._other.split(prompt, response)
            dropped = max(ids.shape[0] - self._longest, 0)
            ids, start = ids[dropped:], max(start - dropped, 1)
            rows = np.arange(start, ids.shape[0], dtype=np.int64) - 1
            segments.append(_Segment(ids, rows, np.array([number])))
        found = np.zeros(len(segments))
        for segment, logs in self._walk(segments):
            rows, number = np.arange(segment.rows.shape[0]), segment.positions[0]
            own = logs[rows, segment.ids[segment.rows + 1]].astype(np.float64)
            found[number] = own.mean() if own.size else 0.0
        if not np.isfinite(found).all():
            raise DataError(
                f"{self.folder}: the model must give every token of a response a probability above "
                "0; it gave 0. Save it in a wider type (bfloat16 or float32)."
            )
        return found

    def _walk(self, segments: list[_Segment]) -> Iterator[tuple[_Segment, NDArray[np.float32]]]:
        """Every segment with its log-probabilities, batch by batch, shortest first."""
        ascending = sorted(segments, key=lambda segment: len(segment.ids))
        start = 0
        while start < len(ascending):
            batch = _take(ascending, start, self._logits_per_row)
            start += len(batch)
            yield from zip(batch, self._predict(batch), strict=True)

    def _rows(
        self, positions: Positions, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]]:
        """Per document: the ids that the model reads, rows of logits to look at, and positions."""
        chosen = np.flatnonzero(wanted)
        documents = positions.rows[chosen]
        for row in np.unique(documents):
            first, last = np.searchsorted(documents, [row, row + 1])
            own = chosen[first:last]
            prompt, output = self._prompt(positions, int(row)), positions.outputs[row]
            places = positions.offsets[own] + prompt.shape[0]
            ids = np.concatenate([prompt, output])
            if self._other is None:
                yield ids, places - 1, own
                continue
            theirs, rows = self._other.align(ids)
            usable = rows[places] >= 0
            yield theirs, rows[places][usable], own[usable]

    def _prompt(self, positions: Positions, row: int) -> NDArray[np.uint32]:
        """Served ids of what stands before a document: a chat is put into the model's template."""
        chat = positions.chats[row] if positions.chats else None
        if chat is None or self._template is None:
            return positions.prompts[row]
        messages = [{"role": role, "content": content} for role, content in chat]
        origin = f"{self.folder}: the chat template"
        try:
            text = self._template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template raises what it likes
            reason = say_briefly(error)
            raise DataError(
                f"{origin} must take the messages of the outputs; got: {reason}. "
                "Repair the roles, or give prompts instead of messages."
            ) from error
        return tokenise(self._tokenizer, [str(text)], origin)[0]

    @cached_property
    def _template(self) -> Callable[..., Any] | None:
        """The model's chat template (run in the sandbox of transformers), if it has one."""
        if not any((self.folder / name).exists() for name in TEMPLATE_FILES):
            return None
        tokenizer = (
            load_tokenizer_of(self.folder)
            if self._own_tokenizer is None
            else load_template_of(self.folder, self._own_tokenizer)
        )
        return tokenizer.apply_chat_template if tokenizer.chat_template else None

    @cached_property
    def _model(self) -> Any:
        return load_model(self.folder)

    @cached_property
    def _readable(self) -> int:
        """Ids below this one can be read."""
        tokens = self._tokenizer.get_vocab(with_added_tokens=True).values()
        needed = max(tokens, default=-1) + 1 if self._other is None else self._other.size
        return check_rows(self._model, needed, self.folder)

    @cached_property
    def _longest(self) -> int:
        return min(getattr(self._model.config, "max_position_embeddings", _LONGEST), _LONGEST)

    @cached_property
    def _logits_per_row(self) -> int:
        return int(self._model.config.vocab_size)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _predict(self, batch: list[_Segment]) -> Iterator[NDArray[np.float32]]:
        """Log-probabilities at the rows of each segment: float32 [rows, logits]."""
        width = max(len(segment.ids) for segment in batch)
        greatest = max(int(segment.ids.max(initial=0)) for segment in batch)
        if greatest >= self._readable:
            raise ConfigurationMismatchError(
                f"{self.folder}: the model must have an embedding for every token that it reads; "
                f"it has {self._readable}, and token {greatest} stands in the documents. "
                "Give a model with the served vocabulary."
            )
        inputs = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, segment in enumerate(batch):
            inputs[row, : len(segment.ids)] = torch.from_numpy(segment.ids.astype(np.int64))
            mask[row, : len(segment.ids)] = 1
        logits = self._model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
        for row, segment in enumerate(batch):
            chosen = logits[row, torch.from_numpy(segment.rows)]
            if self._other is None:
                chosen = chosen[:, : self._size]
            logs = chosen.float().log_softmax(-1)
            if logs.isnan().any():
                raise DataError(
                    f"{self.folder}: the model must give finite numbers for every token; it gave "
                    "NaN or infinity while reading. Save it in a wider type (bfloat16 or float32)."
                )
            yield logs.cpu().numpy()

    def _map(self, probabilities: NDArray[np.float32]) -> tuple[NDArray[Any], float]:
        """Over the served vocabulary, and the mass that was kept, summed over positions."""
        if self._other is None:
            return probabilities, float(probabilities.shape[0])
        masses, kept = self._other.map_masses(probabilities)
        return masses, float(kept.sum())


def _take(segments: list[_Segment], start: int, size: int) -> list[_Segment]:
    """As many of the next segments (ascending lengths) as keep the logits of a pass in bounds."""
    end = start + 1
    while end < len(segments) and (end + 1 - start) * len(segments[end].ids) * size < _LOGITS:
        end += 1
    return segments[start:end]


def _cut(
    documents: Iterator[tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]],
    longest: int,
) -> Iterator[_Segment]:
    """Segments of at most `longest` ids; all but the first of a document predict their second half.

    Only ids before a position are needed to predict it, so the last ids need not be read.
    """
    for ids, rows, own in documents:
        start, done = 0, -1
        while done < ids.shape[0] - 1:
            end = min(start + longest, ids.shape[0])
            inside = (rows > done) & (rows < end)
            if inside.any():
                last = int(rows[inside].max()) + 1
                yield _Segment(ids[start:last], rows[inside] - start, own[inside])
            done, start = end - 1, end - longest // 2
