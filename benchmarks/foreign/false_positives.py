"""False-positive rates of `detect` and `check` under foreign schemes, beside the originals' own.

    python -m benchmarks.foreign.false_positives [--keys 400] [--worlds 40] [SCHEME...]
    python -m benchmarks.foreign.false_positives --spread 600 [SCHEME...]

The second form only prints mean and standard deviation of z of ordinary text over so many keys.

Detection: unmarked texts of 100 k tokens (see `texts`), each under many random keys of each scheme.
Our p is that of `detect_mark`, all windows and corrections included. The original's p is the normal
tail of its z, by its own counting, computed from the same coins, which the tests prove equal to its
own: every position for green lists (the default of `WatermarkDetector`), each window once where it
deduplicates, its mask and fair bits for SynthID's mean score. On the first 2,000 tokens
transformers' own `WatermarkDetector` is run too, and must count the same green tokens.

Training test: the synthetic world of `world`, one random key a world, innocents of four kinds, the
whole of observe, weigh with the index of the *marked* log, score and tail.

The limit beside each rate is the exact binomial one with a false alarm of 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.check.score import tabulate, weigh_observations
from provenance.check.weigh import DEFAULT_RULE
from provenance.marks.detection import detect_mark
from provenance.marks.foreign.mark import ForeignMark
from provenance.stats.tails import upper_tail
from provenance.suspect.access.outputs import observe
from tests.world.calibration import binomial_limit
from tests.world.foreign import CONFIGURATIONS, TESTED, make_foreign_world, random_scheme
from tests.world.originals import Ids, original_log10_p, windows
from tests.world.synthetic import Teacher, innocent, write_outputs
from tests.world.texts import KINDS, make_text, read_tokens

LEVELS = (1e-2, 1e-3, 1e-4)
WORK = Path(__file__).parents[1] / "lab/work"
RESULTS = Path(__file__).parents[1] / "results/foreign-false-positives.json"
FAKE_TOKENIZER = "0" * 64


def check_with_transformers(name: str, scheme: Any, ids: Ids, vocabulary: int) -> bool | None:
    """Whether transformers' own detector counts the same green tokens; None where there is none."""
    if name not in ("hf-lefthash", "hf-selfhash"):
        return None
    import torch
    from transformers import WatermarkDetector

    config = {
        "greenlist_ratio": scheme.gamma,
        "hashing_key": scheme.key,
        "seeding_scheme": name.removeprefix("hf-"),
        "context_width": scheme.width + scheme.self_salted,
    }
    model = SimpleNamespace(bos_token_id=vocabulary, is_encoder_decoder=False)
    model.vocab_size = vocabulary
    detector = WatermarkDetector(model, "cpu", config)
    found = detector(torch.tensor(ids[None].astype(np.int64)), return_dict=True)
    return int(found.num_green_tokens[0]) == int(scheme.score(*windows(scheme, ids)).sum())


def run_detection(name: str, ids: Ids, vocabulary: int, keys: int) -> Iterator[dict[str, Any]]:
    """One row per key and kind of text."""
    for number in range(keys):
        rng = np.random.default_rng([number, 4])
        scheme = random_scheme(name, rng, vocabulary)
        mark = ForeignMark(scheme, vocabulary, FAKE_TOKENIZER)
        for kind in KINDS:
            text = make_text(kind, ids, rng)
            (coins,) = mark.read(text)
            law, n = mark.null_law, coins.scores.size
            yield {
                "kind": kind,
                "ours": detect_mark(text, mark).log10_p,
                "original": original_log10_p(scheme, text),
                "z": (coins.scores.sum() - n * law.mean) / np.sqrt(n * law.variance),
                "coins": n,
            }


def spread_of_z(name: str, ids: Ids, vocabulary: int, keys: int) -> NDArray[np.float64]:
    """z of one text under so many random keys: float64 [keys]."""
    rng = np.random.default_rng(77)
    found = []
    for _ in range(keys):
        mark = ForeignMark(random_scheme(name, rng, vocabulary), vocabulary, FAKE_TOKENIZER)
        (coins,) = mark.read(ids)
        law, n = mark.null_law, coins.scores.size
        found.append((coins.scores.sum() - n * law.mean) / np.sqrt(n * law.variance))
    return np.array(found)


def run_check(name: str, teacher: Teacher, worlds: int) -> Iterator[dict[str, Any]]:
    """One row per world and kind of innocent."""
    for seed in range(worlds):
        rng = np.random.default_rng([seed, 5])
        with tempfile.TemporaryDirectory() as folder:
            world = make_foreign_world(Path(folder), teacher, name, seed, 100, 80)
            index = world.index.with_equal_counts() if world.mark.shares_coins else world.index
            for kind in KINDS:
                outputs, prompts = innocent(kind, world, rng)  # type: ignore[arg-type]
                path = write_outputs(world.folder / f"{kind}.jsonl", outputs, prompts)
                observations = observe([path], world.tokenizer, world.mark.public)
                weighing = weigh_observations(observations, index, world.mark, DEFAULT_RULE)
                pairs = weighing.hypotheses["global", ""]
                tail = upper_tail(
                    tabulate(pairs, world.mark.open("global", ""), world.mark.null_law)
                )
                yield {"kind": kind, "ours": tail.log10_p, "z": tail.z, "coins": tail.coins}
            world.index.close()


def summarise(rows: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """Rate, count and limit per level."""
    p = np.array([row[column] for row in rows])
    found = {}
    for level in LEVELS:
        rejected, limit = int((p <= np.log10(level)).sum()), binomial_limit(p.size, level)
        found[f"{level:g}"] = {
            "rate": rejected / p.size,
            "rejected": rejected,
            "limit": limit,
            "passed": rejected <= limit,
        }
    return found


def measure(name: str, ids: Ids, vocabulary: int, keys: int, worlds: int) -> dict[str, Any]:
    """All figures of one scheme."""
    started = time.perf_counter()
    texts = list(run_detection(name, ids, vocabulary, keys))
    scheme = random_scheme(name, np.random.default_rng(1), vocabulary)
    agrees = check_with_transformers(name, scheme, ids[:2000], vocabulary)
    suspects = list(run_check(name, Teacher.draw(0), worlds))
    z = np.array([row["z"] for row in texts if row["kind"] == "ordinary"])
    checked = np.array([row["z"] for row in suspects if row["coins"] >= 30])
    return {
        "scheme": name,
        "configuration": {k: v for k, v in CONFIGURATIONS[name].items() if v not in (0, [0] * 30)},
        "texts": len(texts),
        "detect": summarise(texts, "ours"),
        "original": summarise(texts, "original"),
        "original_by_kind": {
            kind: summarise([row for row in texts if row["kind"] == kind], "original")
            for kind in KINDS
        },
        "z_of_ordinary_text": {"mean": float(z.mean()), "sd": float(z.std())},
        "coins_of_ordinary_text": int(texts[0]["coins"]),
        "agrees_with_transformers_detector": agrees,
        "suspects": len(suspects),
        "check": summarise(suspects, "ours") if suspects else {},
        "z_of_suspects": {"mean": float(checked.mean()), "sd": float(checked.std())}
        if checked.size
        else {},
        "seeds": "texts [key, 4], worlds [world, 2] and [world, 5], teacher 0",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "versions": {name: version(name) for name in ("numpy", "numba", "scipy")}
        | {"python": platform.python_version()},
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Measure every scheme, keeping what is done, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keys", type=int, default=400)
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--spread", type=int, default=0)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("schemes", nargs="*", default=TESTED)
    arguments = parser.parse_args()
    ids, vocabulary = read_tokens(arguments.work)
    if arguments.spread:
        for name in arguments.schemes:
            z = spread_of_z(name, ids, vocabulary, arguments.spread)
            print(f"{name:22s} mean {z.mean():+.3f} sd {z.std():.3f} max {z.max():.2f}", flush=True)
        return
    command = "python -m benchmarks.foreign.false_positives"
    command += f" --keys {arguments.keys} --worlds {arguments.worlds}"
    rows: dict[str, Any] = {}
    if arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["schemes"]
    for name in arguments.schemes:
        rows[name] = measure(name, ids, vocabulary, arguments.keys, arguments.worlds)
        row = rows[name] | {"command": f"{command} {name}"}
        rows[name] = row
        result = {"tokens": int(ids.size), "vocabulary": vocabulary, "schemes": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        cells = [
            f"{row[part][level]['rate']:.4f}{'' if row[part][level]['passed'] else '!'}"
            for part in ("detect", "check", "original")
            for level in row[part]
        ]
        print(
            f"{name:22s} {' '.join(cells)} sd {row['z_of_ordinary_text']['sd']:.3f} "
            f"suspects {row['z_of_suspects']} {row['seconds']} s",
            flush=True,
        )
