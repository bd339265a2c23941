"""How `check` looks at a suspect: which access, which reference, with bars on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from provenance.commands.console import words
from provenance.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from provenance.check.twin_test import MeasuredTwins
    from provenance.marks import Served
    from provenance.served.index import Index
    from provenance.suspect.access.probabilities import Progress
    from provenance.suspect.models.language_model import LanguageModel
    from provenance.suspect.models.ngram import NgramReference
    from provenance.suspect.observations import Observations
    from provenance.suspect.positions import Positions


@dataclass(frozen=True)
class Access:
    """What there is of a suspect, and how it is looked at: outputs, weights or logprobs.

    paths : files of outputs or logprobs, or the folder of the model; logs, documents : what the
    model is to read, and at most how many responses of it
    """

    kind: Literal["outputs", "weights", "logprobs"]
    paths: tuple[Path, ...]
    logs: tuple[Path, ...] = ()
    documents: int | None = None

    @classmethod
    def choose(
        cls,
        outputs: list[Path] | None,
        weights: Path | None,
        logprobs: list[Path] | None,
        logs: list[Path] | None,
        documents: int | None,
    ) -> Access:
        """The one kind of access that was asked for; UsageError for none or several."""
        given = [bool(outputs), weights is not None, bool(logprobs)]
        if sum(given) != 1:
            raise UsageError(
                f"a check must have one of OUTPUTS, --weights and --logprobs; got {sum(given)}. "
                "Name what there is of the suspect."
            )
        if (weights is not None) != bool(logs) or (documents is not None and not logs):
            raise UsageError(
                "--weights and --read must be given together, and --documents only with them; "
                "one is missing. Name a served log for the model to read."
            )
        if weights is not None:
            return cls("weights", (weights,), tuple(logs or ()), documents)
        if outputs:
            return cls("outputs", tuple(outputs))
        return cls("logprobs", tuple(logprobs or ()))

    def of(self, path: Path) -> Access:
        """The same kind of access to another model."""
        return replace(self, paths=(path,))


@dataclass(frozen=True)
class Reference:
    """The options that say what is expected of an innocent model.

    kind : none, ngram or a model's folder; text : unmarked outputs for ngram; cache : where passes
    of models are kept; other_tokenizer : models may have another tokenizer than the served one
    """

    kind: str
    text: tuple[Path, ...]
    cache: Path | None
    other_tokenizer: bool

    def __post_init__(self) -> None:
        if (self.kind == "ngram") != bool(self.text):
            raise UsageError(
                "--reference ngram and --reference-text must be given together; one is missing. "
                "Give outputs of a model that was not trained on the log."
            )

    @property
    def model(self) -> Path | None:
        """Folder of the reference model, if it is one."""
        return None if self.kind in ("none", "ngram") else Path(self.kind)


class Observer:
    """Observes suspects, always with the same reference, tokenizer, keyring and index."""

    def __init__(
        self, reference: Reference, tokenizer: Tokenizer, keyring: Served, index: Index
    ) -> None:
        self._reference, self._tokenizer = reference, tokenizer
        self._keyring, self._index = keyring, index
        self._models: dict[Path, LanguageModel] = {}
        self._ngrams = self._count() if reference.kind == "ngram" else None
        self._model = self._load(reference.model) if reference.model else None

    @property
    def has_reference(self) -> bool:
        """Whether anything is expected of an innocent model."""
        return self._reference.kind != "none"

    def observe(self, access: Access) -> Observations:
        """The suspect as the access shows it."""
        paths = list(access.paths)
        if access.kind == "outputs":
            return self.observe_outputs(paths)
        if access.kind == "logprobs":
            return self.observe_logprobs(paths)
        return self.observe_weights(paths[0], list(access.logs), access.documents)

    def measure_twins(self, paths: list[Path], folder: Path) -> MeasuredTwins | None:
        """How likely the model in the folder finds served and unserved twins; None without files.

        The second line of evidence; it is judged with the check.
        """
        from provenance.check.twin_test import measure_twins
        from provenance.suspect.access.twins import read_twins

        if not paths:
            return None
        twins = read_twins(paths, self._tokenizer, self._keyring.public)
        with words.status("Comparing twins"):
            return measure_twins(twins, self._load(folder), self._model)

    def observe_outputs(self, paths: list[Path]) -> Observations:
        """Text that the suspect wrote."""
        from provenance.suspect.access.outputs import count_positions
        from provenance.suspect.access.probabilities import expect_with_model
        from provenance.suspect.observations import add_expectations

        with words.status("Reading outputs"):
            positions = self._read(paths)
            observations = self._add_ngrams(count_positions(positions))
        if self._model is None:
            return observations
        with _progress(len(positions.outputs)) as progress:
            expected = expect_with_model(
                self._model,
                positions,
                self._index,
                self._keyring,
                cache=self._reference.cache,
                progress=progress,
            )
        return add_expectations(observations, expected)

    def observe_in_batches(self, access: Access, batches: int) -> list[Observations]:
        """The same outputs once more, in batches for `provenance.check.trajectory`.

        Empty for other ways of access, and with a model as reference, which would read everything
        a second time.
        """
        from provenance.suspect.access.outputs import count_positions
        from provenance.suspect.positions import split_positions

        if access.kind != "outputs" or self._model is not None:
            return []
        positions = self._read(list(access.paths))
        size = -(-len(positions.outputs) // batches)
        parts = split_positions(positions, size)
        return [self._add_ngrams(count_positions(part)) for part in parts]

    def observe_weights(self, folder: Path, logs: list[Path], limit: int | None) -> Observations:
        """The suspect's own probabilities over documents."""
        from provenance.suspect.access.documents import Documents
        from provenance.suspect.access.probabilities import observe_weights

        documents = Documents(logs, self._tokenizer, self._index, self._keyring, limit)
        with _progress(limit) as progress:
            observations = observe_weights(
                self._load(folder),
                self._model,
                documents,
                cache=self._reference.cache,
                progress=progress,
            )
        return self._add_ngrams(observations)

    def observe_logprobs(self, paths: list[Path]) -> Observations:
        """What an API said of its most probable tokens."""
        from provenance.suspect.access.probabilities import observe_logprobs

        with _progress(None) as progress:
            observations = observe_logprobs(
                paths,
                self._model,
                self._tokenizer,
                self._index,
                self._keyring,
                cache=self._reference.cache,
                progress=progress,
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

    def _read(self, paths: list[Path]) -> Positions:
        from provenance.suspect.access.outputs import read_positions

        return read_positions(paths, self._tokenizer, self._keyring.public)

    def _count(self) -> NgramReference:
        from provenance.suspect.models.ngram import NgramReference

        public = self._keyring.public
        text = self._read(list(self._reference.text))
        return NgramReference(text, public.vocabulary_size, public.context_width)


@contextmanager
def _progress(documents: int | None) -> Iterator[Progress]:
    """A bar per model, in parts of documents."""
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from provenance.suspect.passes import PART_DOCUMENTS

    total = None if documents is None else -(-documents // PART_DOCUMENTS)
    with Bars(console=words, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, parts: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(f"Reading with the {name}", total=total)
            bars.update(tasks[name], completed=parts)

        yield show
