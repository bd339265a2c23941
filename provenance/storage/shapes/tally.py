"""What was read of files of outputs, and what was left out: counts, and their words.

Knows counts; no file, no shape of a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SHOWN_PLACES: Final = 5
"""Records of each reason that are named."""
_MOST_FILES: Final = 25


@dataclass
class Tally:
    """What was read of one file.

    shape : its name; records : of the file; outputs : texts, or lists of ids; without_prompt :
    those of them before which nothing is said to be shown; left_out : records without a text, by
    reason; places : the first few of each reason; unasked : records whose request was not found
    """

    shape: str = ""
    records: int = 0
    outputs: int = 0
    without_prompt: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    unasked: int = 0

    def leave_out(self, reason: str, place: str) -> None:
        """Count a record that holds no text."""
        self.left_out[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < SHOWN_PLACES:
            places.append(place)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, as verdicts hold it."""
        return {
            "shape": self.shape,
            "records": self.records,
            "outputs": self.outputs,
            "without_prompt": self.without_prompt,
            "left_out": {
                reason: {"records": count, "first": self.places[reason]}
                for reason, count in sorted(self.left_out.items())
            },
            **({"unasked": self.unasked} if self.unasked else {}),
        }

    def is_plain(self, usual: Sequence[str]) -> bool:
        """A usual shape, and nothing left out: nothing to say of it."""
        return self.shape in usual and not self.left_out


def say_reading(described: Mapping[str, Any]) -> list[str]:
    """Sentences on what `RecordFiles.describe` says, for people.

    >>> say_reading({"files": {"a.jsonl": {"shape": "openai-batch", "records": 3, "outputs": 2,
    ...     "without_prompt": 2, "left_out": {"refusal": {"records": 1, "first": ["line 2"]}}}},
    ...     "not_read": [], "requests": {}})
    ['a.jsonl: read as openai-batch; 1 of 3 records without a text: 1 refusal (line 2).']
    """
    try:
        files = list(described.get("files", {}).items())
        said = [_say_file(name, file) for name, file in files[:_MOST_FILES]]
        if len(files) > _MOST_FILES:
            said.append(f"And {len(files) - _MOST_FILES:,} more files, see the verdict.")
        if not_read := described.get("not_read"):
            shown = ", ".join(not_read[:SHOWN_PLACES])
            more = ", ..." if len(not_read) > SHOWN_PLACES else ""
            said.append(f"Not read in the folder: {len(not_read):,} files ({shown}{more}).")
    except (AttributeError, KeyError, TypeError, ValueError):  # a document of somebody else
        return ["How the files were read is not said in a form that is known."]
    return said


def _say_file(name: str, file: Mapping[str, Any]) -> str:
    said = f"{name}: read as {file['shape']}"
    parts, left = [], 0
    for reason, one in file["left_out"].items():
        more = ", ..." if one["records"] > len(one["first"]) else ""
        parts.append(f"{one['records']:,} {reason} ({', '.join(one['first'])}{more})")
        left += one["records"]
    if parts:
        records = f"{left:,} of {file['records']:,} records without a text"
        said += f"; {records}: {', '.join(parts)}"
    if unasked := file.get("unasked", 0):
        said += f"; no request was found for {unasked:,}"
    return f"{said}."
