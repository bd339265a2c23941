"""Standard streams that nobody's leaving can turn into an exit code.

Exit 1 means evidence. A reader that goes away (`check ... | head -1`) must not cause it, nor stop a
command before its files are written: what is written to a pipe without a reader is dropped, and the
command goes on. A disk that is full is another matter: results that could not be written are an
error, words on stderr are not.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

STDIN: Final = Path("-")
"""How a command names its standard input among files."""


class _Descriptor(io.RawIOBase):
    """Writes to a descriptor until its reader has gone; then, or if `quiet` at any error, nowhere.

    The descriptor stays open when this is closed.
    """

    def __init__(self, descriptor: int, *, quiet: bool) -> None:
        super().__init__()
        self._descriptor, self._quiet = descriptor, quiet
        self._gone = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: object) -> int:
        data = memoryview(content).cast("B")  # type: ignore[arg-type]
        if not self._gone:
            try:
                return os.write(self._descriptor, data)
            except BrokenPipeError:
                self._gone = True
            except OSError:
                if not self._quiet:
                    raise
                self._gone = True
        return len(data)

    def discard(self) -> None:
        """Write nothing from now on."""
        self._gone = True


@contextmanager
def guard_streams() -> Iterator[None]:
    """Run the body with such streams in place of the process's own.

    The body flushes stdout itself, so that it sees an OSError for results that could not be
    written. Streams that somebody else has put in place (a test) are left alone.
    """
    _fill_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    opened = []
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is sys.__stdout__:
        sys.stdout = _open(1, sys.stdout, quiet=False)
        opened.append(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _open(2, sys.stderr, quiet=True)
        opened.append(sys.stderr)
    try:
        yield
    finally:
        for stream in opened:
            with suppress(OSError, ValueError):
                stream.flush()
            # what could not be written would be tried, and complained about, once more at the end
            stream.buffer.raw.discard()  # type: ignore[attr-defined]
        sys.stdin, sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """Open what was closed before the start, so that no file of ours becomes descriptor 1."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


def _open(descriptor: int, before: TextIO | None, *, quiet: bool) -> io.TextIOWrapper:
    """A text stream on the descriptor, encoded and buffered like the one before.

    A character that the encoding has not is escaped: a name is no reason to lose a verdict.
    """
    if before is not None:
        with suppress(OSError, ValueError):
            before.flush()
    errors = before.errors if before is not None else None
    raw = _Descriptor(descriptor, quiet=quiet)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace" if errors in (None, "strict") else errors,
        line_buffering=quiet or raw.isatty(),
        write_through=quiet,
    )


@contextmanager
def keep_stdin(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files of which one is `-`, with a copy of what stdin said in its place while the body runs.

    Files are read more than once, which a pipe cannot be. Raises OSError if the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="provenance-") as folder:
        kept = Path(folder) / "stdin.jsonl"
        with kept.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield [kept if path == STDIN else path for path in files]
