"""Which positions of a text count: the first occurrence of a context that is not in the prompt.

A position counts if its context stands there for the first time in this output or document (the
generator draws repeats unmarked), does not stand in the prompt, and is no quotation of the prompt
in another form (`quotations`): who quotes the prompt has not learnt it. Knows token ids; knows no
key, no index and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import (
    ContextIds,
    list_windows,
    pack,
    pack_windows,
    select_first_unprompted,
)
from provenance.coins.words import MAXIMUM_CONTEXT_WIDTH

LAST: Final = 1 << 62
"""Bit in the name of a context that stands at the end of an output, see `add_last_windows`."""

Chat = tuple[tuple[str, str], ...]
"""(role, content) of the messages before an output."""


def extends(parts: Sequence[object], before: Sequence[object]) -> bool:
    """Whether a prompt is an earlier one and more: the next turn of a conversation.

    >>> extends(("a", "b"), ("a",)), extends(("a",), ("b",))
    (True, False)
    """
    return len(parts) >= len(before) and parts[: len(before)] == before


@dataclass(frozen=True)
class Positions:
    """Where a suspect's choices count, before they are counted.

    Attributes
    ----------
    outputs, prompts : uint32 [.] per output: ids of the output, and of its prompt (parts joined)
    rows, offsets : int64 [m], output number of each position, and its place in that output
    contexts, tokens : int64 [m] and uint32 [m], context and choice at each position
    short_outputs, repeated, prompted, quoted, with_prompt, sha256 : see `Observations`
    chats : per output its (role, content) messages, or None for a plain prompt; empty without chats
    wide : ids of the contexts, where these are longer than a packed name can hold
    open_documents : of documents of a log, how many marked ones are not known to be whole: which
        positions they have may hang on what was drawn there
    asked : the distinct texts of the prompts, read as if they were outputs; None if nobody asked
    reading : in which shape files were read and what was left out, if there is something to say
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
    quoted: int = 0
    with_prompt: int = 0
    asked: Positions | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)

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
    quoted: Sequence[NDArray[np.bool_]] | None = None,
) -> Positions:
    """The positions of these outputs that count.

    Parameters
    ----------
    outputs : ids of each output
    prompt_parts, prompt_rows : ids of every part of a prompt, and the number of its output; no
        window reaches from one part into the next
    width : k
    quoted : per output, the tokens that are left out with their contexts (`find_quotations`): bool
        [tokens]; None if no prompt was compared as text

    Notes
    -----
    Cost: three sorts; memory about 100 bytes a token.
    """
    ids, lengths = join_ids(outputs)
    rows, starts = list_windows(ids, lengths, width, followed=True)
    packed = pack_windows(ids, starts, width)
    groups, counts, distinct = _group_prompts(len(outputs), prompt_parts, prompt_rows)
    asked, asked_lengths = join_ids([part for own in distinct for part in own])
    parts, asked_starts = list_windows(asked, asked_lengths, width, followed=False)
    owners = np.repeat(np.arange(len(distinct)), [len(own) for own in distinct])
    places = np.concatenate([*(np.arange(len(own)) for own in distinct), np.arange(0)])
    first, unprompted = select_first_unprompted(
        rows,
        packed,
        groups[rows],
        owners[parts],
        pack_windows(asked, asked_starts, width),
        seen=(counts[rows], places[parts]),
    )
    marks = np.concatenate([*(quoted or ()), np.empty(0, dtype=np.bool_)])
    own = ~marks[starts + width] if quoted is not None else np.ones_like(first)
    chosen = first & unprompted & own
    prompts = _join_prompts(groups, counts, distinct)
    begins = np.cumsum(lengths) - lengths
    return Positions(
        outputs=outputs,
        prompts=prompts,
        rows=rows[chosen],
        offsets=(starts + width - begins[rows])[chosen],
        contexts=packed[chosen],
        tokens=ids[starts[chosen] + width],
        short_outputs=int((lengths <= width).sum()),
        repeated=int((~first).sum()),
        prompted=int((first & ~unprompted).sum()),
        quoted=int((first & unprompted & ~own).sum()),
        with_prompt=sum(prompt.size > 0 for prompt in prompts),
        sha256=dict(sha256),
        wide=_collect_wide(ids, starts[chosen], width),
    )


def _group_prompts(
    outputs: int, parts: Sequence[NDArray[np.uint32]], rows: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[list[NDArray[np.uint32]]]]:
    """Number of each output's prompt and of its parts, int64 [outputs]; the parts of each prompt.

    One if shared; the turns of a conversation share the prompt of the last, and see a part of it.
    """
    prompts: list[list[NDArray[np.uint32]]] = [[] for _ in range(outputs)]
    for row, part in zip(rows, parts, strict=True):
        prompts[row].append(part)
    numbers: dict[tuple[int, ...], int] = {}
    groups = np.zeros(outputs, dtype=np.int64)
    distinct: list[list[NDArray[np.uint32]]] = []
    last: tuple[int, ...] = ()
    for row, own in enumerate(prompts):
        name = tuple(map(id, own))
        if name not in numbers:
            if last and extends(name, last):
                distinct[-1] = own
            else:
                distinct.append(own)
            last = name
            numbers[name] = len(distinct) - 1
        groups[row] = numbers[name]
    return groups, np.array(list(map(len, prompts)), dtype=np.int64), distinct


def _join_prompts(
    groups: NDArray[np.int64],
    counts: NDArray[np.int64],
    distinct: Sequence[Sequence[NDArray[np.uint32]]],
) -> list[NDArray[np.uint32]]:
    """The parts that each output saw, joined; views of one array for each prompt."""
    joined = [join_ids(own) for own in distinct]
    ends = [np.append(0, np.cumsum(lengths)) for _, lengths in joined]
    pairs = list(zip(groups.tolist(), counts.tolist(), strict=True))
    views = {
        (group, count): joined[group][0][: int(ends[group][count])] for group, count in set(pairs)
    }
    return [views[pair] for pair in pairs]


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
            quoted=0 if start else positions.quoted,
            with_prompt=0 if start else positions.with_prompt,
            asked=None,
        )


def add_last_windows(positions: Positions, width: int) -> Positions:
    """The same positions, and after each output the context in which it could have gone on.

    For what a model expects where an output ended: a student that learnt where the coins chose to
    end is never followed there, so positions before a kept token alone would select by coins. No
    token stands at the added positions (0 is written), and their contexts carry the bit LAST, by
    which they are told from the others. Width 1 or 2: longer names have no room for it. Cost: one
    sort of the outputs.
    """
    lengths = np.array([ids.shape[0] for ids in positions.outputs], dtype=np.int64)
    ended = np.flatnonzero(lengths >= width)
    last = [positions.outputs[row][-width:] for row in ended.tolist()]
    contexts = pack(np.array(last, dtype=np.uint32).reshape(-1, width)) | LAST
    rows = np.concatenate([positions.rows, ended])
    order = np.argsort(rows, kind="stable")
    nothing = np.zeros(ended.shape[0], dtype=np.uint32)
    return replace(
        positions,
        rows=rows[order],
        offsets=np.concatenate([positions.offsets, lengths[ended]])[order],
        contexts=np.concatenate([positions.contexts, contexts])[order],
        tokens=np.concatenate([positions.tokens, nothing])[order],
    )


def join_ids(parts: Sequence[NDArray[np.uint32]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """All ids one after another, and the length of each part: uint32 [.] and int64 [parts]."""
    lengths = np.array([part.shape[0] for part in parts], dtype=np.int64)
    return np.concatenate([*parts, np.empty(0, dtype=np.uint32)]), lengths
