"""One file of figures that every gate writes its own part of."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, Final

from provenance.check.inputs import describe_versions

RESULTS: Final = Path("benchmarks/results/gates.json")


def record(name: str, command: str, found: dict[str, Any], path: Path = RESULTS) -> None:
    """Put the figures of one gate into the file; those of others stay."""
    document = json.loads(path.read_text()) if path.exists() else {}
    document[name] = {
        "command": command,
        "versions": describe_versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
