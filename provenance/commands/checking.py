"""What `provenance check` does once its options are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from provenance.check.weigh import choose_rule
from provenance.commands.console import print_json, print_verdict, words
from provenance.commands.observing import Access, Observer, Reference
from provenance.commands.planning import choose_settings
from provenance.storage.files import name_files

if TYPE_CHECKING:
    from provenance.check.examine import CheckSettings, Examination
    from provenance.commands.marks import MarkChoice
    from provenance.evidence.bundle import Contents


@dataclass(frozen=True)
class Wanted:
    """How a check is to be made, by its options or by its plan.

    contents : the plan that is followed, if any, with what lies beside it; alpha, rule,
    placebo_keys : None where not given; twins : files of pairs
    """

    contents: Contents
    alpha: float | None
    rule: str | None
    placebo_keys: int | None
    twins: tuple[Path, ...]

    @classmethod
    def choose(
        cls,
        plan: Path | None,
        alpha: float | None,
        rule: str | None,
        placebo_keys: int | None,
        twins: list[Path],
    ) -> Wanted:
        """Options that agree with each other and with the plan; otherwise what `settings` raises"""
        from provenance.evidence.bundle import Contents, gather_plan

        contents = gather_plan(plan) if plan else Contents()
        made = cls(contents, alpha, rule, placebo_keys, tuple(twins))
        made.settings(None)
        return made

    def settings(self, outputs: int | None) -> CheckSettings:
        """For so many outputs (None: not known yet); see `choose_settings` for what it raises."""
        return choose_settings(
            self.contents.plan,
            outputs,
            self.alpha,
            self.rule,
            self.placebo_keys,
            bool(self.twins),
        )


@dataclass(frozen=True)
class Bundle:
    """Where the evidence goes (None: nowhere), which keys it discloses, and whether with pairs."""

    folder: Path | None
    disclose: tuple[str, ...]
    pairs: bool


class Bench:
    """The mark, its index and an observer, opened for one check."""

    def __init__(self, choice: MarkChoice, index: Path, reference: Reference) -> None:
        from provenance.keys.keyring import UnlockedKeyring
        from provenance.marks import as_mark
        from provenance.served.index import Index
        from provenance.served.index_manifest import IndexManifest

        keyring = choice.open(IndexManifest.load(index).vocabulary_size)
        self._keyring = keyring if isinstance(keyring, UnlockedKeyring) else None
        self._mark = as_mark(keyring)
        tokenizer = choice.load_tokenizer(self._mark)
        opened = Index.open(index, self._mark.public)
        self._index = opened.with_equal_counts() if self._mark.shares_coins else opened
        self._observer = Observer(reference, tokenizer, self._mark, self._index)

    def check(
        self,
        access: Access,
        wanted: Wanted,
        innocents: list[Path],
        bundle: Bundle,
        as_json: bool,
    ) -> int:
        """One check of all there is; writes the bundle and prints. Returns the exit code."""
        from provenance.check.examine import examine_outputs
        from provenance.evidence.bundle import check_request

        check_request(bundle.folder, bundle.disclose, self._mark.public)
        twins = self._observer.measure_twins(list(wanted.twins), access.paths[0])
        observations = self._observer.observe(access)
        names = name_files(innocents)
        innocent = {
            name: self._observer.observe(access.of(path))
            for name, path in zip(names, innocents, strict=True)
        }
        settings = wanted.settings(observations.outputs)
        with words.status("Checking"):
            examination = examine_outputs(
                observations,
                self._index,
                self._mark,
                settings,
                innocent,
                wanted.contents.plan,
                twins,
            )
        verdict = examination.verdict
        if bundle.folder is not None:
            self._write(examination, access, wanted.contents, bundle)
        if as_json:
            print_json(verdict.to_json())
        else:
            print_verdict(verdict)
        return verdict.exit_code

    def continue_check(
        self, state: Path, access: Access, wanted: Wanted, output: Path | None, as_json: bool
    ) -> int:
        """One more batch of a sequential check (no outputs: only look). Returns the exit code."""
        from provenance.commands.sequential import continue_sequentially

        settings = wanted.settings(None)
        # declared before any output is seen, so by what is asked for
        rule = choose_rule(sampled=True, has_reference=self._observer.has_reference)
        return continue_sequentially(
            state,
            self._observer.observe(access) if access.paths else None,
            self._index,
            self._keyring or self._mark,
            replace(settings, rule=settings.rule or rule),
            wanted.contents.plan,
            output,
            as_json,
        )

    def _write(
        self,
        examination: Examination,
        access: Access,
        contents: Contents,
        bundle: Bundle,
    ) -> None:
        """The bundle; for text under our own keyring also how the evidence grew."""
        from provenance.check.trajectory import BATCHES, trace_evidence
        from provenance.evidence.bundle import write_bundle

        with words.status("Writing the evidence"):
            trajectory = None
            if self._keyring is not None:
                batches = self._observer.observe_in_batches(access, BATCHES)
                rule = examination.verdict.weight_rule
                traced = trace_evidence(batches, self._index, self._keyring, rule)
                trajectory = traced.to_json()
            whole = replace(
                contents, disclosed=bundle.disclose, pairs=bundle.pairs, trajectory=trajectory
            )
            write_bundle(bundle.folder or Path(), examination, self._keyring or self._mark, whole)
        if self._keyring is None and bundle.pairs:
            words.print(
                "The bundle's scored pairs are as confidential as the scheme's key: a short key "
                "can be found from them by trying. To leave them out: --without-pairs.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
