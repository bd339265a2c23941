"""Does an adapter of a serving stack put the mark in as `Watermark` does? One public check for all.

    report = check(adapter, folder)
    assert report.passed, str(report)

An adapter's test says how to serve requests and what the model's final probabilities are
(`Adapter`); the check makes a keyring, serves requests through the whole stack, and compares what
came back with what the coins, the model and the rules demand. The keyrings have width 1, so that
contexts repeat, and many values of one attribute, so that one engine draws under many keys. Knows
no serving stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from provenance.embed.replay import (
    SLOT,
    TRIALS,
    Adapter,
    ReplayedDraw,
    Request,
    Served,
    distinct_draws,
    seeded_globals,
)
from provenance.marks.detection import detect_mark

_ALPHA: Final = 1e-6
"""Level of every statistical line: a right adapter fails one in a million times."""
_BINS: Final = 16
_AGREEMENT: Final = 0.98
"""Of marked draws, so many must be the replayed ones: logits of a batch differ in their last bits
from logits of one row, which now and then turns the order of two candidates."""


@dataclass(frozen=True)
class CheckLine:
    """One line of the report: what must hold, whether it does, what was found."""

    name: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.found}"


@dataclass(frozen=True)
class ConformanceReport:
    """All lines; prints as one line each."""

    lines: tuple[CheckLine, ...]

    @property
    def passed(self) -> bool:
        """True if every line passed."""
        return all(line.passed for line in self.lines)

    def failed(self) -> tuple[str, ...]:
        """Names of the lines that did not pass."""
        return tuple(line.name for line in self.lines if not line.passed)

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def check(adapter: Adapter, folder: Path) -> ConformanceReport:
    """Serve requests through an adapter and report, line by line, whether it keeps the rules.

    Parameters: the adapter; an empty folder, where the keyring is made and stays. A wrong adapter
    raises nothing; what the adapter itself raises goes through.

    Serves 72 requests in one batch and 90 in smaller ones, then the 72 once more under a keyring
    that does not read the prompt (only there a context of one token that reaches into the prompt is
    seen), and replays 192 responses. Statistical lines have level 1e-6; a line that had too little
    to judge by fails and says so.
    """
    served = Served(adapter, folder)
    draws = served.draws
    ordinary = [draw for draw in draws if not draw.marked]
    lines = [
        _check_determinism(served),
        _check_neighbours(served),
        _check_distribution("marked draws follow the model over keys", distinct_draws(draws)),
        _check_distribution("ordinary draws follow the model", ordinary),
        _check_replay("marked draws are those of the coins", draws),
        _check_luck("repeated contexts are drawn unmarked", [d for d in draws if d.repeated]),
        _check_luck(
            "contexts of the prompt are drawn unmarked",
            [d for d in (*draws, *served.later_draws) if d.prompted],
        ),
        _check_end(served),
        *_check_detection(served),
        _check_equal_rows(served),
        _check_globals(served),
    ]
    before = served.serve_before()
    lines += [
        _check_replay("so are those of a keyring of before", before),
        _check_luck("contexts do not reach into the prompt", [d for d in before if d.first]),
    ]
    return ConformanceReport(tuple(lines))


def _check_determinism(served: Served) -> CheckLine:
    """The same seed gives the same ids, with other work in between; another seed gives others."""
    few = served.requests[:8]
    first = served.generate(few, 2)
    served.generate(served.requests[8:16], 3)
    again = served.generate(few, 2)
    elsewhere = served.generate(few, 4)
    same = sum(map(_are_equal, first, again))
    return CheckLine(
        "same ids for the same uniforms, no state left behind",
        same == len(few) and not all(map(_are_equal, first, elsewhere)),
        f"{same} of {len(few)} responses equal after other work, "
        f"{sum(map(_are_equal, first, elsewhere))} under another seed",
    )


def _check_neighbours(served: Served) -> CheckLine:
    """Alone and beside other prompts and labels, a row draws what its own coins say."""
    requests, alone, together = served.requests[: len(TRIALS) : 2], [], []
    for request in requests:
        (response,) = served.generate([request], 5)
        alone += [draw for draw in served.replay(request, response) if draw.marked]
    for request, response in zip(requests, served.generate(requests, 5), strict=True):
        together += [draw for draw in served.replay(request, response) if draw.marked]
    agreed = [sum(draw.coin == draw.token for draw in draws) for draws in (alone, together)]
    return CheckLine(
        "rows do not depend on neighbours or padding",
        all(
            len(draws) >= 10 and right >= _AGREEMENT * len(draws)
            for right, draws in zip(agreed, (alone, together), strict=True)
        ),
        f"{agreed[0]} of {len(alone)} marked draws right alone, {agreed[1]} of {len(together)} in "
        "a batch",
    )


def _check_distribution(name: str, draws: Sequence[ReplayedDraw]) -> CheckLine:
    """Places are uniform: chi-square; no token of probability 0."""
    impossible = sum(not draw.possible for draw in draws)
    places = np.array([draw.place for draw in draws])
    counts = np.bincount((places * _BINS).astype(np.int64), minlength=_BINS)
    enough = len(draws) >= 8 * _BINS
    p = float(stats.chisquare(counts).pvalue) if enough else 0.0
    return CheckLine(
        name,
        enough and not impossible and p > _ALPHA,
        f"{len(draws)} draws ({8 * _BINS} needed), {impossible} of a token with probability 0, "
        f"chi-square p {p:.2g}",
    )


def _check_replay(name: str, draws: Sequence[ReplayedDraw]) -> CheckLine:
    marked = [draw for draw in draws if draw.marked]
    agreed = sum(draw.token == draw.coin for draw in marked)
    return CheckLine(
        name,
        len(marked) >= 100 and agreed >= _AGREEMENT * len(marked),
        f"{agreed} of {len(marked)} draws (100 needed)",
    )


def _check_luck(name: str, draws: Sequence[ReplayedDraw]) -> CheckLine:
    """Ordinary draws hit the token of the coins by chance only."""
    keyed = [draw for draw in draws if draw.coin is not None]
    agreed = sum(draw.token == draw.coin for draw in keyed)
    luck = [draw.luck for draw in keyed]
    p = _sum_law(luck)[agreed:].sum()
    return CheckLine(
        name,
        len(keyed) >= 20 and bool(p > _ALPHA),
        f"{agreed} of {len(keyed)} draws (20 needed) are the coins', {sum(luck):.1f} expected by "
        f"chance, p {p:.2g}",
    )


def _check_end(served: Served) -> CheckLine:
    """Responses stop with the end token, as often as the model ends, and no row is longer.

    A response without the token that ended it is cut by what the coins chose: an index of such
    responses accuses innocent models.
    """
    adapter = served.adapter
    wrong = sum(
        not _is_whole(ids, finish, adapter)
        for ids, finish in zip(served.responses, served.finishes, strict=True)
    )
    draws = [draw for draw in served.draws if not draw.marked] + distinct_draws(served.draws)
    ended = sum(draw.token == adapter.end_token for draw in draws)
    expected = [draw.end for draw in draws]
    law = _sum_law(expected)
    p = min(law[ended:].sum(), law[: ended + 1].sum())
    return CheckLine(
        "the end token ends a response",
        wrong == 0 and sum(expected) >= 16 and bool(p > _ALPHA),
        f"{ended} draws of the end token, {sum(expected):.1f} expected (16 needed), p {p:.2g}; "
        f"{wrong} responses lack their end token, go on past the end or limit, or say another end",
    )


def _is_whole(ids: NDArray[np.uint32], finish: str | None, adapter: Adapter) -> bool:
    """Ends with the first end token, or at the limit without one, and says so if it says it."""
    ends = np.flatnonzero(ids == adapter.end_token)
    if ends.size:
        return finish in (None, "end") and int(ends[0]) == len(ids) - 1 < adapter.new_tokens
    return finish in (None, "length") and len(ids) == adapter.new_tokens


def _check_detection(served: Served) -> Iterator[CheckLine]:
    """`detect` finds the keys of the labels that were given, and no other."""
    responses = served.responses
    chosen = [
        ids
        for request, ids in zip(served.requests, responses, strict=True)
        if request.labels.get(SLOT) == TRIALS[0]
    ]
    own, others = 0.0, 0.0
    for key in detect_mark(np.concatenate(chosen), served.keyring).keys:
        if (key.slot, key.value) == (SLOT, TRIALS[0]):
            own = key.log10_adjusted
        elif key.slot == SLOT:
            others = min(others, key.log10_adjusted)
    found = detect_mark(np.concatenate(responses), served.keyring).keys
    common = min(key.log10_adjusted for key in found if key.slot != SLOT)
    level = float(np.log10(_ALPHA))
    yield CheckLine(
        "marks are found by detect",
        own < level and common < level,
        f"log10 p {own:.1f} for the key of the label, {common:.1f} for the global key",
    )
    yield CheckLine(
        "no key of another label is found", others > level, f"smallest log10 p {others:.1f}"
    )


def _check_equal_rows(served: Served) -> CheckLine:
    responses = served.generate([Request(served.requests[0].prompt, {})] * 4, 6)
    distinct = len({ids.tobytes() for ids in responses})
    return CheckLine(
        "equal requests get randomness of their own",
        distinct > 1,
        f"{distinct} of 4 responses differ",
    )


def _check_globals(served: Served) -> CheckLine:
    """Global generators do not decide a draw; ours are not used, none is seeded.

    transformers itself draws from torch's generator (one candidate, so nothing is decided); so that
    one may move, but from two states it must not reach the same one.
    """
    few, states, responses = served.requests[:3], [], []
    for seed in (11, 12):
        with seeded_globals(seed) as changed:
            responses.append(served.generate(few, 7))
            states.append(changed())
    blamed = {
        name for state in states for name, (moved, _) in state.items() if moved and name != "torch"
    }
    if "torch" in states[0] and states[0]["torch"][1] == states[1]["torch"][1]:
        blamed.add("torch")
    equal = all(map(_are_equal, *responses))
    return CheckLine(
        "no global generator is used or seeded",
        equal and not blamed,
        f"{'the same' if equal else 'other'} ids under other global seeds; used or seeded: "
        f"{', '.join(sorted(blamed)) or 'none'}",
    )


def _sum_law(probabilities: Sequence[float]) -> NDArray[np.float64]:
    """Law of the number of successes of independent trials: float64 [trials + 1]."""
    law = np.ones(1)
    for p in probabilities:
        law = np.convolve(law, [1 - p, p])
    return law


def _are_equal(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> bool:
    return first.shape == second.shape and bool((first == second).all())
