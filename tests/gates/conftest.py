"""One world and one server for all gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gates.faults import WARM, Gate
from tests.gates.forks import Forks, start_forks
from tests.gates.place import make_place


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("gates") / "world")


@pytest.fixture(scope="package")
def forks(place: Path) -> Iterator[Forks]:
    with start_forks(WARM, place) as server:
        yield server


@pytest.fixture
def gate(forks: Forks, place: Path, tmp_path: Path) -> Gate:
    if not forks.has_shim:
        pytest.skip("needs gcc")
    return Gate(forks, place, tmp_path)
