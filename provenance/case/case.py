"""A case: mark, index, tokenizer and reference, opened and matched once, and checks of suspects.

`open_case` is the one way in: the command line and every program ask the same object, so that both
get the same bytes on the same inputs. What is heavy is imported when it is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.case.access import Access, Reference
from provenance.case.doors import as_open_mark, tokenizer_of
from provenance.case.keeping import Checked, keep_check
from provenance.case.observer import Observer, Progress, no_progress
from provenance.case.registrar import Registrar, Trial, open_registrar
from provenance.case.settings import Request
from provenance.errors import UsageError
from provenance.storage.files import Paths, as_path, as_paths
from provenance.storage.shapes.requests import ReadAs

if TYPE_CHECKING:
    from provenance.case.enough import Sufficiency
    from provenance.case.looks import Look
    from provenance.check.filing import Filing
    from provenance.check.twin_test import MeasuredTwins
    from provenance.check.verdict import Verdict
    from provenance.keys.keyring import UnlockedKeyring
    from provenance.marks import Mark
    from provenance.served.group_index import GroupIndex
    from provenance.suspect.observations import Observations

_LOG: Final = logging.getLogger(__name__)


class Case:
    """See `open_case`, which makes it. Use it in a `with` statement, or `close` it.

    Attributes
    ----------
    mark : the mark under test, opened
    index : the marked responses
    reference : what is expected of an innocent model
    registrar : of the case folder in whose register every check is entered; None: in none
    """

    def __init__(
        self,
        mark: Mark,
        index: Path,
        tokenizer: Path,
        reference: Reference,
        progress: Progress = no_progress,
        registrar: Registrar | None = None,
    ) -> None:
        from provenance.keys.tokenizer import load_tokenizer
        from provenance.served.index import Index

        if registrar is not None:
            registrar.refuse(mark.public)
        self.registrar = registrar
        loaded = load_tokenizer(tokenizer, mark.public)
        opened = Index.open(index, mark.public)
        self.mark, self.reference = mark, reference
        self.index = opened.with_equal_counts() if mark.shares_coins else opened
        self._observer = Observer(reference, loaded, mark, self.index, progress)

    def check(
        self,
        outputs: Paths | None = None,
        *,
        weights: Any = None,
        read: Paths | None = None,
        documents: int | None = None,
        logprobs: Paths | None = None,
        twins: Paths | None = None,
        innocents: Paths | None = None,
        plan: Any = None,
        alpha: float | None = None,
        rule: str | None = None,
        placebo_keys: int | None = None,
        read_as: Any = None,
        groups: Mapping[str, Any] | None = None,
    ) -> Verdict:
        """Was the suspect trained on the marked responses of this case's index?

        Parameters
        ----------
        outputs : files of what the suspect wrote, and folders of them; or instead of them
        weights, read, documents : the suspect's folder, and served logs (their first `documents`
            responses) that it is to read
        logprobs : files of what an API said of its most probable tokens
        twins : with weights: served responses and their unserved twins, a second line of evidence
        innocents : like the suspect, of models that cannot be guilty; each a model of its own
        plan : the file of the plan that the check must follow; without one it is exploratory
        alpha, rule, placebo_keys : see `CheckSettings`; None: those of the plan, or the defaults
        read_as : how files of outputs are read, see `read_outputs`: a dict of its options
        groups : folders of groups of responses (`build_group`) by name: each is tested on what only
            it got, and on what only everybody else got; all of them share alpha with the keys

        Returns
        -------
        The finished verdict; `print` says it, `save` keeps it with all that recomputes it.

        Raises
        ------
        UsageError, DataError, StorageError, ConfigurationMismatchError (before a key is opened, if
        the check is not the planned one).

        Notes
        -----
        Cost: reading the suspect; then as `check_outputs`.
        """
        from provenance.case.groups import open_groups
        from provenance.storage.files import name_files

        access, request, paired = self.refuse(
            outputs,
            weights=weights,
            read=read,
            documents=documents,
            logprobs=logprobs,
            twins=twins,
            plan=plan,
            alpha=alpha,
            rule=rule,
            placebo_keys=placebo_keys,
            read_as=read_as,
            groups=groups,
        )
        if self.registrar is not None and request.plan is not None:
            self.registrar.refuse_plan(request.plan)
        access = access.following(request.plan, request.prompts)
        free = as_paths(innocents, "innocents")
        with open_groups(groups, self.index, self.mark) as opened:  # before hours of reading
            measured = self._observer.measure_twins(paired, access.paths[0])
            observations = self._observer.observe(access)
            request.require_before(observations.source)
            names = name_files(list(free))
            others = [self._observer.observe(access.of(path)) for path in free]
            found = dict(zip(names, others, strict=True))
            return self._examine(observations, found, access, request, measured, opened)

    def _examine(
        self,
        observations: Observations,
        innocents: Mapping[str, Observations],
        access: Access,
        request: Request,
        twins: MeasuredTwins | None,
        groups: Mapping[str, GroupIndex],
    ) -> Verdict:
        """The check of what was observed, entered in the register of the case if there is one."""
        from provenance.case.groups import tell_groups
        from provenance.check.examine import examine_outputs

        _LOG.info("Checking")
        with self._try(request) as trial:
            examination = examine_outputs(
                observations,
                self.index,
                self.mark,
                request.settings(observations.outputs),
                innocents,
                request.plan,
                twins,
                announce=partial(tell_groups, trial.enter if trial else None),
                groups=groups,
            )
            verdict = examination.verdict
            if trial is not None:
                trial.conclude(verdict.conclusion, verdict.log10_p, None, None)
        told = Checked(examination, access, request, trial.lines if trial else None)
        own = self._keyring or self.mark
        keep = partial(keep_check, told, self._observer, self.index.folder, own, self.mark)
        return replace(verdict, keep=keep)

    def _try(self, request: Request) -> AbstractContextManager[Trial | None]:
        """A trial in the register of the case; None without a case."""
        return nullcontext() if self.registrar is None else self.registrar.trying(request.plan)

    @staticmethod
    def refuse(
        outputs: Paths | None = None,
        *,
        weights: Any = None,
        read: Paths | None = None,
        documents: int | None = None,
        logprobs: Paths | None = None,
        twins: Paths | None = None,
        plan: Any = None,
        read_as: Any = None,
        groups: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[Access, Request, tuple[Path, ...]]:
        """Refuse what `check` would refuse of these, before anything is opened or read.

        Returns how the suspect is looked at, what was asked for, and the files of twins.
        """
        from provenance.case.groups import check_names

        check_names(groups)
        access = Access.choose(outputs, weights, logprobs, read, documents, read_as)
        paired = as_paths(twins, "twins")
        if paired and access.kind != "weights":
            raise UsageError(
                "--twins must come with --weights; it did not. Give the model's folder."
            )
        file = None if plan is None else as_path(plan, "the plan")
        return access, Request.make(file, **settings, twins=bool(paired)), paired

    def refuse_bundle(
        self,
        folder: Any,
        disclose: Sequence[str] = (),
        plan: Any = None,
        filing: Filing | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Refuse what `Verdict.save` would refuse, before a check that may take hours."""
        from provenance.check.plan import Plan
        from provenance.evidence.bundle import check_request, match_filing

        match_filing(filing, None if plan is None else Plan.load(as_path(plan, "the plan")))
        if self.registrar is not None and filing is not None and filing.suspect:
            self.registrar.refuse(self.mark.public, filing.suspect)
        place = None if folder is None else as_path(folder, "the bundle's folder")
        check_request(place, disclose, self.mark.public, force=force)

    def look(
        self,
        state: Any,
        outputs: Paths | None = None,
        *,
        plan: Any = None,
        alpha: float | None = None,
        rule: str | None = None,
        placebo_keys: int | None = None,
        read_as: Any = None,
    ) -> Look:
        """Add a batch of outputs to the sequential check in a folder, and say what is known now.

        Parameters: the folder (a new check if it is empty); files of the batch, None only to look;
        the rest as of `check`. Raises as `check`; after an error the folder holds the check without
        the batch. Cost: see `provenance.check.looks.state.continue_check`.
        """
        from provenance.case.looks import look

        files = as_paths(outputs, "outputs")
        request = Request.make(
            None if plan is None else as_path(plan, "the plan"),
            alpha=alpha,
            rule=rule,
            placebo_keys=placebo_keys,
        )
        if self.registrar is not None and request.plan is not None:
            self.registrar.refuse_plan(request.plan)
        access = Access("outputs", files, reading=ReadAs.of(read_as))
        access = access.following(request.plan, request.prompts)
        observed = self._observer.observe(access) if files else None
        if observed is not None:
            request.require_before(observed.source)
        folder = as_path(state, "the folder of the sequential check")
        return look(
            folder,
            observed,
            self.index,
            self.mark,
            request,
            self.reference.given,
            self.registrar,
        )

    def enough(
        self,
        outputs: Paths,
        shift: float,
        *,
        alpha: float = 1e-4,
        power: float = 0.9,
        rule: str | None = None,
    ) -> Sufficiency:
        """Do the outputs suffice to find this shift? Looks at outputs and weights, at no coin.

        Parameters: all outputs so far; the mean shift of a score that is to be found, in standard
        deviations of one score; error rate over all keys; wanted probability; weight rule, None
        for that of a check.
        """
        from provenance.case.enough import suffice

        observed = self.observe(outputs)
        return suffice(observed, self.index, self.mark, shift, alpha, power, rule)

    def observe(self, outputs: Paths) -> Observations:
        """What the suspect wrote, counted, with what the reference expects of it."""
        return self._observer.observe(Access.choose(outputs))

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    def __enter__(self) -> Case:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _keyring(self) -> UnlockedKeyring | None:
        """Our own keyring; None for another mark."""
        from provenance.marks import KeyringMark

        return self.mark.keyring if isinstance(self.mark, KeyringMark) else None


def open_case(
    keyring: Any,
    index: Any,
    *,
    tokenizer: Any = None,
    reference: Any = "none",
    reference_text: Paths | None = None,
    cache: Any = None,
    other_tokenizer: bool = False,
    progress: Progress = no_progress,
    case: Any = None,
    signing_key: Any = None,
) -> Case:
    """Open all that checks of suspects have in common, and match it once.

    Parameters
    ----------
    keyring : unlocked (`open_keyring`), another mark (`read_foreign_mark`), or a keyring's folder
    index : folder of the index (`build_index`)
    tokenizer : tokenizer.json of the served model; None: the keyring's copy
    reference : what says what is expected of an innocent model: none, ngram or a model's folder
    reference_text : for ngram: files of outputs of a model that was not trained on the log
    cache : folder in which passes of models are kept, to go on after a stop
    other_tokenizer : trust the tokenizers in the models' folders, if they are other ones
    progress : told while models read
    case : folder of a case (`new_case`), in whose register every check is entered before a key is
        opened; None: nobody counts the checks, and verdicts say so
    signing_key : file of the key of the case's signer, if it has one

    Raises
    ------
    UsageError, StorageError, DataError, KeyPermissionError; ConfigurationMismatchError if index,
    tokenizer, keyring and case do not belong together.

    Notes
    -----
    Cost: every row of the index is verified, about 10 M a second; a reference is read or counted.
    """
    mark = as_open_mark(keyring)
    registrar = open_registrar(case, signing_key)
    expected = Reference(
        str(as_path(reference, "the reference")),
        as_paths(reference_text, "the reference's text"),
        None if cache is None else as_path(cache, "the cache"),
        other_tokenizer,
    )
    folder = as_path(index, "the index")
    served = tokenizer_of(mark.public, tokenizer)
    return Case(mark, folder, served, expected, progress, registrar)
