"""A switch for the mark that needs no restart: a small file that the serving process reads again.

    {"marking": true, "share": 0.05}

`marking` false serves unmarked; `share` marks so many of the responses (a canary), chosen at random
before anything is drawn. No file: all are marked. What was switched is logged with each response.
"""

from __future__ import annotations

import logging
import time as clock
from pathlib import Path
from typing import Any, Final

from provenance.errors import ProvenanceError, say_briefly
from provenance.storage.files import read_json

_log = logging.getLogger(__name__)

_SECONDS: Final = 1.0
_SWITCHED_OFF: Final = "the mark is switched off"
_NO_CANARY: Final = "outside the share of responses that are marked"


class Switch:
    """Reads its file when it has changed, at most once a second; a damaged one changes nothing.

    Attributes: marking and share, as they were read last.
    """

    def __init__(self, path: Path | None) -> None:
        self.marking, self.share = True, 1.0
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._looked = -_SECONDS

    def why_not(self, uniform: float) -> str | None:
        """Why a response is not to be marked; None if it is. `uniform` in [0, 1), fresh."""
        if self._path is not None and clock.monotonic() - self._looked >= _SECONDS:
            self._looked = clock.monotonic()
            self._look(self._path)
        if not self.marking:
            return _SWITCHED_OFF
        return None if uniform < self.share else _NO_CANARY

    def _look(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            stamp = None
        except OSError as error:
            _log.warning("%s: cannot be looked at: %s", path, say_briefly(error))
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            marking, share = _parse({} if stamp is None else read_json(path))
        except (ProvenanceError, ValueError) as error:
            _log.warning("%s: the switch stays as it was: %s", path, say_briefly(error))
            return
        if (marking, share) != (self.marking, self.share):
            _log.warning("marking: %s, share %g (was %s, %g)", marking, share, *self._state)
        self.marking, self.share = marking, share

    @property
    def _state(self) -> tuple[bool, float]:
        return self.marking, self.share


def _parse(document: Any) -> tuple[bool, float]:
    if not isinstance(document, dict) or not set(document) <= {"marking", "share"}:
        raise ValueError("it must be an object with marking and share alone")
    marking, share = document.get("marking", True), document.get("share", 1.0)
    if (
        not isinstance(marking, bool)
        or isinstance(share, bool)
        or not isinstance(share, int | float)
    ):
        raise ValueError("marking must be true or false, share a number")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be 0 to 1; got {share}")
    return marking, float(share)
