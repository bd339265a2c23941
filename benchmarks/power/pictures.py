"""The pictures of the power benchmark, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.power.curves import Point
from benchmarks.power.measure import Record

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "provenance"

NAMES = {
    "provenance": "provenance, no reference",
    "provenance-ngram": "provenance, k-grams",
    "provenance-base": "provenance, base model",
    "sander-closed-filtered": "Sander et al., closed, filtered",
    "sander-open": "Sander et al., open",
}
COLOURS = {"gumbel": "#0b5fa5", "green": "#1a7f37", "tournament": "#b35900"}
MARKERS = {1: "^", 2: "o", 3: "s"}


def draw_tokens(points: list[Point], path: Path) -> None:
    """z against tokens per world, text solid and weights dashed; both axes logarithmic."""
    worlds = list(dict.fromkeys(point.world for point in points))
    if not worlds:
        return
    figure, axes = plt.subplots(1, len(worlds), figsize=(5.2 * len(worlds), 4.4), squeeze=False)
    for axis, world in zip(axes[0], worlds, strict=True):
        lines = dict.fromkeys((p.access, p.method) for p in points if p.world == world)
        for access, method in lines:
            own = [p for p in points if (p.world, p.access, p.method) == (world, access, method)]
            own.sort(key=lambda point: point.tokens)
            axis.plot(
                [p.tokens for p in own],
                [max(p.z, 0.3) for p in own],
                "o-" if access == "text" else "s--",
                label=f"{access}: {NAMES.get(method, method)}",
                markersize=4,
            )
        axis.axhline(4.75, color="#777777", linewidth=0.8)
        axis.text(axis.get_xlim()[0], 4.9, " p = 1e-6 (normal)", fontsize=7, color="#555555")
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="z", title=world)
        axis.legend(fontsize=7)
    figure.tight_layout()
    _save(figure, path)


def draw_frontier(records: list[Record], qualities: dict[str, Any], path: Path) -> None:
    """Radioactivity against what a mark costs: NLL, and diversity relative to unmarked text."""
    own = [
        record
        for record in records
        if record.world.startswith("frontier") and record.method == "provenance-base"
    ]
    if not own:
        return
    clean = qualities["unmarked"]
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 8.4), squeeze=False)
    for row, access in zip(axes, ("text", "weights"), strict=True):
        for record in own:
            if record.access == access:
                _place(row, record, qualities[record.world], clean)
        row[0].axvline(1, color="#777777", linewidth=0.8)
        row[0].axvline(0.95, color="#777777", linewidth=0.8, linestyle=":")
        row[1].axvline(0, color="#777777", linewidth=0.8)
        row[0].set(ylabel=f"z from {access}", xlabel="distinct 3-grams, relative to unmarked")
        row[1].set(ylabel=f"z from {access}", xlabel="NLL under the teacher, minus unmarked (nats)")
        for axis in row:
            axis.set_yscale("symlog", linthresh=2)
            axis.set_ylim(bottom=-1)
    handles = [
        plt.Line2D([], [], color=colour, marker="o", linestyle="", label=scheme)
        for scheme, colour in COLOURS.items()
    ]
    handles += [
        plt.Line2D([], [], color="#555555", marker=marker, linestyle="", label=f"k = {k}")
        for k, marker in sorted(MARKERS.items())
    ]
    axes[0][0].legend(handles=handles, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _place(row: Any, record: Record, quality: Any, clean: Any) -> None:
    """One world in both panels of a row: its colour is the scheme, its marker k."""
    _, scheme, *dial, _ = [*record.world.split("-"), ""]
    width = int(next(part[1:] for part in record.world.split("-") if part.startswith("k")))
    label = next((p for p in dial if p[0] in "dms" and p[1:2].isdigit()), "")
    for axis, x in (
        (row[0], quality["distinct_3"] / clean["distinct_3"]),
        (row[1], quality["nll_under_teacher"] - clean["nll_under_teacher"]),
    ):
        axis.plot(x, record.z, MARKERS[width], color=COLOURS[scheme], markersize=6)
        axis.annotate(label, (x, record.z), fontsize=6, xytext=(3, 3), textcoords="offset points")


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
