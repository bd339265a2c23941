"""Several suspects side by side on one page, for people who do not read JSON.

The family of verdicts decides (`provenance.check.suspects`); what each check said by itself stands
beside it. The same files give the same bytes. Strings of other people are treated as in `page`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from provenance.check.family import Family, SuspectResult, largest_correlations
from provenance.check.filing import Filing
from provenance.check.looks.result import SequentialVerdict
from provenance.check.plan import Plan
from provenance.check.reading import SEQUENTIAL_FILE, VERDICT_FILE, read_result
from provenance.check.verdict import Verdict
from provenance.errors import StorageError, UsageError
from provenance.evidence.manifest import MANIFEST_FILE, read_manifest
from provenance.evidence.report.glossary import GLOSSARY
from provenance.evidence.report.heading import Heading
from provenance.evidence.report.page import PALETTE, load_template
from provenance.evidence.report.wording import (
    ASSUMPTIONS,
    NOT_SHOWN,
    TITLES,
    find_standing,
    say_family,
    shows_numbers,
)
from provenance.evidence.steps import StepFailedError
from provenance.storage.files import Paths, as_path, as_paths, sha256_of_file, write_atomically

_COLUMNS: Final = 4
"""Suspects beside each other on a page of paper; more get a table of their own below."""
_MOST_ROWS: Final = 60
_PLAN_FILE: Final = "plan.json"
_SEQUENTIAL: Final[Mapping[str, str]] = {
    "evidence": "Evidence found",
    "no evidence": "No evidence found",
    "inconclusive": "No answer",
}


@dataclass(frozen=True)
class Column:
    """One suspect.

    Attributes
    ----------
    result : what the family says of it
    name : as its plan or its filing names it, else the name of its folder
    title : what its own check concluded
    facts : (name, value) rows that stand side by side
    cells : by key, what the page says of it; empty if no number may be shown
    sha256 : of its verdict
    """

    result: SuspectResult
    name: str
    title: str
    facts: Mapping[str, str]
    cells: Mapping[str, str]
    sha256: str


def save_suspects_page(
    file: Any,
    family: Family,
    folders: Paths,
    *,
    filing: Filing | None = None,
    force: bool = False,
) -> None:
    """Write the page of several suspects.

    Parameters: the file (HTML); what `judge_suspects` made of these folders, in their order; case
    number and author for its head; whether an earlier file may be replaced. Raises StorageError,
    DataError, UsageError. Cost: the folders' verdicts are read once more.
    """
    path = as_path(file, "the page")
    if path.exists() and not force:
        raise StorageError(
            f"{path}: must not exist yet; it does. Choose another name, or replace it with --force."
        )
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    page = render_suspects(family, folders, filing or Filing(), created)
    write_atomically(path, page.encode("utf-8"))


def render_suspects(family: Family, folders: Paths, filing: Filing, created: str) -> str:
    """The page as one HTML document; see `save_suspects_page`. `created` is RFC 3339, UTC."""
    places = as_paths(folders, "the folders")
    if len(places) != len(family.suspects):
        raise UsageError(
            f"there must be one folder a suspect; got {len(places)} for {len(family.suspects)}. "
            "Name the folders that were judged."
        )
    columns = [_read(place, result) for place, result in zip(places, family.suspects, strict=True)]
    listed = "".join(f"{one.sha256}  {one.result.name}\n" for one in columns)
    heading = Heading(
        filing,
        created,
        hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
        "Verdicts",
    )
    title, finding = say_family(family)
    shown = [columns[i : i + _COLUMNS] for i in range(0, min(len(columns), _MOST_ROWS), _COLUMNS)]
    keys = list(dict.fromkeys(key for one in columns for key in one.cells))
    short = {one.result.name: one.name for one in columns}
    return load_template("several.html").render(
        title=title,
        finding=finding,
        colour={"evidence": "accent", "no evidence": "second"}.get(family.conclusion, "little"),
        palette=PALETTE,
        heading=heading,
        running=heading.style_pages(f"{len(columns)} suspects together", PALETTE["soft"]),
        family=family,
        columns=columns[:_MOST_ROWS],
        rest=max(0, len(columns) - _MOST_ROWS),
        tables=shown,
        keys=keys[:_MOST_ROWS],
        rest_keys=max(0, len(keys) - _MOST_ROWS),
        related=[
            (short[one.first], short[one.second], one)
            for one in largest_correlations(family.correlations)
            if abs(one.correlation) >= 0.1 and {one.first, one.second} <= set(short)
        ][:_MOST_ROWS],
        glossary=GLOSSARY,
        assumptions=ASSUMPTIONS,
        not_shown=NOT_SHOWN,
    )


def _read(folder: Path, result: SuspectResult) -> Column:
    verdict = read_result(folder)
    described: Sequence[Mapping[str, Any]]
    if isinstance(verdict, Verdict):
        described, title = [verdict.inputs["outputs"]], TITLES[find_standing(verdict)]
    else:
        described = [look.outputs for look in verdict.looks]
        title = _SEQUENTIAL[verdict.conclusion]
    path = folder / (VERDICT_FILE if isinstance(verdict, Verdict) else SEQUENTIAL_FILE)
    access = described[0]["source"].get("access", "outputs") if described else "nothing yet"
    facts = {
        "own check": title,
        "seen of it": str(access),
        "texts": f"{sum(int(one['outputs']) for one in described):,}",
        "tokens": f"{sum(int(one['tokens']) for one in described):,}",
        "controls": "passed" if verdict.controls_passed else "FAILED",
        "plan": _say_plan(verdict),
    }
    return Column(
        result, _name(folder), title, facts, _list_cells(verdict, result),
        sha256_of_file(path),
    )  # fmt: skip


def _list_cells(verdict: Verdict | SequentialVerdict, result: SuspectResult) -> dict[str, str]:
    """By key: whether the family finds it, and z; nothing where no number may be shown."""
    if isinstance(verdict, SequentialVerdict):
        keys = [str(one.key) for one in verdict.hypotheses]
        return {key: "found" if key in result.keys else "not found" for key in keys}
    if not shows_numbers(verdict) or not verdict.is_scored:
        return {}
    little = find_standing(verdict) == "little"
    return {
        one.name: ("found" if one.name in result.keys else "cannot say" if little else "not found")
        + f", z {one.tail.z:+.1f}".replace("-", "−")
        for one in verdict.hypotheses
    }


def _say_plan(verdict: Verdict | SequentialVerdict) -> str:
    if isinstance(verdict, SequentialVerdict):
        return "in batches"
    if verdict.plan is None:
        return "none: exploratory"
    return "date attested" if verdict.plan.timestamp else "date not attested"


def _name(folder: Path) -> str:
    """The suspect's name, if the folder knows it; a folder that is no bundle has its own."""
    if (folder / _PLAN_FILE).exists():
        return Plan.load(folder / _PLAN_FILE).suspect
    filing = None
    if (folder / MANIFEST_FILE).exists():
        try:
            filing = read_manifest(folder)[0].filing
        except StepFailedError as error:
            raise StorageError(
                f"{folder}: {error.file}: {error}. Run `provenance verify`."
            ) from error
    return (filing.suspect if filing else "") or folder.absolute().name
