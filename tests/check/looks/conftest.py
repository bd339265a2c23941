"""One synthetic world, and the outputs of a guilty suspect in batches."""

from __future__ import annotations

import numpy as np
import pytest

from provenance.check.examine import CheckSettings
from provenance.suspect.access.outputs import observe
from tests.world.synthetic import Teacher, World, learn, make_world, write_outputs

SETTINGS = CheckSettings(rule="log-sqrt", placebo_keys=60)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("sequential"), Teacher.draw(0), 3)


@pytest.fixture(scope="session")
def batches(world):
    """Four files of outputs; the last repeats outputs of the first beside new ones."""
    outputs = learn(world, np.random.default_rng(5), 120, 80)
    parts = [outputs[:40], outputs[40:80], outputs[80:120], outputs[:20] + outputs[60:80]]
    return [write_outputs(world.folder / f"batch-{i}.jsonl", part) for i, part in enumerate(parts)]


@pytest.fixture(scope="session")
def observed(world, batches):
    return [observe([path], world.tokenizer, world.keyring.public) for path in batches]
