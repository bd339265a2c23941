"""H0 of sequential checks where pairs share coins: innocents in three batches under random keys.

`python -m benchmarks.foreign.sequential --keys 400`; prints one line a scheme and kind of text. The
small version runs in `tests/check/looks/test_foreign.py`; the doubles are those of
`tests.world.shared_coins`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from provenance.check.score import weigh_observations
from provenance.suspect.access.outputs import observe
from tests.world.foreign import make_foreign_world, random_scheme
from tests.world.shared_coins import RULE, simulate
from tests.world.synthetic import Teacher, innocent, write_outputs


def main() -> None:
    """One world a scheme, two kinds of innocent text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=400)
    keys = parser.parse_args().keys
    teacher = Teacher.draw(0)
    print("scheme, text: P(E ever >= 2, 10, 100); mean and sd of z; sd of the doubles")
    for name in ("lm-watermarking", "markllm-exp", "hf-synthid"):
        scheme = random_scheme(name, np.random.default_rng(3))
        if name == "hf-synthid":  # as many coins as this little text can share
            scheme = replace(scheme, sampling_table_size=1 << 12)
        folder = Path(tempfile.mkdtemp())
        world = make_foreign_world(folder, teacher, name, 3, 120, 60, scheme)
        index = world.index.with_equal_counts() if world.mark.shares_coins else world.index
        for kind in ("ordinary", "repeats"):
            outputs, prompts = innocent(kind, world, np.random.default_rng(11))
            batches = []
            for number, part in enumerate(np.array_split(np.arange(len(outputs)), 3)):
                path = folder / f"{kind}-{number}.jsonl"
                write_outputs(path, [outputs[i] for i in part], [prompts[i] for i in part])
                found = observe([path], world.tokenizer, world.mark.public)
                weighing = weigh_observations(found, index, world.mark, RULE)
                batches.append(weighing.hypotheses["global", ""])
            made = simulate(world.mark, batches, keys, b"benchmark seed of sequential H0.")
            rates = [float((made.best >= np.log10(level)).mean()) for level in (2, 10, 100)]
            print(
                f"{name}, {kind}: {rates}; {made.z.mean():+.3f}, {made.z.std():.3f}; "
                f"{made.by_pairs.std():.3f}, {made.forgetful.std():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
