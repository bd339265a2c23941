"""report.html: a verdict for people who do not read JSON, on one self-contained page.

Everything shown is in verdict.json; nothing is computed here but pictures and sentences. The page
has no script and refers to nothing outside itself. Strings of other people (names of files, values
of labels, a suspect's name) are escaped by the template, cleaned of control characters, isolated in
their direction, and shortened; long lists are cut, and say so. The same content gives the same
bytes, in whatever order a file lists it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from provenance.check.findings import HypothesisResult
from provenance.check.inputs import say_positions, say_read
from provenance.check.plan import Plan
from provenance.check.power_statement import say_power
from provenance.check.trajectory import Trajectory
from provenance.check.verdict import Verdict
from provenance.check.words import say_groups, say_plan
from provenance.evidence.report.figures import ACCENT, INK, SECOND, draw_placebo, draw_trajectory
from provenance.evidence.report.glossary import GLOSSARY, say_collected, say_control
from provenance.evidence.report.heading import Heading, say_time
from provenance.evidence.report.wording import (
    ASSUMPTIONS,
    NOT_SHOWN,
    TITLES,
    Standing,
    describe_strength,
    find_standing,
    say_finding,
    say_frequency,
    say_p,
    show_name,
    shows_numbers,
)
from provenance.keys.schedule import KeyName
from provenance.storage.printable import clean, shorten

PALETTE: Final[Mapping[str, str]] = {
    "ink": INK,
    "soft": "#4b5768",
    "paper": "#ffffff",
    "panel": "#f3f5f8",
    "line": "#c3cad4",
    "accent": ACCENT,
    "second": SECOND,
    "little": "#7a5200",
}
"""Colours of the page by name; every text colour has a contrast of 4.5 or more on both grounds."""

_COLOURS: Final[Mapping[Standing, str]] = {
    "evidence": "accent",
    "twins": "accent",
    "none": "second",
    "untested": "little",
    "little": "little",
    "reserved": "soft",
    "invalid": "ink",
}
_MOST_ROWS: Final = 60
_MOST_REASONS: Final = 12
_MOST_CONTROLS: Final = 30
_MOST_FILES: Final = 25
_LONGEST: Final = 1500


def render_report(
    verdict: Verdict,
    trajectory: Trajectory | None = None,
    plan: Plan | None = None,
    heading: Heading | None = None,
) -> str:
    """The report of a check as one HTML page.

    Parameters
    ----------
    verdict : of either schema version
    trajectory : for the picture of evidence against tokens; or None
    plan : the one that was followed; None for an exploratory check
    heading : case, author, date and hash of the bundle, for the top and every printed page

    Returns
    -------
    str
        A whole document below 200 kB, without script or external reference.

    Notes
    -----
    No p-value is shown if a control failed, or if something is held against the evidence. Cost:
    about 1 s, mostly two pictures.
    """
    standing, valid = find_standing(verdict), shows_numbers(verdict)
    twins, power, outputs = verdict.twins, verdict.power, verdict.inputs["outputs"]
    fixed, tried = say_plan(verdict.plan, verdict.register)
    heading = heading or Heading()
    reserved = [str(one) for one in verdict.reservations if one.reason not in verdict.reasons]
    return load_template("report.html").render(
        heading=heading,
        facts=heading.list_facts(verdict, plan),
        running=heading.style_pages(heading.name_suspect(plan), PALETTE["soft"]),
        collected=say_collected(outputs),
        glossary=GLOSSARY,
        verdict=verdict,
        standing=standing,
        valid=valid,
        colour=_COLOURS[standing],
        palette=PALETTE,
        title=TITLES[standing],
        finding=say_finding(verdict),
        reasons=_cut(verdict.reasons, _MOST_REASONS),
        reservations=_cut(reserved, _MOST_REASONS),
        frequency=say_frequency(verdict.log10_p),
        caution=describe_strength(verdict.log10_p),
        keys=_cut(sorted(verdict.hypotheses, key=_rank), _MOST_ROWS),
        placebos=_draw_placebos(verdict, valid),
        growth=_draw_growth(verdict, trajectory) if valid else None,
        shares=_list_shares(verdict) if standing == "evidence" else None,
        controls=_cut(verdict.controls, _MOST_CONTROLS),
        groups=say_groups(verdict.groups, verdict.inputs.get("groups", {}), verdict.conclusion),
        twins_frequency=say_frequency(twins.tail.log10_p) if twins else None,
        plan=plan,
        power=say_power(power) if power else None,
        curve=power.curve if power else None,
        example=_give_example(verdict) if standing == "evidence" else None,
        assumptions=ASSUMPTIONS,
        not_shown=NOT_SHOWN,
        files=_list_files(verdict.inputs),
        observed=outputs,
        counted=" ".join([say_positions(outputs), *say_read(outputs)]),
        fixed=fixed,
        tried=tried,
    )


def load_template(name: str) -> Template:
    """A template of this room, with its filters; every string that it prints is cleaned."""
    environment = Environment(
        loader=PackageLoader("provenance.evidence.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean_text,
    )
    environment.filters.update(name=show_name, p=say_p, percent=_percent, signed=_signed)
    environment.filters.update(control=say_control, time=say_time)
    return environment.get_template(name)


def _rank(result: HypothesisResult) -> tuple[float, float]:
    """The smallest adjusted p first."""
    return result.log10_adjusted, result.tail.log10_p


def _clean_text(value: Any) -> Any:
    """Applied by the template to whatever it prints: no control characters, no endless text."""
    return shorten(clean(value), _LONGEST) if type(value) is str else value


def _signed(number: float) -> str:
    return f"{number:+.1f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cut(rows: Iterable[Any], most: int) -> dict[str, Any]:
    """The first rows, and how many more there are."""
    everything = list(rows)
    return {"rows": everything[:most], "rest": max(0, len(everything) - most)}


def _draw_placebos(verdict: Verdict, valid: bool) -> list[dict[str, Any]]:
    """One picture per placebo control that ran; without the true key if a control failed."""
    key_of = {f"placebo keys ({result.name})": result for result in verdict.hypotheses}
    ran = [one for one in verdict.controls if one.placebo_z and one.name in key_of]
    found = []
    for number, control in enumerate(ran[:2]):
        z, key = control.placebo_z, key_of[control.name]
        above = sum(value >= key.tail.z for value in z)
        title = f"Histogram of z of {len(z)} placebo keys, from {min(z):.1f} to {max(z):.1f}."
        if valid:
            title += (
                f" The true key is at {key.tail.z:.1f}; {above} placebo keys are at or above it."
            )
        true_z = key.tail.z if valid else None
        picture = draw_placebo(z, true_z, f"placebo{number}", title)
        found.append({"key": key.name, "picture": picture, "count": len(z), "above": above})
    return found


def _draw_growth(verdict: Verdict, trajectory: Trajectory | None) -> dict[str, Any] | None:
    """Evidence against tokens; None if there are fewer than two points."""
    if trajectory is None or len(trajectory.points) < 2:
        return None
    points, last = trajectory.points, trajectory.points[-1]
    shares = {result.name: result.family_weight for result in verdict.hypotheses}
    level = math.log10(verdict.alpha * (shares.get(trajectory.key) or 1.0))
    title = (
        f"Strength of the evidence against tokens of outputs: after {last.tokens:,} tokens the "
        f"solid line is at {-last.log10_p:.1f} and the dashed one at {last.log10_e:.1f}; the level "
        f"for evidence is {-level:.1f}."
    )
    picture = draw_trajectory(
        [point.tokens for point in points],
        [point.log10_p for point in points],
        [point.log10_e for point in points],
        level,
        "growth",
        title,
    )
    return {"key": trajectory.key, "picture": picture, "level": level}


def _list_shares(verdict: Verdict) -> list[dict[str, Any]]:
    """Per attribute slot: its values with shares, and whether their own key was found."""
    found = verdict.attributed
    p_of = {result.key: result.log10_adjusted for result in verdict.hypotheses}
    slots: dict[str, list[dict[str, Any]]] = {}
    for share in verdict.shares:
        named = share.value in found.get(share.slot, [])
        p = p_of.get(KeyName(share.slot, share.value))
        row = {"share": share, "found": named, "log10_adjusted": p}
        slots.setdefault(share.slot, []).append(row)
    return [
        {"slot": slot, **_cut(sorted(rows, key=lambda row: -row["share"].lower), _MOST_ROWS)}
        for slot, rows in list(slots.items())[:8]
    ]


def _give_example(verdict: Verdict) -> dict[str, Any] | None:
    """A share that is neither nothing nor all, to say in words what its limits mean."""
    some = [share for share in verdict.shares if 0.005 < share.estimate < 0.995]
    best = max(some or verdict.shares, key=lambda share: share.lower, default=None)
    return None if best is None else {"share": best}


def _list_files(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """(role, file, SHA-256) of every input."""
    rows: list[tuple[str, str, str]] = []
    rows += _files_of("suspect", inputs["outputs"]["sha256"])
    for _, innocent in sorted(inputs["innocents"].items()):
        rows += _files_of("innocent model", innocent["sha256"])
    rows.append(("index of the served responses", "content", inputs["index_sha256"]))
    rows.append(("tokenizer", "tokenizer.json", inputs["tokenizer_sha256"]))
    return _cut(rows, _MOST_FILES)


def _files_of(role: str, hashes: Mapping[str, str]) -> Sequence[tuple[str, str, str]]:
    return [(role, name, digest) for name, digest in sorted(hashes.items())]
