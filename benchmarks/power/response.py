"""Write the response curves of the package from the recorded results of the power benchmark.

python -m benchmarks.power.response
"""

from __future__ import annotations

from provenance.storage.files import read_json, write_json
from tests.world.power.response import CURVES, RESULTS, make_curves, make_strongest


def main() -> None:
    """Write the file."""
    results = read_json(RESULTS)
    curves = make_curves(results)
    form = {"format": "provenance response curves 1", "strongest": make_strongest(results)}
    write_json(CURVES, {**form, "curves": curves})
    print(f"{len(curves)} curves: {CURVES}")


if __name__ == "__main__":
    main()
