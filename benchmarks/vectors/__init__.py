"""Known-answer vectors of foreign schemes: what the scripts of this folder share.

Each script runs an original and writes `fixtures/vectors/<scheme>.json`: a header (made by,
version, command) and vectors of a configuration, token ids and the coin of every position from
`width` on.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[2] / "fixtures" / "vectors"
POSITIONS = 200


def token_ids(vocabulary_size, seed, width):
    """Ids of POSITIONS scored tokens: half uniform, half of a few, id 0 and the last among them."""
    rng = np.random.default_rng(seed)
    n = POSITIONS + width
    few = np.append(rng.integers(0, vocabulary_size, 6), [0, vocabulary_size - 1])
    ids = np.where(rng.random(n) < 0.5, rng.integers(0, vocabulary_size, n), rng.choice(few, n))
    return [int(i) for i in ids]


def windows(ids, width):
    """(context, token) of every scored position."""
    return [(ids[i - width : i], ids[i]) for i in range(width, len(ids))]


def write(name, script, made_by, packages, vectors, note="", folder=FOLDER):
    """Write one file; packages are the distributions whose versions matter."""
    content = {
        "made_by": made_by,
        "version": {package: version(package) for package in packages}
        | {"python": platform.python_version()},
        "command": f"python -m benchmarks.vectors.{script}",
        "note": note,
        "vectors": vectors,
    }
    text = json.dumps(content, separators=(",", ":"))
    for mark in ('"version":', '"command":', '"note":', '"vectors":', '{"config":'):
        text = text.replace(mark, "\n" + mark)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n")
    print(name, len(vectors), "vectors")
