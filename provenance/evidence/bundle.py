"""Write a bundle: a verdict with all that is needed to recompute it.

::

    verdict.json           the result with its class tables
    keyring.json           public: schedule and commitments
    plan.json, .tsq, .tsr  the plan, the request and the answer of a time-stamp authority
    register.jsonl         the register of the case, to the line of this check
    pairs/                 scored pairs of every key, and those of the controls; confidential
    disclosed/             keys, if the user says so; whoever holds one can forge its mark; of
                           another scheme its configuration with the key
    trajectory.json        evidence against tokens, for the report's picture; not checked
    report.html            the readable report
    manifest.json          every file with its SHA-256; written last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from provenance.check.controls import list_unserved
from provenance.check.examine import Examination
from provenance.check.filing import Filing
from provenance.check.pairs import write_pairs
from provenance.check.plan import Plan
from provenance.check.reading import VERDICT_FILE, read_verdict
from provenance.check.trajectory import Trajectory
from provenance.errors import ConfigurationMismatchError, StorageError, UsageError
from provenance.evidence.manifest import (
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    check_files,
    hash_contents,
    read_manifest,
    write_manifest,
)
from provenance.evidence.register import REGISTER_FILE
from provenance.evidence.report.heading import Heading
from provenance.evidence.report.page import render_report
from provenance.evidence.steps import StepFailedError
from provenance.evidence.timestamp import read_timestamp
from provenance.keys.keyring import (
    KEYRING_FILE,
    Keyring,
    UnlockedKeyring,
    disclose,
)
from provenance.keys.schedule import SELECTOR_KEY, KeyName, Schedule
from provenance.marks import Mark
from provenance.marks.foreign.disclosed import disclose_foreign
from provenance.marks.foreign.mark import ForeignMark, is_foreign
from provenance.storage.files import (
    as_path,
    lock_folder,
    name_of_leftover,
    read_bytes,
    write_atomically,
    write_json,
)
from provenance.storage.folders import copy_file, replace_folder

PLAN_FILE: Final = "plan.json"
REQUEST_FILE: Final = "plan.tsq"
RESPONSE_FILE: Final = "plan.tsr"
REPORT_FILE: Final = "report.html"
TRAJECTORY_FILE: Final = "trajectory.json"
PAIRS_FOLDER: Final = "pairs"
DISCLOSED_FOLDER: Final = "disclosed"
CONTROL_PAIRS: Final = f"{PAIRS_FOLDER}/control"
_OWN_FILES: Final = frozenset(
    {
        MANIFEST_FILE,
        PUBLIC_KEY_FILE,
        SIGNATURE_FILE,
        VERDICT_FILE,
        KEYRING_FILE,
        PLAN_FILE,
        REQUEST_FILE,
        RESPONSE_FILE,
        REPORT_FILE,
        TRAJECTORY_FILE,
        REGISTER_FILE,
    }
)
_OWN_FOLDERS: Final = frozenset({PAIRS_FOLDER, DISCLOSED_FOLDER})


@dataclass(frozen=True)
class BundleParts:
    """What goes into a bundle beside verdict and keyring.

    Attributes
    ----------
    plan : the plan that was followed, if any
    request, response : bytes of its timestamp request and response, if any
    disclosed : names of keys to reveal; see `choose_disclosed`
    pairs : write the scored pairs
    trajectory : what the report's picture of evidence against tokens shows, if any
    register : lines of the case's register, to that of this check
    filing : case number, suspect and author for the report, if any
    """

    plan: Plan | None = None
    request: bytes | None = None
    response: bytes | None = None
    disclosed: Sequence[str] = ()
    pairs: bool = True
    trajectory: Trajectory | None = None
    register: bytes | None = None
    filing: Filing | None = None


def gather_plan(path: Path) -> BundleParts:
    """A plan with the request and the response that lie beside it (PLAN.tsq, PLAN.tsr).

    The response must be for this plan; whether its authority is trusted is asked by `verify`.
    Raises StorageError, DataError, MissingExtraError.
    """
    plan = Plan.load(path)
    request, response = (
        read_bytes(path.with_suffix(suffix)) if path.with_suffix(suffix).exists() else None
        for suffix in (".tsq", ".tsr")
    )
    if response is not None:
        origin = str(path.with_suffix(".tsr"))
        timestamp = read_timestamp(response, plan.content, (), origin)
        plan = replace(plan, timestamp=timestamp.time)
    return BundleParts(plan=plan, request=request, response=response)


def write_bundle(
    folder: Path,
    examination: Examination,
    keyring: UnlockedKeyring | Mark,
    contents: BundleParts,
    *,
    force: bool = False,
) -> None:
    """Write a bundle into `folder`; with `force` in place of an earlier one.

    Raises
    ------
    StorageError if the folder holds anything but a bundle, a whole one without `force`, or a signed
    one; UsageError for a key that the keyring has not; LockedError.

    Notes
    -----
    Cost: one sort per key. A killed run leaves a folder without a manifest, which nothing accepts.
    """
    keys = choose_disclosed(contents.disclosed, examination, keyring)
    match_filing(contents.filing, contents.plan)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with lock_folder(folder), ExitStack() as kept:
        own = _list_own(folder, force=force)
        if (folder / MANIFEST_FILE).exists():
            # evidence: it stays as it is until all of the new one is there
            folder = kept.enter_context(replace_folder(folder, _list_replaceable))
        else:
            for path in own:
                path.unlink()
        _fill(folder, examination, keyring, contents, keys, now)


def _fill(
    folder: Path,
    examination: Examination,
    keyring: UnlockedKeyring | Mark,
    contents: BundleParts,
    keys: Sequence[Mapping[str, Any]],
    now: str,
) -> None:
    """Every file of a bundle, its manifest last."""
    write_json(folder / VERDICT_FILE, examination.verdict.to_json())
    write_json(folder / KEYRING_FILE, keyring.public.to_json())
    if contents.trajectory is not None:
        write_json(folder / TRAJECTORY_FILE, contents.trajectory.to_json())
    plan = contents.plan
    for name, content in (
        (PLAN_FILE, plan.content if plan else None),
        (REQUEST_FILE, contents.request),
        (RESPONSE_FILE, contents.response),
        (REGISTER_FILE, contents.register or None),
    ):
        if content is not None:
            write_atomically(folder / name, content)
    if contents.pairs:
        _write_all_pairs(folder, examination, keyring.schedule)
    for number, key in enumerate(keys):
        write_json(folder / DISCLOSED_FOLDER / f"{number:03d}.json", key, mode=0o600)
    page = make_report(folder, plan, now, contents.filing)  # it names the other files' hash
    write_atomically(folder / REPORT_FILE, page)
    write_manifest(folder, now, pairs=contents.pairs, filing=contents.filing)


def check_request(
    folder: Path | None, names: Sequence[str], keyring: Keyring, *, force: bool = False
) -> None:
    """Refuse what `write_bundle` would refuse, before a check that may take hours.

    Parameters: the folder, None if no bundle is wanted; names of keys to disclose; the keyring;
    whether an earlier bundle may be replaced. Raises UsageError, StorageError.
    """
    known = {"all", *map(str, keyring.commitments)}
    if unknown := sorted(set(names) - known):
        kinds = "`all`, `selector`, `global` or SLOT=VALUE"
        if is_foreign(keyring):
            kinds = "`all` or `global`: this mark has one key"
        raise UsageError(
            f"--disclose must name keys of the mark; got {', '.join(unknown)}. Use {kinds}."
        )
    if folder is not None:
        _list_own(folder, force=force)


def choose_disclosed(
    names: Sequence[str], examination: Examination, keyring: UnlockedKeyring | Mark
) -> list[dict[str, Any]]:
    """The named keys, disclosed: `global`, `week=2026-W17`, `selector`, or `all`.

    `all` is the selector and every key that the check used; another scheme has one key, `global`.
    Raises UsageError.
    """
    if not names:
        return []
    if isinstance(keyring, ForeignMark):
        check_request(None, names, keyring.public)
        return [disclose_foreign(keyring)]
    if not isinstance(keyring, UnlockedKeyring):
        raise UsageError(
            "--disclose must come with a keyring or a scheme's configuration; it did not. "
            "Hand the key over by hand."
        )
    served = list(examination.weighing.hypotheses)
    used = [SELECTOR_KEY, *served, *list_unserved(keyring.schedule, served)]
    if "all" in names:
        return [disclose(keyring, *key) for key in used]
    known = {str(key): key for key in used}
    if unknown := sorted(set(names) - set(known)):
        raise UsageError(
            f"--disclose must name keys of this check; got {', '.join(unknown)}. Use `all`, or "
            f"some of: {', '.join(known)}"
        )
    return [disclose(keyring, *key) for name, key in known.items() if name in names]


def name_pairs(number: int) -> str:
    """Name of the pairs of hypothesis `number` of the verdict, without suffix."""
    return f"{PAIRS_FOLDER}/{number:03d}"


def name_group_pairs(number: int) -> str:
    """Name of the pairs of hypothesis `number` on a group, without suffix."""
    return f"{PAIRS_FOLDER}/group-{number:03d}"


def name_pooled(number: int) -> str:
    """Name of the pairs of slot `number` of the schedule, all its values together."""
    return f"{PAIRS_FOLDER}/pooled-{number:03d}"


def pooled_slots(schedule: Schedule, served: Sequence[KeyName]) -> dict[str, int]:
    """Slots whose pooled pairs the control of unserved values needs, with their numbers."""
    needed = {slot for slot, _ in list_unserved(schedule, served)}
    return {name: number for number, name in enumerate(schedule.names) if name in needed}


def match_filing(filing: Filing | None, plan: Plan | None) -> None:
    """Raise ConfigurationMismatchError if both name a suspect, and not the same."""
    named = "" if filing is None else filing.suspect
    if plan is not None and named not in ("", plan.suspect):
        raise ConfigurationMismatchError(
            f"the suspect must be that of the plan, {plan.suspect!a}; it is {named!a}. Leave the "
            "option out, or check under the plan of this suspect."
        )


def file_bundle(folder: Any, filing: Filing) -> None:
    """Put case number, suspect and author into a bundle that nobody signed, and draw its report.

    Parameters: the folder; what it is filed under, in place of what was there. Raises
    StorageError if it is signed, or is no whole bundle; ConfigurationMismatchError for another
    suspect than that of its plan. A killed run leaves it as it was.
    """
    place = as_path(folder, "the bundle")
    if (place / SIGNATURE_FILE).exists():
        raise StorageError(
            f"{place}: must not be signed, since signed evidence is never changed; it is. Name the "
            "case with `check -o`, or before `evidence sign`."
        )
    if not (place / MANIFEST_FILE).is_file():
        raise StorageError(f"{place}: must hold a whole bundle; it does not. Name one.")
    with lock_folder(place):
        try:
            manifest, _ = read_manifest(place)
            rest = tuple(entry for entry in manifest.files if entry.name != REPORT_FILE)
            check_files(place, replace(manifest, files=rest), passed_over={REPORT_FILE})
        except StepFailedError as error:
            raise StorageError(f"{place}: {error.file}: {error}. Write it anew.") from error
        path = place / PLAN_FILE
        stamp = read_verdict(place / VERDICT_FILE).plan
        plan = Plan.load(path, stamp.timestamp if stamp else None) if path.exists() else None
        match_filing(filing, plan)
        with replace_folder(place, _list_replaceable) as filed:
            for entry in rest:
                (filed / entry.name).parent.mkdir(exist_ok=True)
                copy_file(place / entry.name, filed / entry.name)
            page = make_report(filed, plan, manifest.created, filing)
            write_atomically(filed / REPORT_FILE, page)
            write_manifest(filed, manifest.created, pairs=manifest.pairs, filing=filing)


def make_report(
    folder: Path, plan: Plan | None, created: str = "", filing: Filing | None = None
) -> bytes:
    """report.html of the verdict that lies in a bundle.

    Made from the files, not from the objects that were written: `verify` makes it again from them.
    `created` and `filing` are those of the manifest, which is written after it.
    """
    path = folder / TRAJECTORY_FILE
    page = render_report(
        read_verdict(folder / VERDICT_FILE),
        trajectory=Trajectory.load(path) if path.exists() else None,
        plan=plan,
        heading=Heading(filing or Filing(), created, hash_contents(folder, REPORT_FILE)),
    )
    return page.encode("utf-8")


def _write_all_pairs(folder: Path, examination: Examination, schedule: Schedule) -> None:
    weighing, scores, units = examination.weighing, examination.scores, examination.units
    for number, (key, pairs) in enumerate(weighing.hypotheses.items()):
        write_pairs(folder, name_pairs(number), pairs, scores[key], units.get(key))
    for number, (group, pairs) in enumerate(weighing.groups.items()):
        scored = examination.group_coins[group].scores_of_pairs
        write_pairs(folder, name_group_pairs(number), pairs, scored)
    write_pairs(folder, CONTROL_PAIRS, weighing.control, None)
    for slot, number in pooled_slots(schedule, list(weighing.hypotheses)).items():
        write_pairs(folder, name_pooled(number), weighing.pooled[slot], None)


def _list_replaceable(folder: Path) -> list[Path]:
    return _list_own(folder, force=True)


def _list_own(folder: Path, *, force: bool) -> list[Path]:
    """Files of an earlier bundle, its manifest first; StorageError if it must stay.

    What a killed run left has no manifest, and files that are not whole; it is replaced.
    """
    own: list[Path] = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if parts == (".lock",) or (path.is_dir() and not path.is_symlink()):
            continue
        name = name_of_leftover(parts[-1]) or parts[-1]
        is_own = (len(parts) == 1 and name in _OWN_FILES) or (
            len(parts) == 2 and parts[0] in _OWN_FOLDERS
        )
        if not is_own:
            raise StorageError(
                f"{folder}: must be empty or hold an earlier bundle; it holds {path.name}. "
                "Choose another folder."
            )
        own.append(path)
    if (folder / SIGNATURE_FILE).exists():
        raise StorageError(
            f"{folder}: must not hold signed evidence, which is never replaced; it does. Choose "
            "another folder."
        )
    if (folder / MANIFEST_FILE).exists() and not force:
        raise StorageError(
            f"{folder}: must be empty; it holds a whole bundle. Choose another folder, or replace "
            "it with --force."
        )
    return sorted(own, key=lambda path: path.name != MANIFEST_FILE)
