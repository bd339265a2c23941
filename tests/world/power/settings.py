"""What the power benchmark and the frontier produce: worlds, suspects, sizes, seeds, names.

A *world* is a scheme with its parameters, a context width k and the share of contexts marked under
the `global` key; the rest is `control`. A *suspect* is the base model fine-tuned on documents, a
part rho of them marked responses of a world and the rest unmarked ones of the same teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provenance.keys.keyring import SchemeSpecification

WORK = Path(__file__).parents[3] / "benchmarks/power/work"

LEARNING_RATE = 1e-3  # as benchmarks.lab.stage2
BATCH = 128

SERVED_FROM, OUTPUTS_FROM, FRESH_FROM, REPEATS_FROM = 0, 4608, 5888, 6528
"""Where each kind of prompt starts in the laboratory's prompts.jsonl; 6,560 of 8,453 are used."""

REPEATED_PROMPTS, REPEATS, REPEAT_TOKENS = 32, 8, 60
JUDGED_SERVED, JUDGED_FRESH = 896, 104
"""The 1,000 responses whose diversity is measured: the first of both logs, in every world alike."""
NLL_RESPONSES = 512
LOSS_DOCUMENTS = 128
GAMMA = 0.25


@dataclass(frozen=True)
class Size:
    """How much a world serves, and how much its suspects are trained and asked.

    served : marked responses, also the number of training documents of a suspect
    steps, tokens_per_step : training of a suspect
    outputs : answers of each suspect
    fresh : marked responses to prompts that are in no training set
    """

    served: int
    steps: int
    tokens_per_step: int
    outputs: int
    fresh: int


POWER = Size(served=4608, steps=1000, tokens_per_step=1024, outputs=1280, fresh=640)
FRONTIER = Size(served=896, steps=400, tokens_per_step=512, outputs=384, fresh=128)
"""The frontier is about half of what was planned (1,792 responses, 500 steps of 1,024 tokens, 640
outputs, 160 fresh), the same for all 36 worlds, to fit the time of one core. A step has two rows of
256 tokens in place of four: more updates for the same time."""


@dataclass(frozen=True)
class World:
    """One way of marking, and the training shares of its suspects."""

    name: str
    scheme: str
    parameters: Mapping[str, float | int]
    context_width: int
    share: float
    size: Size
    rhos: tuple[float, ...] = field(default=(1.0,))

    @property
    def specification(self) -> SchemeSpecification:
        """The scheme as the keyring fixes it."""
        return SchemeSpecification(self.scheme, self.parameters)


@dataclass(frozen=True)
class Innocent:
    """A suspect trained on unmarked responses only; shared by all worlds of its size."""

    name: str
    size: Size


POWER_RHOS = (1.0, 0.3, 0.1, 0.05, 0.02)
POWER_WORLDS = (
    World("gumbel-k2-s20", "gumbel", {}, 2, 0.2, POWER, POWER_RHOS),
    World("green-d2-k2-s100", "green", {"gamma": GAMMA, "delta": 2.0}, 2, 1.0, POWER, POWER_RHOS),
)
INNOCENTS = (Innocent("innocent-power", POWER), Innocent("innocent-frontier", FRONTIER))

GUMBEL_SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
GREEN_DELTAS = (0.5, 1.0, 2.0, 3.0)
TOURNAMENT_LAYERS = (2, 4, 10)
WIDTHS = (2, 1, 3)


def frontier_worlds() -> Iterator[World]:
    """The 36 worlds of the frontier, in the order in which they are made."""
    for k in WIDTHS:
        for share in GUMBEL_SHARES:
            name = f"frontier-gumbel-k{k}-s{round(100 * share):02d}"
            yield World(name, "gumbel", {}, k, share, FRONTIER)
        for delta in GREEN_DELTAS:
            name = f"frontier-green-d{delta:g}-k{k}-s100"
            yield World(name, "green", {"gamma": GAMMA, "delta": delta}, k, 1.0, FRONTIER)
        for layers in TOURNAMENT_LAYERS:
            name = f"frontier-tournament-m{layers}-k{k}-s100"
            yield World(name, "tournament", {"layers": layers}, k, 1.0, FRONTIER)


def suspect_name(rho: float) -> str:
    """Folder of a suspect inside its world: rho-1, rho-0.3, ..."""
    return f"rho-{rho:g}"


def seed_of(*names: str) -> int:
    """A seed of its own for each purpose: 31 bits of SHA-256 of the names."""
    return int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:4], "big") >> 1
