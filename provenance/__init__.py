"""Test whether a model was trained on your model's watermarked responses.

The names below are the public library; everything else may change. They are imported when they are
first used, so that `import provenance` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "CheckSettings": "provenance.check.examine",
    "Detection": "provenance.marks.detection",
    "Index": "provenance.served.index",
    "Key": "provenance.keys.keyring",
    "Keyring": "provenance.keys.keyring",
    "LogWriter": "provenance.served.writer",
    "Observations": "provenance.suspect.observations",
    "ProvenanceError": "provenance.errors",
    "Schedule": "provenance.keys.schedule",
    "SchemeSpecification": "provenance.keys.keyring",
    "UnlockedKeyring": "provenance.keys.keyring",
    "Verdict": "provenance.check.verdict",
    "Watermark": "provenance.embed.watermark",
    "add_value": "provenance.keys.keyring",
    "build_index": "provenance.served.build",
    "check_outputs": "provenance.check.examine",
    "create_keyring": "provenance.keys.keyring",
    "detect_mark": "provenance.marks.detection",
    "detect_pooled": "provenance.marks.detection",
    "load_tokenizer": "provenance.keys.tokenizer",
    "make_scheme": "provenance.marks.own",
    "observe": "provenance.suspect.access.outputs",
    "read_foreign_mark": "provenance.marks.foreign.reading",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'provenance' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
