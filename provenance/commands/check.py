"""`provenance check`: was the model behind these outputs trained on marked responses?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provenance.commands.console import print_json, print_verdict, words
from provenance.errors import UsageError
from provenance.weigh import DEFAULT_RULE, REFERENCE_RULE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from provenance.keys.keyring import UnlockedKeyring
    from provenance.served.index import Index
    from provenance.suspect.ngram import NgramReference
    from provenance.suspect.outputs import Observations, Positions

__all__ = ["check"]


def check(
    outputs: Annotated[list[Path], typer.Argument(metavar="OUTPUTS...", help="JSONL, gz, zst.")],
    keys: Annotated[Path, typer.Option(help="Folder of the keyring.")],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    innocent: Annotated[
        list[Path] | None,
        typer.Option(help="Outputs of a model that cannot have been trained on the log; repeat."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for verdict.json.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; default: the keyring's copy.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="none, ngram, or the folder of a model with the served tokenizer.")
    ] = "none",
    reference_text: Annotated[
        list[Path] | None,
        typer.Option(help="For ngram: unmarked outputs, or those of other suspects; repeat."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Family-wise error rate over all keys.")] = 1e-4,
    rule: Annotated[
        str | None,
        typer.Option(help="presence, log-sqrt (default) or residual (default with a reference)."),
    ] = None,
    placebo_keys: Annotated[int, typer.Option(help="Keys of the placebo control.")] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect's outputs. Exit 1: evidence; 0: none, or a control failed."""
    from provenance.check import CheckSettings, check_outputs
    from provenance.files import lock_folder, write_json
    from provenance.keys.keyring import TOKENIZER_FILE, Keyring
    from provenance.served.index import Index
    from provenance.tokenizer import load_tokenizer

    chosen = rule or (DEFAULT_RULE if reference == "none" else REFERENCE_RULE)
    settings = CheckSettings(alpha=alpha, rule=chosen, placebo_keys=placebo_keys)
    public = Keyring.load(keys)
    loaded = load_tokenizer(tokenizer or keys / TOKENIZER_FILE, public)
    opened = Index.open(index, public)
    unlocked = public.unlock(keys)
    observe = _Observer(reference, reference_text or [], loaded, unlocked, opened)
    observations = observe(outputs)
    innocents = {str(path): observe([path]) for path in innocent or []}
    with words.status("Checking"):
        verdict = check_outputs(observations, opened, unlocked, settings, innocents)
    if output is not None:
        with lock_folder(output):
            write_json(output / "verdict.json", verdict.to_json())
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(1 if verdict.conclusion == "evidence" else 0)


class _Observer:
    """Reads outputs, and joins them with what the chosen reference expected."""

    def __init__(
        self,
        reference: str,
        text: list[Path],
        tokenizer: Tokenizer,
        keyring: UnlockedKeyring,
        index: Index,
    ) -> None:
        if (reference == "ngram") != bool(text):
            raise UsageError(
                "--reference ngram and --reference-text must be given together; one is missing. "
                "Give outputs of a model that was not trained on the log."
            )
        self._reference, self._tokenizer = reference, tokenizer
        self._keyring, self._index = keyring, index
        self._ngrams = self._count(text) if reference == "ngram" else None

    def __call__(self, paths: list[Path]) -> Observations:
        from provenance.suspect.expectations import add_expectations
        from provenance.suspect.outputs import count_positions

        with words.status("Reading outputs"):
            positions = self._read(paths)
            observations = count_positions(positions)
            if self._ngrams is not None:
                return add_expectations(observations, self._ngrams.expect(observations))
        if self._reference == "none":
            return observations
        return self._ask_model(positions, observations)

    def _read(self, paths: list[Path]) -> Positions:
        from provenance.suspect.outputs import read_positions

        return read_positions(paths, self._tokenizer, self._keyring.public)

    def _count(self, text: list[Path]) -> NgramReference:
        from provenance.suspect.ngram import NgramReference

        public = self._keyring.public
        return NgramReference(self._read(text), public.vocabulary_size, public.context_width)

    def _ask_model(self, positions: Positions, observations: Observations) -> Observations:
        from rich.progress import Progress

        from provenance.scoring import find_served
        from provenance.suspect.expectations import add_expectations
        from provenance.suspect.language_model import expect_with_model

        wanted = find_served(positions.contexts, self._index, self._keyring)
        with Progress(console=words, transient=True) as bar:
            task = bar.add_task("Reference model", total=None)
            expected = expect_with_model(
                positions,
                wanted,
                self._reference,
                self._keyring.public,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        return add_expectations(observations, expected)
