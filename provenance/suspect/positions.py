"""Which positions of a text count: the first occurrence of a context that is not in the prompt.

A position counts if its context stands there for the first time in this output or document (the
generator draws repeats unmarked) and does not stand in the prompt (who quotes the prompt has not
learnt it). Knows token ids; knows no key, no index and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from provenance.coins import MAXIMUM_CONTEXT_WIDTH
from provenance.contexts import (
    ContextIds,
    list_windows,
    pack_windows,
    select_first_unprompted,
)

__all__ = ["Chat", "Positions", "collect_wide", "find_positions", "join_ids", "split_positions"]


Chat = tuple[tuple[str, str], ...]
"""(role, content) of the messages before an output."""


@dataclass(frozen=True)
class Positions:
    """Where a suspect's choices count, before they are counted.

    Attributes
    ----------
    outputs, prompts : uint32 [.] per output: ids of the output, and of its prompt (parts joined)
    rows, offsets : int64 [m], output number of each position, and its place in that output
    contexts, tokens : int64 [m] and uint32 [m], context and choice at each position
    short_outputs, repeated, prompted, sha256 : see `Observations`
    chats : per output its (role, content) messages, or None for a plain prompt; empty without chats
    wide : ids of the contexts, where these are longer than a packed name can hold
    open_documents : of documents of a log, how many marked ones are not known to be whole: which
        positions they have may hang on what was drawn there
    """

    outputs: Sequence[NDArray[np.uint32]]
    prompts: Sequence[NDArray[np.uint32]]
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    short_outputs: int
    repeated: int
    prompted: int
    sha256: Mapping[str, str]
    chats: Sequence[Chat | None] = ()
    wide: ContextIds | None = None
    open_documents: int = 0

    @property
    def tokens_read(self) -> int:
        """Tokens of all outputs, without prompts."""
        return sum(ids.shape[0] for ids in self.outputs)


def find_positions(
    outputs: Sequence[NDArray[np.uint32]],
    prompt_parts: Sequence[NDArray[np.uint32]],
    prompt_rows: Sequence[int],
    width: int,
    sha256: Mapping[str, str],
) -> Positions:
    """The positions of these outputs that count.

    Parameters
    ----------
    outputs : ids of each output
    prompt_parts, prompt_rows : ids of every part of a prompt, and the number of its output; no
        window reaches from one part into the next
    width : k

    Notes
    -----
    Cost: three sorts; memory about 100 bytes a token.
    """
    ids, lengths = join_ids(outputs)
    rows, starts = list_windows(ids, lengths, width, followed=True)
    packed = pack_windows(ids, starts, width)
    asked, asked_lengths = join_ids(prompt_parts)
    parts, asked_starts = list_windows(asked, asked_lengths, width, followed=False)
    first, unprompted = select_first_unprompted(
        rows,
        packed,
        np.asarray(prompt_rows, dtype=np.int64)[parts],
        pack_windows(asked, asked_starts, width),
    )
    chosen = first & unprompted
    prompts: list[list[NDArray[np.uint32]]] = [[] for _ in outputs]
    for row, part in zip(prompt_rows, prompt_parts, strict=True):
        prompts[row].append(part)
    begins = np.cumsum(lengths) - lengths
    return Positions(
        outputs=outputs,
        prompts=[join_ids(own)[0] for own in prompts],
        rows=rows[chosen],
        offsets=(starts + width - begins[rows])[chosen],
        contexts=packed[chosen],
        tokens=ids[starts[chosen] + width],
        short_outputs=int((lengths <= width).sum()),
        repeated=int((~first).sum()),
        prompted=int((first & ~unprompted).sum()),
        sha256=dict(sha256),
        wide=_collect_wide(ids, starts[chosen], width),
    )


def _collect_wide(
    ids: NDArray[np.uint32], starts: NDArray[np.int64], width: int
) -> ContextIds | None:
    if width <= MAXIMUM_CONTEXT_WIDTH:
        return None
    if ids.shape[0] < width:
        return ContextIds.collect(np.empty((0, width), dtype=np.uint32))
    return ContextIds.collect(np.lib.stride_tricks.sliding_window_view(ids, width)[starts])


def collect_wide(parts: Iterable[Positions]) -> ContextIds | None:
    """`Positions.wide` of all parts together; walks no further than the first if it is None."""
    found = []
    for part in parts:
        if part.wide is None:
            return None
        found.append(part.wide.ids)
    return ContextIds.collect(np.concatenate(found)) if found else None


def split_positions(positions: Positions, outputs: int) -> Iterator[Positions]:
    """The same positions in parts of so many outputs; the left-out ones are counted in the first.

    Cost: two look-ups a part.
    """
    for start in range(0, len(positions.outputs), outputs):
        first, last = np.searchsorted(positions.rows, [start, start + outputs])
        own = slice(first, last)
        yield replace(
            positions,
            outputs=positions.outputs[start : start + outputs],
            prompts=positions.prompts[start : start + outputs],
            chats=positions.chats[start : start + outputs],
            rows=positions.rows[own] - start,
            offsets=positions.offsets[own],
            contexts=positions.contexts[own],
            tokens=positions.tokens[own],
            short_outputs=0 if start else positions.short_outputs,
            repeated=0 if start else positions.repeated,
            prompted=0 if start else positions.prompted,
        )


def join_ids(parts: Sequence[NDArray[np.uint32]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """All ids one after another, and the length of each part: uint32 [.] and int64 [parts]."""
    lengths = np.array([part.shape[0] for part in parts], dtype=np.int64)
    return np.concatenate([*parts, np.empty(0, dtype=np.uint32)]), lengths
