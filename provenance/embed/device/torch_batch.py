"""The next token of a batch on the logits' own device: no logits and no coins travel to the host.

A copy of `provenance.embed.rules` and of `Watermark.draw_scores` for accelerators, held equal to
them by tests/embed/test_rules.py and test_draws.py; every row has labels of its own, and
`torch_coins` makes the coins. Shapes follow from what the host knows, so no operation
waits for the device. Knows keyrings and tensors; knows no serving stack and no sampling parameters
beyond temperature and min-p.

Rows that no key decides are drawn as well, ordinarily, from the seed of their request: by gumbel's
own race with the seed as key, or by a uniform of the seed. A server that draws such rows itself
looks at `marked`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.embed.device.torch_coins import (
    choose,
    draw_unmarked,
    has_kernels,
    kernels,
    pack_contexts,
    pack_keys,
    row,
    slots,
    unsigned,
    words,
)
from provenance.embed.rules import HOPELESS, name_keys
from provenance.errors import MissingExtraError, UsageError
from provenance.keys.marking import MarkingKeys
from provenance.keys.schedule import CONTROL, SELECTOR_KEY, KeyName
from provenance.marks.own import make_scheme
from provenance.marks.own.draws import GUMBEL
from provenance.served.records import Labels

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("torch must be installed; it is not.", "torch") from error

NO_KEY = -1
NO_TOKEN = -1
_BITS_OF_LOW_WORD = 11


@dataclass(frozen=True)
class DeviceDraw:
    """Tokens int64 [rows], and bool [rows]: whether a key decided the row.

    The token is -1, and the row not marked, where the logits are no distribution, or more
    candidates survived than `survivors` allowed for.
    """

    tokens: Tensor
    marked: Tensor


@dataclass(frozen=True)
class DevicePrompts:
    """The prompts that rule 2 looks into, where they are; several rows may have one prompt.

    Attributes: ids integer [prompts, m], padded at the end with anything; rows int64 [rows], the
    number of each row's prompt; lengths int64 [rows], how many ids it has.
    """

    ids: Tensor
    rows: Tensor
    lengths: Tensor


class DeviceWatermark:
    """The keys of a keyring as one table on a device.

    Whoever can read the device's memory can read the keys. Cost of making it: one HKDF a key.
    """

    def __init__(self, keyring: MarkingKeys, device: torch.device | str) -> None:
        self.keyring = keyring
        specification = keyring.public.scheme
        self._code = make_scheme(specification.name, specification.parameters).code
        marked = [slot for slot in keyring.schedule.slots if slot.name != CONTROL]
        names = [KeyName(slot.name, value) for slot in marked for value in slot.values]
        held = keyring.list_held()
        names = [name for name in names if name in held]
        self._numbers: dict[KeyName | None, int] = {name: i for i, name in enumerate(names)}
        self._keys = pack_keys([keyring.key(*name).reveal() for name in names], device)
        self._selector = pack_keys([keyring.key(*SELECTOR_KEY).reveal()], device)
        self._ends = torch.from_numpy(keyring.schedule.ends.astype(np.int64)).to(device)

    def __repr__(self) -> str:
        return f"DeviceWatermark(keyring={self.keyring.public.id!r})"

    def key_numbers(self, labels: Labels | None) -> NDArray[np.int64]:
        """Which key of the table each slot has under these labels: int64 [slots], -1 for none.

        `None` stands for a request that does not ask for the mark.
        """
        schedule = self.keyring.schedule
        names = [None] * len(schedule.slots) if labels is None else name_keys(schedule, labels)
        return np.array([self._numbers.get(name, NO_KEY) for name in names], dtype=np.int64)

    def draw(
        self,
        logits: Tensor,
        responses: Tensor,
        lengths: Tensor,
        key_numbers: Tensor,
        seeds: Tensor,
        survivors: int | None = None,
        prompts: DevicePrompts | None = None,
    ) -> DeviceDraw:
        """Draw the next token of each row.

        Parameters
        ----------
        logits : float [rows, vocabulary], final: after temperature, min-p, top-k and top-p; -inf
            for tokens that are no candidates
        responses : integer [rows, n], ids of each response from its first token, padded with
            anything; n > k
        lengths : int64 [rows], tokens of each response so far; below k: not marked
        key_numbers : int64 [rows, slots], from `key_numbers`
        seeds : int32 [rows, 8], from `pack_keys`: 32 secret bytes a request; ordinary draws and
            uniforms follow from them and the length, so a request that is preempted and taken up
            again draws as if nothing had happened
        survivors : at most so many candidates a row are looked at; None: the whole vocabulary.
            Kernels (`has_kernels`) look at the whole vocabulary in any case
        prompts : of the rows; UsageError if they are missing and the keyring reads the prompt

        Notes
        -----
        Cost: n * k comparisons (and m * k with the prompt; with kernels only for rows that have a
        key) and a coin a row for the slot, and a coin a survivor. With kernels,
        gumbel is three launches, and a coin only in stretches that hold a candidate. Memory:
        without kernels a few times 64 bytes a survivor, or 16 a token of the vocabulary.
        """
        fused = has_kernels(logits.device)
        if not self.keyring.reads_prompt:
            prompts = None
        elif prompts is None:
            raise UsageError(
                f"prompts must be given: keyring {self.keyring.public.id} does not mark what "
                "stands there; got none. Pass DevicePrompts."
            )
        marked, keys, nonces = self._find_keys(
            responses, lengths, key_numbers, seeds, prompts, fused
        )
        if fused and self._code.kind == GUMBEL:
            tokens = kernels.race(keys, nonces, logits)
            return DeviceDraw(tokens, marked & (tokens >= 0))
        candidates, fits = None, True
        if fused or survivors is None or survivors >= logits.shape[1]:
            coins = row(keys, nonces, logits.shape[1])
        else:
            fits = (logits > float("-inf")).sum(dim=1) <= survivors
            logits, candidates = logits.topk(survivors, dim=1)
            coins = words(keys, nonces, candidates)
        probabilities = torch.softmax(logits.double(), dim=1)
        drawn = self._draw_rows(probabilities, coins, marked, seeds, lengths)
        if candidates is not None:
            drawn = candidates.gather(1, drawn.unsqueeze(1)).squeeze(1)
        # a row of NaN is no distribution, which the sampler must see
        usable = fits & ~probabilities.isnan().any(dim=1)
        return DeviceDraw(torch.where(usable, drawn, NO_TOKEN), marked & usable)

    def _find_keys(
        self,
        responses: Tensor,
        lengths: Tensor,
        numbers: Tensor,
        seeds: Tensor,
        prompts: DevicePrompts | None,
        fused: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a key decides each row; the key and nonce of its coins: rules 1 to 3."""
        width = self.keyring.context_width
        if fused:
            where = None if prompts is None else (prompts.ids, prompts.rows, prompts.lengths)
            return kernels.find_keys(
                responses,
                lengths,
                width,
                self._selector,
                self._ends,
                numbers,
                self._keys,
                seeds,
                where,
            )
        contexts, fresh = last_contexts(responses, lengths, width)
        if prompts is not None:
            fresh = fresh & ~stand_in(prompts, contexts)
        packed = pack_contexts(contexts)
        slot = slots(self._selector, packed, self._ends)
        number = numbers.gather(1, slot.unsqueeze(1)).squeeze(1)
        marked = fresh & (number >= 0)
        own = marked.unsqueeze(1)
        keys = torch.where(own, self._keys[number.clamp(min=0)], seeds)
        return marked, keys, torch.where(own, packed, pack_contexts(lengths.unsqueeze(1)))

    def _draw_rows(
        self, probabilities: Tensor, coins: Tensor, marked: Tensor, seeds: Tensor, lengths: Tensor
    ) -> Tensor:
        """int64 [rows], by the scheme where marked, else ordinarily."""
        if self._code.kind == GUMBEL:  # coins of a secret seed make an ordinary draw
            return choose(
                self._code, probabilities, coins, torch.zeros_like(lengths, dtype=torch.float64)
            )
        uniforms = self._uniforms(seeds, lengths)
        drawn = choose(self._code, probabilities, coins, uniforms)
        return torch.where(marked, drawn, draw_unmarked(probabilities, uniforms))

    def _uniforms(self, seeds: Tensor, lengths: Tensor) -> Tensor:
        """53 random bits of (seed, position) as float64 [rows] in [0, 1)."""
        both = torch.arange(2, device=lengths.device).expand(lengths.shape[0], 2)
        high, low = unsigned(words(seeds, pack_contexts(lengths.unsqueeze(1)), both)).unbind(1)
        bits = (high << (32 - _BITS_OF_LOW_WORD)) | (low >> _BITS_OF_LOW_WORD)
        return bits.double() / (1 << 53)


def last_contexts(responses: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The last `width` ids of each response, and whether they stand there for the first time.

    Parameters: responses integer [rows, n] with n > width, padded at the end; lengths int64 [rows].

    Returns contexts [rows, width] and fresh bool [rows]: False also if there are fewer ids. A
    context is not fresh if it already stood before a token of the same response.
    """
    ends = lengths.clamp(min=width, max=responses.shape[1]).unsqueeze(1)
    offsets = torch.arange(width, device=responses.device)
    contexts = responses.gather(1, ends - width + offsets)
    earlier = responses.shape[1] - width
    starts = torch.arange(earlier, device=responses.device)
    alike = starts < ends - width
    for j in range(width):
        alike = alike & (responses[:, j : j + earlier] == contexts[:, j : j + 1])
    return contexts, (lengths >= width) & ~alike.any(dim=1)


def stand_in(prompts: DevicePrompts, contexts: Tensor) -> Tensor:
    """Which contexts, integer [rows, k], stand in the prompt of their row: bool [rows]."""
    ids, width = prompts.ids[prompts.rows], contexts.shape[1]
    starts = torch.arange(max(ids.shape[1] - width + 1, 0), device=ids.device)
    alike = starts <= (prompts.lengths - width).unsqueeze(1)
    for j in range(width):
        alike = alike & (ids[:, j : j + starts.shape[0]] == contexts[:, j : j + 1])
    return alike.any(dim=1)


def leave_choice(scores: Tensor) -> Tensor:
    """`rules.leaves_choice` for each row: float [rows, m] -> bool [rows]."""
    near = scores > scores.amax(dim=1, keepdim=True) - HOPELESS
    return near.sum(dim=1) > 1


def keep_only(scores: Tensor, tokens: Tensor) -> Tensor:
    """Scores that give a sampler one candidate a row: 0 for the drawn token, else minus infinity.

    Parameters: scores float [rows, vocabulary], for shape and dtype; tokens int64 [rows], from
    `DeviceWatermark.draw`; a row without one becomes nan, on which every sampler fails.
    """
    if has_kernels(scores.device):
        return kernels.keep_only(scores, tokens)
    values = torch.where(tokens == NO_TOKEN, float("nan"), 0.0).to(scores.dtype).unsqueeze(1)
    only = torch.full_like(scores, float("-inf"))
    return only.scatter_(1, tokens.clamp(min=0).unsqueeze(1), values)


def scale_logits(logits: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """Temperature, then min-p, as vLLM's V2 runner applies them (gpu/sample/gumbel.py, min_p.py).

    Parameters: logits float32 [rows, vocabulary]; temperature float32 [rows], > 0; min_p float32
    [rows], 0 switches it off. Returns a new tensor; dropped tokens are -inf.
    """
    scaled = logits / temperature.unsqueeze(1)
    least = scaled.amax(dim=1, keepdim=True) + torch.log(min_p).unsqueeze(1)
    return scaled.masked_fill(scaled < least, float("-inf"))
