"""How a case looks at a suspect: which access, which reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.case.access import Access, Reference

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from provenance.check.twin_test import MeasuredTwins
    from provenance.marks import Served
    from provenance.served.index import Index
    from provenance.storage.shapes.requests import ReadAs
    from provenance.suspect.models.language_model import LanguageModel
    from provenance.suspect.models.ngram import NgramReference
    from provenance.suspect.observations import Observations
    from provenance.suspect.planned import Wanted
    from provenance.suspect.positions import Positions

Progress = Callable[[str, int, int | None], None]
"""Told while models read: what is going on, parts done so far, parts in all if known."""

_LOG: Final = logging.getLogger(__name__)


def no_progress(_name: str, _done: int, _total: int | None) -> None:
    """Tell nobody."""


class Observer:
    """Observes suspects, always with the same reference, tokenizer, keyring and index."""

    def __init__(
        self,
        reference: Reference,
        tokenizer: Tokenizer,
        keyring: Served,
        index: Index,
        progress: Progress = no_progress,
    ) -> None:
        self._reference, self._tokenizer = reference, tokenizer
        self._keyring, self._index, self._progress = keyring, index, progress
        self._models: dict[Path, LanguageModel] = {}
        self._ngrams = self._count() if reference.kind == "ngram" else None
        self._model = self._load(reference.model) if reference.model else None

    def observe(self, access: Access) -> Observations:
        """The suspect as the access shows it; of collected files also what their ledgers say."""
        if access.kind == "weights":
            return self._observe_weights(access)
        collected = _read_ledgers(access.paths)
        if access.kind == "outputs":
            observed = self._observe_outputs(access)
        else:
            observed = self._observe_logprobs(access.paths)
        if not collected:
            return observed
        return replace(observed, source={**observed.source, "collected": collected})

    def measure_twins(self, paths: Sequence[Path], folder: Path) -> MeasuredTwins | None:
        """How likely the model in the folder finds served and unserved twins; None without files.

        The second line of evidence; it is judged with the check.
        """
        from provenance.check.twin_test import measure_twins
        from provenance.suspect.access.twins import read_twins

        if not paths:
            return None
        twins = read_twins(list(paths), self._tokenizer, self._keyring.public)
        _LOG.info("Comparing twins")
        return measure_twins(twins, self._load(folder), self._model)

    def observe_in_batches(self, access: Access, batches: int) -> list[Observations]:
        """The same outputs once more, in batches for `provenance.check.trajectory`.

        Empty for other ways of access, and with a model as reference, which would read everything
        a second time.
        """
        from provenance.suspect.access.outputs import count_positions
        from provenance.suspect.positions import split_positions

        if access.kind != "outputs" or self._model is not None:
            return []
        positions = self._read(access.paths, access.reading, access.wanted)
        size = -(-len(positions.outputs) // batches)
        parts = split_positions(positions, size)
        return [self._add_ngrams(count_positions(part)) for part in parts]

    def _observe_outputs(self, access: Access) -> Observations:
        """Text that the suspect wrote."""
        from provenance.suspect.access.outputs import count_positions
        from provenance.suspect.access.probabilities import expect_with_model
        from provenance.suspect.observations import add_expectations

        _LOG.info("Reading outputs")
        positions = self._read(access.paths, access.reading, access.wanted)
        observations = self._add_ngrams(count_positions(positions))
        if self._model is None:
            return observations
        expected = expect_with_model(
            self._model,
            positions,
            self._index,
            self._keyring,
            cache=self._reference.cache,
            progress=self._tell(len(positions.outputs)),
        )
        return add_expectations(observations, expected)

    def _observe_weights(self, access: Access) -> Observations:
        """The suspect's own probabilities over documents."""
        from provenance.suspect.access.documents import Documents
        from provenance.suspect.access.probabilities import observe_weights

        logs, limit = list(access.logs), access.documents
        documents = Documents(logs, self._tokenizer, self._index, self._keyring, limit)
        observations = observe_weights(
            self._load(access.paths[0]),
            self._model,
            documents,
            cache=self._reference.cache,
            progress=self._tell(limit),
        )
        return self._add_ngrams(observations)

    def _observe_logprobs(self, paths: Sequence[Path]) -> Observations:
        """What an API said of its most probable tokens."""
        from provenance.suspect.access.probabilities import observe_logprobs

        observations = observe_logprobs(
            list(paths),
            self._model,
            self._tokenizer,
            self._index,
            self._keyring,
            cache=self._reference.cache,
            progress=self._tell(None),
        )
        return self._add_ngrams(observations)

    def _add_ngrams(self, observations: Observations) -> Observations:
        from provenance.suspect.observations import add_expectations

        if self._ngrams is None:
            return observations
        return add_expectations(observations, self._ngrams.expect(observations))

    def _load(self, folder: Path) -> LanguageModel:
        """A model, loaded once."""
        from provenance.suspect.models.language_model import LanguageModel

        if folder not in self._models:
            self._models[folder] = LanguageModel(
                folder,
                self._keyring.public,
                self._tokenizer,
                other_tokenizer=self._reference.other_tokenizer,
            )
        return self._models[folder]

    def _read(
        self,
        paths: Sequence[Path],
        reading: ReadAs | None = None,
        wanted: Wanted | None = None,
    ) -> Positions:
        from provenance.suspect.access.outputs import read_positions

        return read_positions(list(paths), self._tokenizer, self._keyring.public, reading, wanted)

    def _count(self) -> NgramReference:
        from provenance.suspect.models.ngram import NgramReference

        public = self._keyring.public
        text = self._read(self._reference.text)
        return NgramReference(text, public.vocabulary_size, public.context_width)

    def _tell(self, documents: int | None) -> Callable[[str, int], None]:
        """The progress of one pass, in parts of documents."""
        from provenance.suspect.passes import PART_DOCUMENTS

        total = None if documents is None else -(-documents // PART_DOCUMENTS)
        return lambda name, parts: self._progress(f"Reading with the {name}", parts, total)


def _read_ledgers(paths: Sequence[Path]) -> dict[str, Any]:
    """What ledgers say of files that lie beside one, by name (`name_files`).

    Raises DataError, before anything is read, for a ledger that does not hold or gives other files.
    """
    from provenance.storage.files import name_files
    from provenance.suspect.collect.collect import describe_collected

    found = {
        name: describe_collected(path)
        for name, path in zip(name_files(list(paths)), paths, strict=True)
    }
    return {name: facts for name, facts in found.items() if facts is not None}
