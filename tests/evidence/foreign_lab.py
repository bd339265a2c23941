"""A place with one foreign mark: configuration, log, index, outputs of the guilty and of others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provenance.marks.foreign import FOREIGN_SCHEMES, make_foreign
from tests.world.foreign import CONFIGURATIONS, ForeignWorld, make_foreign_world
from tests.world.synthetic import WORDS, Teacher, learn, write_outputs

OUTPUTS = 160


@dataclass(frozen=True)
class Place:
    """Files in `folder`: config.json, tokenizer.json, index, guilty.jsonl, guilty-N.jsonl (four
    parts), stranger.jsonl, other.json (the same scheme under another key)."""

    name: str
    folder: Path
    world: ForeignWorld

    @property
    def scheme(self) -> tuple[object, ...]:
        """Options that say whose mark it is."""
        return self.under("config.json")

    def under(self, config: str) -> tuple[object, ...]:
        """The same with another file of this folder."""
        folder = self.folder
        return (
            *("--scheme", self.name, "--scheme-config", folder / config),
            *("--tokenizer", folder / "tokenizer.json"),
        )

    @property
    def index(self) -> tuple[object, ...]:
        return ("--index", self.folder / "index")

    @property
    def key(self) -> object:
        scheme = self.world.mark.scheme
        return getattr(scheme, "keys", None) or scheme.key


def configuration(name: str, seed: int) -> dict[str, object]:
    """A configuration of the original with a random key."""
    rng = np.random.default_rng(seed)
    field = FOREIGN_SCHEMES[name].key_field
    config = dict(CONFIGURATIONS[name])
    if field == "keys":
        return {**config, field: [int(key) for key in rng.integers(0, 1 << 31, 30)]}
    return {**config, field: int(rng.integers(1 << 20, 1 << 31)) | 1}


def write_private(path: Path, content: object) -> Path:
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
    return path


def make_place(folder: Path, name: str, seed: int = 1) -> Place:
    config = configuration(name, seed)
    scheme = make_foreign(name, config, None, WORDS)
    world = make_foreign_world(folder, Teacher.draw(0), name, seed, 200, 80, scheme)
    rng = np.random.default_rng(seed)
    outputs = learn(world, rng, OUTPUTS, 80)
    write_outputs(folder / "guilty.jsonl", outputs)
    for i in range(4):
        write_outputs(folder / f"guilty-{i}.jsonl", outputs[40 * i : 40 * i + 40])
    write_outputs(folder / "stranger.jsonl", list(world.teacher.sample(rng, 60, 60)))
    write_private(folder / "config.json", config)
    write_private(folder / "other.json", configuration(name, seed + 1))
    return Place(name, folder, world)
