"""The whole story on the fixtures of the repository, without network and without torch."""

from __future__ import annotations

import logging
import shutil
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.case.case import open_case
from provenance.case.doors import open_keyring
from provenance.case.indexing import build_index
from provenance.errors import DISTRIBUTION, StorageError
from provenance.keys.keyring import MASTER_FILE
from provenance.storage.files import as_path, read_json
from provenance.storage.printable import Page, Said

if TYPE_CHECKING:
    from provenance.check.verdict import Verdict

CATALOGUE: Final = "suspects.json"
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Story(Said):
    """Suspects of the fixtures' catalogue, each with its verdict."""

    chapters: tuple[tuple[Mapping[str, Any], Verdict], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "suspects": [
                {
                    "name": suspect["name"],
                    "trained_on_marked": suspect["trained_on_marked"],
                    "log10_p": verdict.log10_p,
                    "controls_passed": verdict.controls_passed,
                    "attributed": verdict.attributed,
                }
                for suspect, verdict in self.chapters
            ]
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.table(
            ["suspect", "trained on", "log10 p", "controls", "attributed"],
            [
                [
                    suspect["name"],
                    suspect["trained_on"],
                    f"{verdict.log10_p:.1f}",
                    "passed" if verdict.controls_passed else "FAILED",
                    _say_attributed(verdict),
                ]
                for suspect, verdict in self.chapters
            ],
            "Were these models trained on the marked responses?",
        )
        page.say()
        page.say("log10 p: of the whole check, exact upper bound, corrected for all keys.")
        page.say(
            "attributed: values whose own key is found, family-wise error 1e-4: at least these."
        )
        return str(page)


def tell_story(fixtures: Any = None) -> Story:
    """Index the fixtures' served log, and check every suspect of their catalogue.

    Parameters: folder of the demo's data; None: of this clone, or what was installed with the
    package. Raises StorageError if it is not there. Cost: about half a minute.
    """
    folder = _find_demo() if fixtures is None else as_path(fixtures, "the fixtures")
    if not (folder / CATALOGUE).exists():
        raise StorageError(
            f"{folder}: must be the folder of the demo's data; it is not. "
            "Run the demo from a clone, or pass --fixtures."
        )
    catalogue = read_json(folder / CATALOGUE)
    with tempfile.TemporaryDirectory(prefix="provenance-demo-") as scratch:
        keys, index = Path(scratch) / "keys", Path(scratch) / "index"
        shutil.copytree(folder / "keys", keys)
        # git does not keep modes; the key of the demo is public, a real one never is
        (keys / MASTER_FILE).chmod(0o600)
        keyring = open_keyring(keys)
        _LOG.info("Indexing the served log")
        build_index(folder / catalogue["served"], index, keyring)
        innocents = [folder / name for name in catalogue["innocents"]]
        chapters = []
        with open_case(keyring, index) as case:
            for suspect in catalogue["suspects"]:
                _LOG.info("Checking %s", suspect["name"])
                verdict = case.check(folder / suspect["outputs"], innocents=innocents)
                chapters.append((suspect, verdict))
    return Story(tuple(chapters))


def _find_demo() -> Path:
    """`fixtures/` of a clone, else where a wheel puts its data: for all, or for this user."""
    places = [Path(__file__).parents[2] / "fixtures"]
    schemes = sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")
    places += [
        Path(sysconfig.get_path("data", scheme)) / "share" / DISTRIBUTION / "demo"
        for scheme in schemes
    ]
    return next((place for place in places if (place / CATALOGUE).exists()), places[0])


def _say_attributed(verdict: Verdict) -> str:
    if verdict.conclusion != "evidence":
        return str(verdict.conclusion)
    parts = [f"{slot}: {', '.join(values)}" for slot, values in verdict.attributed.items()]
    return "; ".join(parts) or "global key only"
