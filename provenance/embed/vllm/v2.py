"""Adapter for vLLM's V2 model runner, the default on GPUs: draws on the device, nothing travels.

    PROVENANCE_KEYRING=keys/ vllm serve MODEL \\
        --logits-processors provenance.embed.vllm.v2:WatermarkLogitsProcessor

Requests say which labels they carry, see `provenance.embed.vllm.requests`. A class of one runner is
refused by the other when the server starts, so take this one where vLLM says "V2 model runner" and
`provenance.embed.vllm.v1` otherwise.

Order of vLLM 0.32 in this runner (vllm/v1/worker/gpu/sample/sampler.py):

1. grammar (structured output)
2. allowed_token_ids, min_tokens, logit_bias, penalties, bad_words
3. custom processors: this one
4. thinking budget
5. temperature, min_p, top-k, top-p, draw

So this processor applies the request's temperature and min-p as vLLM does, top-k and top-p by
vLLM's own function, draws, and leaves the drawn token alone in its row: step 5 can then draw
nothing else. Step 4 may force another token: then that token is not ours, and carries no mark.
Another custom processor must stand before this one. Rows whose context is not marked are not
touched.

The response is read from the runner's own token table on the device, and this step's draft tokens
from the step's input ids, so the draw follows from ids alone, also after preemption and with
asynchronous scheduling. With speculative decoding a marked row has one possible token: standard
rejection sampling accepts a draft if it is that token and else returns it, so the mark is whole and
fewer drafts are accepted. Schemes that need uniforms take them from the request's seed (or 32 fresh
bytes) and the position.

The runner does not say when a request leaves. Its ids stay in the table until its slot is used
again, and are logged then; or as soon as they say that they ended, which a thread asks for when the
slot rests. Which of them a coin decided is kept on the device, a byte for every place of every
slot. A token that step 4 forces in place of ours counts as drawn: the draw was made, and its
context reached.

Run in vLLM's real V2 runner on a CPU, its kernels in Triton's interpreter, with temperature only;
top-k, top-p, min-p, draft tokens and re-used slots against vLLM's real interface classes on CPU
tensors, and against copies of those classes on an NVIDIA H200. vLLM itself has not run on a GPU
here; neither asynchronous scheduling, speculative decoding with a real draft model nor tensor
parallelism has been run.
"""

from __future__ import annotations

import hashlib
import threading
import time as clock
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from provenance.embed.device.torch_batch import (
    DevicePrompts,
    DeviceWatermark,
    keep_only,
    leave_choice,
    scale_logits,
)
from provenance.embed.device.torch_coins import pack_keys
from provenance.embed.vllm.engine import MAXIMUM_WAIT, Engine, Task
from provenance.embed.vllm.requests import admit_request, make_generator
from provenance.errors import ConfigurationMismatchError, MissingExtraError

try:
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
    from vllm.v1.worker.gpu.sample.logits_processor import (
        LogitsContext,
        LogitsProcessor,
        LogitsProcRequestState,
    )
except ImportError as error:
    raise MissingExtraError("vLLM 0.32 or later must import; it does not.", "vllm") from error

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_ROWS_AT_ONCE = 64
"""Bounds the memory of a step: a whole vocabulary of coins a row."""
_TIES = 4
"""top-k keeps ties at its last place: so many times k candidates are looked at."""
_LENGTHS = 64
"""Lengths are rounded up to this, so that few shapes occur."""
_RESTS = 0.5
"""Seconds without a step after which it is asked whether a request has ended."""


@dataclass(eq=False)
class _Slot:
    """The request that a slot of the runner holds, or held: nobody says when it leaves."""

    task: Task
    parameters: SamplingParams
    prompt_length: int
    seen: float = field(default_factory=clock.monotonic)


class WatermarkLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each marked row of a step. Made by vLLM, once per worker.

    Raises when the server starts what `Engine` raises, and ConfigurationMismatchError if vLLM's own
    watermark is configured as well; nothing later.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what cannot be marked as asked; vLLM answers with HTTP 400."""
        admit_request(sampling_params)

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        super().__init__(vllm_config, req_states)
        if getattr(vllm_config, "watermark_config", None) is not None:
            raise ConfigurationMismatchError(
                "one watermark must be configured; --watermark-config asks for vLLM's own as well. "
                "Drop one of them."
            )
        self._states = req_states
        self._engine = Engine(vllm_config, req_states.vocab_size)
        self._drafts = int(vllm_config.num_speculative_tokens)
        self._fresh = make_generator(vllm_config)
        self._device = DeviceWatermark(self._engine.served.watermark.keyring, req_states.device)
        count = req_states.max_num_reqs
        self._slots: dict[int, _Slot] = {}
        self._asked = np.zeros(count, dtype=np.bool_)
        self._top_k = np.full(count, req_states.vocab_size, dtype=np.int32)
        self._top_p = np.ones(count, dtype=np.float32)
        self._host = {
            "top_k": self._top_k,
            "top_p": self._top_p,
            "min_p": np.zeros(count, dtype=np.float32),
            "temperature": np.ones(count, dtype=np.float32),
            "seeds": np.zeros((count, 8), dtype=np.int32),
            "keys": np.tile(self._device.key_numbers(None), (count, 1)),
        }
        self._tables = {
            name: torch.from_numpy(values).to(req_states.device, copy=True)
            for name, values in self._host.items()
        }
        self._changed = False
        self._warm_up()
        self._lock = threading.Lock()
        self._drawn: torch.Tensor | None = None
        if self._engine.log is not None:
            shape = req_states.all_token_ids.gpu.shape
            self._drawn = torch.zeros(shape, dtype=torch.bool, device=req_states.device)
            self._engine.log.on_tick(self._log_those_that_ended)
            self._engine.log.on_close(self._log_all)

    def _warm_up(self) -> None:
        """Have the device's operations compiled: no response is to wait for that."""
        device, width = self._states.device, self._device.keyring.context_width
        nothing = torch.zeros((1, _LENGTHS), dtype=torch.int32, device=device)
        one = torch.ones(1, dtype=torch.int64, device=device)
        draw = self._device.draw(
            torch.zeros((1, self._states.vocab_size), device=device),
            nothing,
            one * (width + 1),
            torch.from_numpy(self._device.key_numbers({})[np.newaxis]).to(device),
            self._tables["seeds"][:1],
            prompts=DevicePrompts(nothing, one - 1, one),
        )
        keep_only(torch.zeros((1, self._states.vocab_size), device=device), draw.tokens)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over the parameters of a request; True if it asks for the mark."""
        with self._lock, self._engine.guard("add_request"):
            self._asked[req_idx] = self._add(req_idx, sampling_params)
            return bool(self._asked[req_idx])
        self._asked[req_idx] = False
        return False

    def _add(self, slot: int, parameters: SamplingParams) -> bool:
        prompt_length = int(self._states.prompt_len.np[slot])
        resumed = int(self._states.prefill_len.np[slot]) > prompt_length
        earlier = self._find_again(parameters) if resumed else None
        kept = None if earlier is None else self._read(earlier)
        if earlier != slot and slot in self._slots:
            self._write(self._take_out(slot))  # its ids stand there until the runner's flush
        if earlier is not None:
            self._slots[slot] = self._slots.pop(earlier)
        else:
            task = self._engine.take(parameters, prompt_length)
            self._slots.pop(slot, None)
            if task is not None:
                self._slots[slot] = _Slot(task, parameters, prompt_length)
        if self._drawn is not None:
            self._drawn[slot] = False
            if kept is not None:
                bits = torch.from_numpy(kept[1]).to(self._drawn.device)
                self._drawn[slot, : bits.shape[0]] = bits
        held = self._slots.get(slot)
        labels = None if held is None else held.task.labels
        if self._device.keyring is not self._engine.served.watermark.keyring:
            self._renumber()
        self._host["keys"][slot] = self._device.key_numbers(labels)
        self._changed = True
        if labels is None:
            return False
        size, top_k = self._states.vocab_size, parameters.top_k
        self._top_k[slot] = top_k if 0 < top_k < size else size
        self._top_p[slot] = parameters.top_p
        self._host["min_p"][slot] = parameters.min_p
        self._host["temperature"][slot] = parameters.temperature
        self._host["seeds"][slot] = self._make_seed(parameters.seed)
        return True

    def apply_staged_writes(self) -> None:
        """Send what `add_request` wrote to the device."""
        if self._changed:
            for name, values in self._host.items():
                self._tables[name].copy_(torch.from_numpy(values))
            self._changed = False

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Draw the marked rows: float32 [rows, vocabulary], changed in place.

        Cost: nothing if no request of the batch asks for the mark; else see `DeviceWatermark.draw`.
        """
        with self._engine.guard("draw"), self._engine.timed():
            self._apply(logits, ctx)
        return logits

    def _apply(self, logits: torch.Tensor, ctx: LogitsContext) -> None:
        now = clock.monotonic()
        for slot in ctx.idx_mapping_np.tolist():
            if slot in self._slots:
                self._slots[slot].seen = now
        asked = np.flatnonzero(self._asked[ctx.idx_mapping_np])
        if not asked.size:
            return
        slots = ctx.idx_mapping_np[asked]
        if logits.shape[0] == ctx.idx_mapping_np.shape[0]:
            rows = torch.from_numpy(asked).to(logits.device)
        else:  # one row a draft token: only the device knows whose
            rows = torch.arange(logits.shape[0], device=logits.device)
        seen = ctx.seq_lens_upper_bound_np[asked] - self._states.prompt_len.np[slots]
        longest = max(int(seen.max()), self._device.keyring.context_width + 1)
        longest = -(-longest // _LENGTHS) * _LENGTHS
        for part in rows.split(_ROWS_AT_ONCE):
            self._mark(logits, ctx, part, slots, longest)

    def _mark(
        self,
        logits: torch.Tensor,
        ctx: LogitsContext,
        rows: torch.Tensor,
        slots: NDArray[np.int64],
        longest: int,
    ) -> None:
        """Draw some rows; `slots` are the batch's requests that ask, for what the host decides."""
        owner = ctx.expanded_idx_mapping[rows].long().clamp(min=0)
        size = logits.shape[1]
        scaled = scale_logits(
            logits[rows], self._tables["temperature"][owner], self._tables["min_p"][owner]
        )
        most = int(self._top_k[slots].max())
        top_k = self._tables["top_k"][owner] if int(self._top_k[slots].min()) < size else None
        top_p = self._tables["top_p"][owner] if float(self._top_p[slots].min()) < 1 else None
        responses, lengths = self._responses(ctx, rows, owner, longest)
        longest_prompt = int(self._states.prompt_len.np[slots].max())
        prompts = DevicePrompts(
            self._states.all_token_ids.gpu[:, :longest_prompt],
            owner,
            self._states.prompt_len.gpu[owner].long(),
        )
        final = apply_top_k_top_p(scaled, top_k, top_p)
        draw = self._device.draw(
            final,
            responses,
            lengths,
            self._tables["keys"][owner],
            self._tables["seeds"][owner],
            survivors=_TIES * most if 16 * _TIES * most <= size else None,
            prompts=prompts,
        )
        marked = draw.marked & (ctx.expanded_idx_mapping[rows] >= 0)
        if self._drawn is not None:
            places = lengths.clamp(max=self._drawn.shape[1] - 1)
            own = ctx.expanded_idx_mapping[rows] >= 0
            said = torch.where(own, marked & leave_choice(final), self._drawn[owner, places])
            self._drawn[owner, places] = said
        only = keep_only(scaled, draw.tokens)
        logits[rows] = torch.where(marked.unsqueeze(1), only, logits[rows])

    def _responses(
        self, ctx: LogitsContext, rows: torch.Tensor, owner: torch.Tensor, longest: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output ids up to each row, drafts included: int32 [rows, longest], int64 [rows]."""
        table = self._states.all_token_ids.gpu
        prompt = self._states.prompt_len.gpu[owner].long()
        lengths = ctx.pos[rows].long() + 1 - prompt
        places = prompt.unsqueeze(1) + torch.arange(longest, device=rows.device)
        responses = table[owner.unsqueeze(1), places.clamp(max=table.shape[1] - 1)]
        # the token fed i rows before a row of the same request stands i places before its end
        for back in range(self._drafts + 1):
            place = (lengths - 1 - back).clamp(min=0, max=longest - 1).unsqueeze(1)
            token = ctx.input_ids[(rows - back).clamp(min=0)].to(responses.dtype).unsqueeze(1)
            own = (ctx.expanded_local_pos[rows] >= back) & (lengths > back)
            kept = responses.gather(1, place)
            responses.scatter_(1, place, torch.where(own.unsqueeze(1), token, kept))
        return responses, lengths

    def _find_again(self, parameters: SamplingParams) -> int | None:
        """The slot of a request that was preempted and comes again."""
        found = (slot for slot, held in self._slots.items() if held.parameters is parameters)
        return next(found, None)

    def _read(self, slot: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Ids that a slot's request has drawn, and which of them a coin decided; waits."""
        start = self._slots[slot].prompt_length
        total = int(self._states.total_len.gpu[slot])
        ids = self._states.all_token_ids.gpu[slot, start:total].cpu().numpy().astype(np.uint32)
        if self._drawn is None:
            return ids, np.zeros(ids.shape, dtype=np.bool_)
        return ids, self._drawn[slot, : ids.shape[0]].cpu().numpy().copy()  # a view on a CPU

    def _take_out(self, slot: int) -> tuple[Any, ...] | None:
        """Forget a slot's request; what `Engine.write` wants of it."""
        held = self._slots[slot]
        found = None
        if self._drawn is not None:
            prompt = self._states.all_token_ids.gpu[slot, : held.prompt_length].cpu().tolist()
            found = (held.task, prompt, *self._read(slot))
        del self._slots[slot]
        return found

    def _write(self, *found: tuple[Any, ...] | None) -> None:
        for one in found:
            if one is not None:
                self._engine.write(*one)

    def _log_those_that_ended(self) -> None:
        """Called twenty times a second: requests that rest, and whose ids say that they ended."""
        found = []
        with self._lock:
            now = clock.monotonic()
            for slot, held in list(self._slots.items()):
                rests = now - held.seen
                if rests > MAXIMUM_WAIT or (
                    rests > _RESTS and held.task.how_ended(self._read(slot)[0]) is not None
                ):
                    found.append(self._take_out(slot))
        self._write(*found)  # not under the lock: a slow disk must not hold the engine up

    def _log_all(self) -> None:
        """The engine ends: whatever was drawn may have been sent."""
        with self._lock:
            found = [self._take_out(slot) for slot in list(self._slots)]
        self._write(*found)

    def _renumber(self) -> None:
        """The keyring grew while serving: a new table of keys, and new numbers into it."""
        keyring = self._engine.served.watermark.keyring
        self._device = DeviceWatermark(keyring, self._states.device)
        for slot, held in self._slots.items():
            self._host["keys"][slot] = self._device.key_numbers(held.task.labels)
        self._changed = True

    def _make_seed(self, seed: int | None) -> NDArray[np.int32]:
        """32 bytes as int32 [8]: of the request's seed, or fresh ones."""
        if seed is None:
            secret = self._fresh.bytes(32)
        else:
            secret = hashlib.sha256(b"provenance-seed" + str(seed).encode("ascii")).digest()
        words: NDArray[np.int32] = pack_keys([secret]).numpy()[0]
        return words
