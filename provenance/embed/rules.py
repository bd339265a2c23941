"""Which key decides the next token of a response: rules 1 to 3 of the mark, said here only.

For every token of a response:

1. The context is the last k tokens *of the response*. The first k tokens have none: ordinary draw.
2. A context that already stood before a token of the same response: ordinary draw. Without this
   rule text loops, and a single response would not be undistorted. Under a keyring that reads the
   prompt (`Keyring.reads_prompt`), so does a context that is any k consecutive ids of the prompt,
   its last k included: earlier turns stand there, and a retry would repeat the attempt before it.
   What straddles the end of the prompt is no context of the prompt.
3. The selector gives the context's slot. `control`, or an attribute for which the request carries
   no label: ordinary draw.

Else the key of (slot, value of the label) decides, if it has a choice: where a single candidate is
left, no coin draws anything (`leaves_choice`), and a log does not call that token drawn. Everything
follows from the ids of the response and its prompt and from the labels, so nothing is kept between
tokens, and batch neighbours, padding, speculative decoding and re-use of one object cannot change a
mark.

The host has two forms, since neither is fast in place of the other: `find_keys` for the next token
of a batch, `find_marked` for a whole response. Accelerators need copies, in `device.torch_batch`
and `device.triton_coins`. tests/embed/test_rules.py holds all four to a plain reading of these
sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.coins.contexts import (
    MAXIMUM_VOCABULARY,
    first_occurrences,
    pack,
    response_contexts,
)
from provenance.coins.words import CONSTANTS, fill_one, fill_words
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.marking import KnownKeys, MarkingKeys
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY, KeyName, Schedule
from provenance.served.records import Labels
from provenance.storage.kernels import kernel

MarkWish = Literal["always", "if-possible", "never"]
"""What cannot be marked is refused; it is served unmarked, and logged so; nothing is marked."""


def name_keys(schedule: Schedule, labels: Labels) -> list[KeyName | None]:
    """The key that each slot has under these labels (rule 3), in the order of the slots.

    None for `control` and for an attribute without a label. Whether such a key exists is not asked.
    """
    held = {name: KeyName(name, labels[name]) for name in schedule.attributes if name in labels}
    return [{**held, GLOBAL: GLOBAL_KEY}.get(name) for name in schedule.names]


def check_labels(keys: KnownKeys, labels: Labels, *, names_may_be_unknown: bool) -> None:
    """Raise ConfigurationMismatchError if a label has no key here: it is never silently unmarked.

    `names_may_be_unknown` lets names pass that are no slot, which a log keeps for groups, unless
    the name is nearly a slot's and the slot itself has no label. A door that cannot tell groups
    from misspelt slots refuses all such names.
    """
    schedule, held = keys.public.schedule, keys.list_held()
    for name, value in labels.items():
        is_held = isinstance(value, str) and (name, value) in held
        if is_held if name in schedule.attributes else names_may_be_unknown:
            meant = schedule.find_alike(name)
            if meant is None or meant in labels:
                continue
        shown = f"{name}={value}"[:128]
        raise ConfigurationMismatchError(
            f"label {shown!a} must have a key of keyring {keys.public.id} here; it has none. "
            "Correct it, or run: provenance keys add-value (then for workers: export-worker)"
        )


@dataclass(frozen=True, eq=False)
class PromptContexts:
    """The contexts of prompts, for rule 2: made once a request, looked up at every token.

    Attributes: windows int64 [m], packed, those of each prompt ascending, one prompt after another;
    bounds int64 [prompts, 2], where those of each prompt begin and end.
    """

    windows: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @classmethod
    def read(cls, prompts: Sequence[ArrayLike], width: int) -> PromptContexts:
        """Of the ids of prompts, integers [n] each. Cost: one sort; 3 ms for 100,000 ids.

        Ids that are no token's (placeholders of images, say) are in no context.
        """
        parts = [_list_windows(np.asarray(ids, dtype=np.int64), width) for ids in prompts]
        ends = np.cumsum([0, *[part.shape[0] for part in parts]], dtype=np.int64)
        whole = parts[0] if len(parts) == 1 else np.concatenate([NO_WINDOWS, *parts])
        return cls(whole, np.stack([ends[:-1], ends[1:]], axis=1))

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, row: int) -> PromptContexts:
        """Those of one prompt."""
        return PromptContexts(self.windows, self.bounds[row : row + 1])

    def repeat(self, times: int) -> PromptContexts:
        """The same with each prompt so many times; copies no window."""
        return PromptContexts(self.windows, np.repeat(self.bounds, times, axis=0))

    def hold(self, context: NDArray[np.uint32]) -> bool:
        """Whether a context, uint32 [k], stands in the first prompt."""
        return bool(_stands_in(self.windows, self.bounds[0, 0], self.bounds[0, 1], context))


NO_WINDOWS: Final = np.empty(0, dtype=np.int64)


def _list_windows(ids: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    if ids.shape[0] < width:
        return NO_WINDOWS
    windows = np.lib.stride_tricks.sliding_window_view(ids, width)
    known = (ids >= 0) & (ids < MAXIMUM_VOCABULARY)
    if not known.all():
        windows = windows[np.lib.stride_tricks.sliding_window_view(known, width).all(axis=1)]
    return np.sort(pack(windows.astype(np.uint32)))


def check_prompts(keyring: MarkingKeys, prompts: object | None, rows: int) -> None:
    """Raise UsageError if a keyring that reads the prompt is not given one a row.

    Without it other tokens would be drawn and replayed as marked, silently.
    """
    given = len(prompts) if isinstance(prompts, Sequence | PromptContexts) else 0
    if keyring.reads_prompt and given != rows:
        raise UsageError(
            f"prompts must be given, one for each of {rows} rows: keyring {keyring.public.id} "
            f"does not mark what stands there; got {given}. Give the ids of each, or []."
        )


@kernel(nogil=True)
def _stands_in(windows, start, stop, context):  # type: ignore[no-untyped-def]
    """Whether a context, uint32 [k], is among windows[start:stop], which ascend."""
    name = np.int64(0)
    for j in range(context.shape[0]):
        name = (name << 21) | np.int64(context[j])
    first, last = start, stop
    while first < last:
        middle = (first + last) >> 1
        if windows[middle] < name:
            first = middle + 1
        else:
            last = middle
    return first < stop and windows[first] == name


HOPELESS: Final = 27.0
"""Nats below the likeliest candidate at which no coin of gumbel's can prefer another candidate.

A coin is a 32-bit word, read as the middle of its interval: the shortest time of the race is
-ln(1 - 2**-33), the longest 33 ln 2, and 26.01 nats lie between. Under the other schemes a coin
decides such a draw less than once in 10**11 times.
"""


@kernel(nogil=True)
def leaves_choice(scores):  # type: ignore[no-untyped-def]
    """Whether a coin can decide among candidates: log-probabilities, float [m], -inf for none.

    Asks what was known before the draw only, so a log may say it. Cost: two passes.
    """
    top = -np.inf
    for i in range(scores.shape[0]):
        top = max(top, scores[i])
    near = 0
    for i in range(scores.shape[0]):
        near += 1 if scores[i] > top - HOPELESS else 0
    return near > 1


@kernel(nogil=True)
def find_keys(  # type: ignore[no-untyped-def]
    ids, lengths, width, selector, ends, numbers, windows, bounds
):
    """The key of the next token of each row.

    ids uint32 [rows, n], lengths int64 [rows] (row r is ids[r, :lengths[r]]); width k; selector
    uint32 [8]; ends uint64 [slots], where each slot's interval of selector words ends; numbers
    int64 [rows, slots], the number of the key in each slot, -1: none; windows, bounds those of
    `PromptContexts`, or no windows where the prompt does not matter. Returns int64 [rows].
    Cost: one comparison a token, a search in the prompt, and one coin a row.
    """
    rows = ids.shape[0]
    found = np.full(rows, -1, np.int64)
    contexts = np.zeros((rows, width), np.uint32)
    fresh = np.zeros(rows, np.bool_)
    for r in range(rows):
        n = lengths[r]
        if n < width:
            continue
        fresh[r] = True
        for j in range(width):
            contexts[r, j] = ids[r, n - width + j]
        for start in range(n - width):
            alike = ids[r, start + width - 1] == contexts[r, width - 1]
            for j in range(width - 1):
                alike &= ids[r, start + j] == contexts[r, j]
            if alike:
                fresh[r] = False
                break
        if windows.shape[0] and fresh[r]:
            fresh[r] = not _stands_in(windows, bounds[r, 0], bounds[r, 1], contexts[r])
    words = np.empty(rows, np.uint32)
    tokens = np.zeros(rows, np.uint32)
    if rows == 1:
        fill_one(selector, CONSTANTS, contexts, tokens, words)
    else:
        fill_words(selector, CONSTANTS, contexts, tokens, words)
    for r in range(rows):
        if fresh[r]:
            slot = 0
            while words[r] >= ends[slot]:
                slot += 1
            found[r] = numbers[r, slot]
    return found


def find_marked(
    keyring: MarkingKeys,
    labels: Labels,
    ids: NDArray[np.uint32],
    prompt: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Which tokens of a whole response a key decided: uint32 [n] -> bool [n].

    `prompt`: ids of the prompt, integers [m]; only a keyring that reads it looks at it. Raises
    ConfigurationMismatchError if a label has no key, UsageError if the prompt is missing. Cost: one
    coin a token, and a sort of the prompt.
    """
    check_prompts(keyring, [] if prompt is None else [prompt], 1)
    width = keyring.context_width
    contexts, _ = response_contexts(ids, width)
    marked = np.zeros(ids.shape[0], dtype=np.bool_)
    if contexts.shape[0]:
        keys = name_keys(keyring.schedule, labels)
        has_key = np.array([name is not None and keyring.key(*name) is not None for name in keys])
        names = pack(contexts)
        marked[width:] = has_key[keyring.slots_of(contexts)] & first_occurrences(names)
        if keyring.reads_prompt and prompt is not None:
            marked[width:] &= ~np.isin(names, PromptContexts.read([prompt], width).windows)
    return marked
