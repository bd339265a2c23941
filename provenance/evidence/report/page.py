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

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from provenance.check.inputs import say_positions
from provenance.check.power_statement import say_power_json
from provenance.check.verdict import Reservation
from provenance.evidence.report.figures import ACCENT, INK, SECOND, draw_placebo, draw_trajectory
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
}
"""Colours of the page by name; every text colour has a contrast of 4.5 or more on both grounds."""

_COLOURS: Final[Mapping[Standing, str]] = {
    "evidence": "accent",
    "twins": "accent",
    "none": "second",
    "untested": "soft",
    "little": "soft",
    "reserved": "soft",
    "invalid": "ink",
}
_MOST_ROWS: Final = 60
_MOST_REASONS: Final = 12
_MOST_CONTROLS: Final = 30
_MOST_FILES: Final = 25
_LONGEST: Final = 1500


def render_report(
    verdict: Mapping[str, Any],
    trajectory: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
) -> str:
    """The report of a check as one HTML page.

    Parameters
    ----------
    verdict : content of verdict.json (`Verdict.to_json`); fields of later steps (`plan`,
        `exploratory`, `caveat`) may be missing
    trajectory : `Trajectory.to_json`, for the picture of evidence against tokens; or None
    plan : content of plan.json; None for an exploratory check

    Returns
    -------
    str
        A whole document below 200 kB, without script, external reference or date.

    Raises
    ------
    KeyError if `verdict` lacks a field of its schema.

    Notes
    -----
    No p-value is shown if a control failed, or if something is held against the evidence. Cost:
    about 1 s, mostly two pictures.
    """
    standing = find_standing(verdict)
    valid = shows_numbers(verdict)
    environment = Environment(
        loader=PackageLoader("provenance.evidence.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean_text,
    )
    environment.filters.update(name=show_name, p=say_p, percent=_percent, signed=_signed)
    return environment.get_template("report.html").render(
        verdict=verdict,
        standing=standing,
        valid=valid,
        colour=_COLOURS[standing],
        palette=PALETTE,
        title=TITLES[standing],
        finding=say_finding(verdict),
        reasons=_cut(verdict.get("reasons", ()), _MOST_REASONS),
        reservations=_cut(_list_reservations(verdict), _MOST_REASONS),
        scored=any(row["tail"]["coins"] for row in verdict["hypotheses"]),
        frequency=say_frequency(verdict["log10_p"]),
        caution=describe_strength(verdict["log10_p"]),
        keys=_list_keys(verdict),
        placebos=_draw_placebos(verdict, valid),
        growth=_draw_growth(verdict, trajectory) if valid else None,
        shares=_list_shares(verdict) if standing == "evidence" else None,
        controls=_cut(verdict["controls"], _MOST_CONTROLS),
        twins=verdict.get("twins"),
        twins_frequency=_say_twins(verdict),
        caveats=_list_caveats(verdict.get("caveat")),
        planned=_describe_plan(verdict, plan),
        power=say_power_json(verdict["power"]) if verdict.get("power") else None,
        curve=(verdict.get("power") or {}).get("curve"),
        assumptions=ASSUMPTIONS,
        not_shown=NOT_SHOWN,
        files=_list_files(verdict["inputs"]),
        observed=verdict["inputs"]["outputs"],
        counted=say_positions(verdict["inputs"]["outputs"]),
    )


def _list_reservations(verdict: Mapping[str, Any]) -> list[str]:
    """What is known of the inputs and is not among the reasons already."""
    rows = [Reservation(**row) for row in verdict.get("reservations", ())]
    return [str(one) for one in rows if one.reason not in verdict.get("reasons", ())]


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


def _list_keys(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of the check, the smallest adjusted p first."""
    rows = sorted(verdict["hypotheses"], key=lambda h: (h["log10_adjusted"], h["log10_p"]))
    named = [{**row, "name": str(KeyName(row["slot"], row["value"]))} for row in rows]
    return _cut(named, _MOST_ROWS)


def _draw_placebos(verdict: Mapping[str, Any], valid: bool) -> list[dict[str, Any]]:
    """One picture per placebo control that ran; without the true key if a control failed."""
    z_of = {
        f"placebo keys ({KeyName(h['slot'], h['value'])})": h["tail"]["z"]
        for h in verdict["hypotheses"]
    }
    found: list[dict[str, Any]] = []
    for control in verdict["controls"]:
        z = control.get("placebo_z")
        if not z or control["name"] not in z_of or len(found) == 2:
            continue
        true_z = z_of[control["name"]] if valid else None
        above = sum(value >= z_of[control["name"]] for value in z)
        title = f"Histogram of z of {len(z)} placebo keys, from {min(z):.1f} to {max(z):.1f}."
        if true_z is not None:
            title += f" The true key is at {true_z:.1f}; {above} placebo keys are at or above it."
        picture = draw_placebo(z, true_z, f"placebo{len(found)}", title)
        found.append(
            {
                "key": control["name"][len("placebo keys (") : -1],
                "picture": picture,
                "count": len(z),
                "above": above,
                "passed": control["passed"],
            }
        )
    return found


def _draw_growth(
    verdict: Mapping[str, Any], trajectory: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Evidence against tokens; None if there are fewer than two points."""
    points = list(trajectory["points"]) if trajectory else []
    if trajectory is None or len(points) < 2:
        return None
    level = next(
        (
            math.log10(verdict["alpha"] * h["family_weight"])
            for h in verdict["hypotheses"]
            if str(KeyName(h["slot"], h["value"])) == trajectory["key"] and h["family_weight"] > 0
        ),
        math.log10(verdict["alpha"]),
    )
    tokens, log10_p, log10_e = (
        [point[name] for point in points] for name in ("tokens", "log10_p", "log10_e")
    )
    title = (
        f"Evidence against tokens of outputs: after {tokens[-1]:,} tokens log10 p is "
        f"{log10_p[-1]:.1f} and log10 of the e-process {log10_e[-1]:.1f}; the level is {level:.1f}."
    )
    return {
        "key": trajectory["key"],
        "picture": draw_trajectory(tokens, log10_p, log10_e, level, "growth", title),
        "points": points,
        "level": level,
    }


def _list_shares(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per attribute slot: its values with shares, and whether their own key was found."""
    found = verdict["attributed"]
    p_of = {(h["slot"], h["value"]): h["log10_adjusted"] for h in verdict["hypotheses"]}
    slots: dict[str, list[dict[str, Any]]] = {}
    for share in verdict["shares"]:
        pair = share["slot"], share["value"]
        named = share["value"] in found.get(share["slot"], [])
        row = {**share, "found": named, "log10_adjusted": p_of.get(pair)}
        slots.setdefault(share["slot"], []).append(row)
    return [
        {
            "slot": slot,
            "found": len(found.get(slot, [])),
            **_cut(sorted(rows, key=lambda row: -row["lower"]), _MOST_ROWS),
        }
        for slot, rows in list(slots.items())[:8]
    ]


def _say_twins(verdict: Mapping[str, Any]) -> Markup | None:
    return say_frequency(verdict["twins"]["log10_p"]) if verdict.get("twins") else None


def _list_caveats(caveat: object) -> list[str]:
    """The warnings that come with a foreign scheme: one string, or several."""
    if not caveat:
        return []
    return [caveat] if isinstance(caveat, str) else [str(item) for item in list(caveat)[:10]]  # type: ignore[call-overload]


def _describe_plan(
    verdict: Mapping[str, Any], plan: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What is said of the plan; None if the check was exploratory."""
    stated = verdict.get("plan")
    if verdict.get("exploratory", stated is None) or not isinstance(stated, Mapping):
        return None
    return {
        "sha256": stated.get("sha256", ""),
        "timestamp": stated.get("timestamp"),
        "suspect": (plan or {}).get("suspect"),
        "created": (plan or {}).get("created"),
    }


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
