"""What there is of a suspect, and what is expected of an innocent model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from provenance.errors import UsageError
from provenance.storage.files import Paths, as_path, as_paths
from provenance.storage.formats import LEDGER_FILE
from provenance.storage.shapes.requests import ReadAs

if TYPE_CHECKING:
    from provenance.check.plan import Plan
    from provenance.suspect.planned import Wanted

Kind = Literal["outputs", "weights", "logprobs"]


@dataclass(frozen=True)
class Access:
    """What there is of a suspect, and how it is looked at: outputs, weights or logprobs.

    paths : files of outputs or logprobs, or the folder of the model; logs, documents : what the
    model is to read, and at most how many responses of it; reading : how files of outputs are read;
    wanted : which outputs a plan wants; None: all
    """

    kind: Kind
    paths: tuple[Path, ...]
    logs: tuple[Path, ...] = ()
    documents: int | None = None
    reading: ReadAs = field(default_factory=ReadAs)
    wanted: Wanted | None = None

    @classmethod
    def choose(
        cls,
        outputs: Paths | None = None,
        weights: Any = None,
        logprobs: Paths | None = None,
        read: Paths | None = None,
        documents: int | None = None,
        read_as: Any = None,
    ) -> Access:
        """The one kind of access that was asked for; UsageError for none or several."""
        texts = _enter(as_paths(outputs, "outputs"), "outputs.jsonl")
        listed = _enter(as_paths(logprobs, "logprobs"), "logprobs.jsonl")
        logs = as_paths(read, "the log to read")
        given = [bool(texts), weights is not None, bool(listed)]
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
            ReadAs.of(read_as)
            return cls("weights", (as_path(weights, "the model's folder"),), logs, documents)
        reading = ReadAs.of(read_as)
        if listed and reading != ReadAs():
            raise UsageError(
                "--format, --requests, --map and --strict must come with OUTPUTS; they came with "
                "--logprobs. Leave them out."
            )
        return cls("outputs" if texts else "logprobs", texts or listed, reading=reading)

    def of(self, path: Path) -> Access:
        """The same kind of access to another model."""
        return replace(self, paths=_enter((path,), f"{self.kind}.jsonl"), wanted=None)

    def following(self, plan: Plan | None, prompts: Path | None) -> Access:
        """The same, limited to what a plan wants of outputs.

        Parameters: the plan; the file of its prompts, if it commits one. Raises
        ConfigurationMismatchError, StorageError, DataError.
        """
        from provenance.suspect.planned import Wanted

        if plan is None or self.kind != "outputs":
            return self
        return replace(self, wanted=Wanted.of(plan.most_outputs, prompts, plan.prompts_sha256))


def _enter(paths: tuple[Path, ...], name: str) -> tuple[Path, ...]:
    """The same, where the folder of a collection stands for its file of this name.

    A model's folder has no ledger.
    """
    return tuple(path / name if (path / LEDGER_FILE).is_file() else path for path in paths)


@dataclass(frozen=True)
class Reference:
    """What says what is expected of an innocent model.

    kind : none, ngram or a model's folder; text : unmarked outputs for ngram; cache : where passes
    of models are kept; other_tokenizer : models may have another tokenizer than the served one
    """

    kind: str = "none"
    text: tuple[Path, ...] = ()
    cache: Path | None = None
    other_tokenizer: bool = False

    def __post_init__(self) -> None:
        if (self.kind == "ngram") != bool(self.text):
            raise UsageError(
                "--reference ngram and --reference-text must be given together; one is missing. "
                "Give outputs of a model that was not trained on the log."
            )

    @property
    def given(self) -> bool:
        """Whether anything is expected of an innocent model."""
        return self.kind != "none"

    @property
    def model(self) -> Path | None:
        """Folder of the reference model, if it is one."""
        return None if self.kind in ("none", "ngram") else Path(self.kind)

    def fingerprint(self) -> dict[str, Any]:
        """Its kind and the hashes of its files, as a plan names them. Raises StorageError."""
        from provenance.check.plan import fingerprint_reference
        from provenance.storage.files import sha256_of_files
        from provenance.suspect.models.model_files import describe_model

        if self.model is not None:
            return fingerprint_reference(describe_model(self.model))
        if self.text:
            hashes = sha256_of_files(self.text)
            return fingerprint_reference({"kind": "ngram", "sha256": hashes})
        return fingerprint_reference({})
