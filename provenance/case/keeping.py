"""Keeping the evidence of a check that a case made: its bundle, and how the evidence grew."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from provenance.errors import DataError
from provenance.storage.files import as_path

if TYPE_CHECKING:
    from provenance.case.access import Access
    from provenance.case.observer import Observer
    from provenance.case.settings import Request
    from provenance.check.examine import Examination
    from provenance.check.filing import Filing
    from provenance.check.trajectory import Trajectory
    from provenance.check.verdict import Verdict
    from provenance.keys.keyring import UnlockedKeyring
    from provenance.marks import Mark

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """A check that was made, and how: `register` are the lines of its case, None without one."""

    examination: Examination
    access: Access
    request: Request
    register: bytes | None


def keep_check(
    checked: Checked,
    observer: Observer,
    index: Path,
    keyring: UnlockedKeyring | Mark,
    mark: Mark,
    folder: Path | str,
    disclose: Sequence[str] = (),
    *,
    pairs: bool = True,
    force: bool = False,
    filing: Filing | None = None,
) -> None:
    """Write the bundle of a check; for text also how the evidence grew. See `Verdict.save`."""
    from provenance.check.filing import Filing
    from provenance.evidence.bundle import write_bundle

    _LOG.info("Writing the evidence")
    verdict = checked.examination.verdict
    if verdict.register is not None:
        filing = (filing or Filing()).complete(verdict.register.filing)
    contents = replace(
        checked.request.contents,
        disclosed=tuple(disclose),
        pairs=pairs,
        trajectory=trace_check(verdict, checked.access, observer, index, mark),
        register=checked.register,
        filing=filing,
    )
    place = as_path(folder, "the bundle's folder")
    write_bundle(place, checked.examination, keyring, contents, force=force)


def trace_check(
    verdict: Verdict, access: Access, observer: Observer, folder: Path, mark: Mark
) -> Trajectory:
    """How the evidence grew with the outputs, for the report's picture.

    The index is opened once more, since a verdict may be saved when its case is closed.
    """
    from provenance.check.trajectory import BATCHES, trace_evidence
    from provenance.served.index import Index

    batches = observer.observe_in_batches(access, BATCHES)
    if any(dict(one.sha256) != dict(verdict.inputs["outputs"]["sha256"]) for one in batches):
        raise DataError(
            "the outputs must be those of the check; they have changed since. Check again."
        )
    with Index.open(folder, mark.public) as index:
        if index.manifest.content_sha256 != verdict.inputs["index_sha256"]:
            raise DataError(
                "the index must be that of the check; it has changed since. Check again."
            )
        rule = verdict.weight_rule
        return trace_evidence(batches, index, mark, rule)
