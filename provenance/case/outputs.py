"""How files of outputs are read: their shape, their counts, and the first record as it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from provenance.errors import UsageError
from provenance.storage.files import Paths, as_paths
from provenance.storage.printable import Page, Said, shorten
from provenance.storage.shapes.reading import RecordFiles
from provenance.storage.shapes.requests import ReadAs
from provenance.storage.shapes.tally import say_reading
from provenance.suspect.access.outputs import Output, outputs_of

_LONGEST: Final = 300


@dataclass(frozen=True)
class ReadOutputs(Said):
    """What `read_outputs` found.

    Attributes
    ----------
    outputs : their number
    without_prompt : those before which nothing is known to be shown
    reading : shape and counts of every file, what was left out and why, files of folders that were
        not read, hashes of the requests
    sha256 : of the files
    first : origin, prompt (list of texts) and output (text, or ids) of the first one, or None
    """

    outputs: int
    without_prompt: int
    reading: dict[str, Any]
    sha256: dict[str, str]
    first: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "outputs": self.outputs,
            "without_prompt": self.without_prompt,
            "first": self.first,
            "sha256": self.sha256,
            **self.reading,
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        noun = "output" if self.outputs == 1 else "outputs"
        page.say(f"{self.outputs:,} {noun}, {self.without_prompt:,} of them without a prompt.")
        for sentence in say_reading(self.reading):
            page.say(sentence)
        if self.first is not None:
            page.say(f"First: {self.first['origin']}")
            for text in self.first["prompt"]:
                page.say(f"  shown: {shorten(text, _LONGEST)}")
            page.say(f"  output: {shorten(str(self.first['output']), _LONGEST)}")
        return str(page)


def read_outputs(
    files: Paths,
    *,
    format: str | None = None,  # noqa: A002 - the name of the option
    requests: Paths | None = None,
    mapping: Sequence[str] | None = None,
    strict: bool | None = False,
) -> ReadOutputs:
    """Read files of outputs as a check would read them, and say what was found.

    Parameters
    ----------
    files : one file or folder, or several
    format : name of their shape (docs/formats.md); None: it is found out
    requests : files with the requests of a batch, joined by their ids
    mapping : `output=field.path`, `prompt=field.path`, for a shape that is not known
    strict : a record that holds no text is an error

    Raises UsageError, DataError naming file and line, StorageError. Cost: parsing; memory: one
    record, or one document where a file is one.
    """
    reading = ReadAs.make(format, requests, mapping, strict=strict)
    paths = as_paths(files, "outputs")
    if not paths:
        raise UsageError("outputs must be at least one file; got none. Name the suspect's outputs.")
    records = RecordFiles(paths, reading)
    count = bare = 0
    first: Output | None = None
    for origin, record in records:
        for output in outputs_of(record, origin):
            count += 1
            bare += not (output.shown.texts or output.shown.token_ids)
            first = first or output
    return ReadOutputs(count, bare, records.describe(always=True), records.sha256, _show(first))


def _show(output: Output | None) -> dict[str, Any] | None:
    if output is None:
        return None
    written = output.text if output.token_ids is None else list(output.token_ids)
    return {"origin": output.origin, "prompt": list(output.shown.texts), "output": written}
