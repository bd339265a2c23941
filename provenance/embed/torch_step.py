"""One step of marked sampling on the logits' own device: no logits and no coins travel to the host.

The rules are those of `provenance.embed.watermark`, for a batch in which every row has labels of
its own; `torch_coins` makes the coins. Shapes follow from what the host knows, so no operation
waits for the device. Knows keyrings and tensors; knows no serving stack and no sampling parameters
beyond temperature and min-p.

Rows that are not marked are left to the caller: only `marked` says which tokens count.

Not confirmed by any GPU yet: run on CPU tensors, where it equals `Watermark.draw` token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.embed.torch_coins import (
    draw_function,
    pack_contexts,
    pack_keys,
    row,
    slot_ends,
    slots,
    unsigned,
    words,
)
from provenance.embed.watermark import Labels
from provenance.errors import MissingExtraError
from provenance.keys.keyring import SELECTOR, UnlockedKeyring
from provenance.keys.schedule import CONTROL, GLOBAL, SINGLE_VALUE
from provenance.schemes import Gumbel, make_scheme

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError(
        "marking on an accelerator must have torch; it is not installed. "
        "Run: pip install 'provenance[torch]'"
    ) from error

__all__ = ["DeviceDraw", "DeviceWatermark", "last_contexts", "scale_logits"]

NO_KEY = -1
_BITS_OF_LOW_WORD = 11


@dataclass(frozen=True)
class DeviceDraw:
    """Tokens int64 [rows], and bool [rows]: whether a key decided the row. Else ignore its token.

    A row is unmarked as well if more candidates survived than `survivors` allowed for.
    """

    tokens: Tensor
    marked: Tensor


class DeviceWatermark:
    """The keys of a keyring as one table on a device.

    Whoever can read the device's memory can read the keys. Cost of making it: one HKDF a key.
    """

    def __init__(self, keyring: UnlockedKeyring, device: torch.device | str) -> None:
        self.keyring = keyring
        specification = keyring.public.scheme
        self._scheme = make_scheme(specification.name, specification.parameters)
        self._draw = draw_function(self._scheme)
        marked = [slot for slot in keyring.schedule.slots if slot.name != CONTROL]
        names = [(slot.name, value) for slot in marked for value in slot.values]
        self._numbers = {name: number for number, name in enumerate(names)}
        self._keys = pack_keys([keyring.key(*name).reveal() for name in names], device)
        self._selector = pack_keys([keyring.key(SELECTOR, SINGLE_VALUE).reveal()], device)
        self._ends = slot_ends(keyring.schedule, device)

    def __repr__(self) -> str:
        return f"DeviceWatermark(keyring={self.keyring.public.id!r})"

    def key_numbers(self, labels: Labels | None) -> NDArray[np.int64]:
        """Which key of the table each slot has under these labels: int64 [slots], -1 for none.

        `None` stands for a request that does not ask for the mark.
        """
        numbers = np.full(len(self.keyring.schedule.slots), NO_KEY, dtype=np.int64)
        if labels is not None:
            for i, slot in enumerate(self.keyring.schedule.names):
                value = SINGLE_VALUE if slot == GLOBAL else labels.get(slot)
                if value is not None:
                    numbers[i] = self._numbers.get((slot, value), NO_KEY)
        return numbers

    def draw(
        self,
        logits: Tensor,
        responses: Tensor,
        lengths: Tensor,
        key_numbers: Tensor,
        seeds: Tensor,
        survivors: int | None = None,
    ) -> DeviceDraw:
        """Draw the next token of each row whose context is marked.

        Parameters
        ----------
        logits : float32 [rows, vocabulary], final: after temperature, min-p, top-k and top-p;
            -inf for tokens that are no candidates
        responses : integer [rows, n], ids of each response from its first token, padded with
            anything; n > k
        lengths : int64 [rows], tokens of each response so far; below k: not marked
        key_numbers : int64 [rows, slots], from `key_numbers`
        seeds : int32 [rows, 8], from `pack_keys`: 32 bytes a request; uniforms follow from them
            and the length
        survivors : at most so many candidates a row are looked at; None: the whole vocabulary

        Notes
        -----
        Cost: one coin a row for the slot, n * k comparisons, and for every row (marked or not) a
        coin a survivor. Memory: a few times 64 bytes a survivor, or 16 a token of the vocabulary.
        """
        contexts, fresh = last_contexts(responses, lengths, self.keyring.context_width)
        packed = pack_contexts(contexts)
        slot = slots(self._selector, packed, self._ends)
        number = key_numbers.gather(1, slot.unsqueeze(1)).squeeze(1)
        keys = self._keys[number.clamp(min=0)]
        marked = fresh & (number >= 0)
        if survivors is None or survivors >= logits.shape[1]:
            candidates = None
            coins = row(keys, packed, logits.shape[1])
        else:
            marked = marked & ((logits > float("-inf")).sum(dim=1) <= survivors)
            logits, candidates = logits.topk(survivors, dim=1)
            coins = words(keys, packed, candidates)
        probabilities = torch.softmax(logits.double(), dim=1)
        drawn = self._draw(probabilities, coins, self._uniforms(seeds, lengths))
        if candidates is not None:
            drawn = candidates.gather(1, drawn.unsqueeze(1)).squeeze(1)
        # a row of NaN is no distribution: the sampler shall see it
        return DeviceDraw(drawn, marked & ~probabilities.isnan().any(dim=1))

    def _uniforms(self, seeds: Tensor, lengths: Tensor) -> Tensor:
        """53 random bits of (seed, position) as float64 [rows] in [0, 1); 0 if nothing uses them.

        The seed is the key and the position the context of two words, so a request that is
        preempted and taken up again draws as if nothing had happened.
        """
        if isinstance(self._scheme, Gumbel):
            return torch.zeros(lengths.shape, dtype=torch.float64, device=lengths.device)
        both = torch.tensor([[0, 1]], device=lengths.device).expand(lengths.shape[0], 2)
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


def scale_logits(logits: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """Temperature, then min-p, as vLLM's V2 runner applies them (gpu/sample/gumbel.py, min_p.py).

    Parameters: logits float32 [rows, vocabulary]; temperature float32 [rows], > 0; min_p float32
    [rows], 0 switches it off. Returns a new tensor; dropped tokens are -inf.
    """
    scaled = logits / temperature.unsqueeze(1)
    least = scaled.amax(dim=1, keepdim=True) + torch.log(min_p).unsqueeze(1)
    return scaled.masked_fill(scaled < least, float("-inf"))
