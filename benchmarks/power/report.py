"""All records of the power benchmark, the ratios against the targets, and the pictures.

Ratios are of z^2 on the same suspect and the same tokens, which is by how many times fewer tokens
would do. Only tests that hold for an innocent suspect are compared; the others stand in the records
with their false-positive rate.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.power import pictures
from benchmarks.power.curves import Point, measure_curves
from benchmarks.power.measure import (
    Bench,
    Record,
    measure,
    measure_served,
    write_reference_text,
)
from provenance.storage.files import read_json, write_json
from tests.world.power.settings import (
    POWER_WORLDS,
    WIDTHS,
    WORK,
    World,
    frontier_worlds,
    suspect_name,
)

RESULTS = Path(__file__).parents[1] / "results"
DOCUMENTS = {"gumbel-k2-s20": 640, "green-d2-k2-s100": 128}
"""Fresh responses that are read: all there are, or about 20 k positions of the marked slot."""
SERVED_DOCUMENTS = {"gumbel-k2-s20": 1000, "green-d2-k2-s100": 128}
"""Served responses that are read, so that about 20 k positions of the marked slot are."""
FRONTIER_DOCUMENTS = 128
DIVERSITY = 0.95
MARGIN = 1.645


def measure_world(work: Path, world: World, documents: int) -> list[Record]:
    """Records of every suspect of a world that is complete, and of the innocent of its size."""
    folder, unmarked = work / world.name, work / "unmarked"
    is_power = world in POWER_WORLDS
    innocent = unmarked / ("innocent-power" if is_power else "innocent-frontier")
    suspects = [(folder / suspect_name(rho), rho) for rho in world.rhos]
    if is_power:
        suspects.append((innocent, 0.0))
    bench: Bench | None = None
    records = []
    for suspect, rho in suspects:
        kept = folder / f"measured-{suspect.name}.json"
        if not (suspect / "outputs.jsonl.gz").exists():
            continue
        if not kept.exists():
            bench = bench or Bench(folder, unmarked, documents)
            found = measure(bench, suspect, rho, "fresh", null=is_power and rho == 0)
            write_json(kept, [asdict(record) for record in found])
        records += [Record(**record) for record in read_json(kept)]
        kept = folder / f"measured-served-{suspect.name}.json"
        if is_power and not kept.exists():
            bench = bench or Bench(folder, unmarked, documents)
            found = measure_served(bench, suspect, rho, SERVED_DOCUMENTS[world.name])
            write_json(kept, [asdict(record) for record in found])
        if is_power:
            records += [Record(**record) for record in read_json(kept)]
    return records


def measure_curve(work: Path, world: World, documents: int) -> list[Point]:
    """z against tokens of the suspect that was trained on marked responses only."""
    folder = work / world.name
    kept = folder / "curves.json"
    if not kept.exists():
        if not (folder / "rho-1/outputs.jsonl.gz").exists():
            return []
        bench = Bench(folder, work / "unmarked", documents)
        write_json(kept, [asdict(point) for point in measure_curves(bench, folder / "rho-1")])
    return [Point(**point) for point in read_json(kept)]


def find(records: list[Record], **wanted: Any) -> Record | None:
    """The one record with these fields."""
    for record in records:
        if all(getattr(record, name) == value for name, value in wanted.items()):
            return record
    return None


def compare(records: list[Record], world: str) -> dict[str, float]:
    """Rows of the table of targets that compare tests on the same suspect.

    `smallest_share` is ours over theirs: at most a quarter is the target.
    """

    def ratio(access: str, ours: str, theirs: str) -> float | None:
        mine = find(records, world=world, share=1.0, access=access, method=ours)
        other = find(records, world=world, share=1.0, access=access, method=theirs)
        return None if mine is None or other is None else round((mine.z / other.z) ** 2, 2)

    rows = {
        "text_reference": ratio("text", "provenance-base", "sander-closed-filtered"),
        "text_ngram": ratio("text", "provenance-ngram", "sander-closed-filtered"),
        "weights": ratio("weights", "provenance-base", "sander-open"),
        "weights_against_filtered": ratio("weights", "provenance-base", "sander-open-filtered"),
    }
    mine, theirs = (
        smallest_share(records, world, method)
        for method in ("provenance-base", "sander-open-filtered")
    )
    if mine is not None:
        # theirs is 1 at best where their test finds no suspect at all
        rows["smallest_share"] = round(mine / (theirs or 1.0), 3)
        rows["smallest_share_of_ours"] = mine
    if theirs is not None:
        rows["smallest_share_of_sander"] = theirs
    return {name: value for name, value in rows.items() if value is not None}


def smallest_share(records: list[Record], world: str, method: str) -> float | None:
    """The smallest share of marked training data with p < 1e-6, reading served responses."""
    found = [
        record.share
        for record in records
        if (record.world, record.access, record.method) == (world, "weights, served", method)
        and record.share > 0
        and record.log10_p < -6
    ]
    return min(found, default=None)


def compare_systems(records: list[Record], qualities: dict[str, Any]) -> dict[str, Any]:
    """Our scheme and test against Sander's (green, delta 2 and 3), from text and from weights.

    Ours: the world of the frontier with the best z among those whose responses are at least as
    likely under the unmarked teacher as theirs, and that keep 95 % of the distinct 3-grams of
    unmarked text. Theirs: one entry a delta and width k (the paper has k = 2). A z of theirs below
    1 counts as 1. `cautious` takes 1.645 standard deviations off our z and adds them to theirs.
    """
    clean = qualities["unmarked"]["distinct_3"]
    found: dict[str, Any] = {}
    for access, ours, theirs in (
        ("text", "provenance-base", "sander-closed-filtered"),
        ("weights", "provenance-base", "sander-open"),
    ):
        for delta, width in product((2, 3), sorted(WIDTHS)):
            rival = f"frontier-green-d{delta}-k{width}-s100"
            other = find(records, world=rival, access=access, method=theirs)
            allowed = [
                record
                for record in records
                if (record.access, record.method) == (access, ours)
                and record.world.startswith("frontier")
                and qualities[record.world]["distinct_3"] >= DIVERSITY * clean
                and qualities[record.world]["nll_under_teacher"]
                <= qualities.get(rival, {}).get("nll_under_teacher", 0)
            ]
            if other is None or not allowed:
                continue
            best = max(allowed, key=lambda record: record.z)
            found[f"{access}_green_{delta}_k{width}"] = {
                "ours": best.world,
                "z": best.z,
                "z_of_sander": other.z,
                "ratio": round((best.z / max(other.z, 1.0)) ** 2, 2),
                "cautious": round(((best.z - MARGIN) / (max(other.z, 0) + MARGIN)) ** 2, 2),
            }
    return found


def summarise_systems(systems: dict[str, Any]) -> dict[str, float]:
    """The smallest ratio against the paper's width, cautiously, and against their best width."""
    paper = [row for name, row in systems.items() if name.endswith("_k2")]
    return {
        "system": min(row["ratio"] for row in paper),
        "system_cautious": min(row["cautious"] for row in paper),
        "system_at_their_best_width": min(row["ratio"] for row in systems.values()),
    }


def read_qualities(work: Path) -> dict[str, Any]:
    """quality.json of every world that has one."""
    return {path.parent.name: read_json(path) for path in work.glob("*/quality.json")}


def all_worlds() -> Iterator[tuple[World, int]]:
    """Every world and how many documents are read in it."""
    for world in POWER_WORLDS:
        yield world, DOCUMENTS[world.name]
    for world in frontier_worlds():
        yield world, FRONTIER_DOCUMENTS


def main() -> None:
    """Measure what is there, write the results and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work, started = arguments.work, time.perf_counter()
    write_reference_text(work / "unmarked")
    records, points = [], []
    for world, documents in all_worlds():
        if (work / world.name / "fresh.parquet").exists():
            records += measure_world(work, world, documents)
    for world in POWER_WORLDS:
        points += measure_curve(work, world, DOCUMENTS[world.name])
    qualities = read_qualities(work)
    ratios: dict[str, Any] = compare(records, POWER_WORLDS[0].name)
    systems = compare_systems(records, qualities)
    if systems:
        ratios |= summarise_systems(systems)
    result = {
        "command": "python -m benchmarks.power.produce && python -m benchmarks.power",
        "seeds": "benchmarks/power/settings.py, seed_of; keyrings are made afresh",
        "versions": {name: version(name) for name in ("torch", "numpy", "transformers")},
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread",
        "seconds_of_this_run": round(time.perf_counter() - started),
        "ratios": ratios,
        "ratios_of_green": compare(records, POWER_WORLDS[1].name),
        "systems": systems,
        "qualities": qualities,
        "records": [asdict(record) for record in records],
        "curves": [asdict(point) for point in points],
    }
    write_json(arguments.results / "power.json", result)
    pictures.draw_tokens(points, arguments.results / "power-tokens.svg")
    pictures.draw_frontier(records, qualities, arguments.results / "power-frontier.svg")
    print(json.dumps({"ratios": ratios, "systems": systems}, indent=1))
