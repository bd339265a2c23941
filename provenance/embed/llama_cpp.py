"""Adapter for llama-cpp-python: marked ids, one response at a time.

    marked = LlamaCppWatermark(watermark)
    prompt = llama.tokenize(b"Once upon a time")
    options = {"temperature": 0.8, "max_tokens": 200}
    response = marked.respond(llama, prompt, labels, options, sink=sink)

`generate` yields the ids one by one, for a server that streams.

llama.cpp calls a logits processor *before* its penalties, grammar, top-k, top-p, min-p and
temperature. The draw must act on the final probabilities, so this adapter applies those it knows
itself, in llama.cpp's order (temperature comes last there), draws, and leaves llama.cpp a single
candidate. What it does not know is refused: nothing is silently unmarked. So is speculative
decoding: there llama-cpp-python shows a processor the ids of the whole draft, not of the response.

Ids, not text, are what the served log wants: `create_completion` gives text only, which need not
tokenise to the ids that were drawn, and it drops all processors when it is given a logit_bias.

Imports no llama_cpp: it works on the `llama_cpp.Llama` it is given (0.3.36 was tested).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.embed.sink import ResponseSink
from provenance.embed.watermark import Watermark
from provenance.errors import UsageError
from provenance.served.records import Labels, ServedResponse


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled; names and defaults of llama-cpp-python, applied in this order.

    top_k : keep so many; 0: all
    top_p : then keep the likeliest tokens that together reach this share; 1: all
    min_p : then keep what has at least this share of the likeliest token's probability; 0: all
    temperature : then divide the logits; above 0
    max_tokens : at most so many tokens

    Raises UsageError for values outside their domains.
    """

    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    temperature: float = 0.8
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(
                f"temperature must be above 0; got {self.temperature}. Greedy decoding carries no "
                "mark."
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise UsageError(
                "top_k must be at least 0, top_p in (0, 1] and min_p in [0, 1]; got "
                f"{self.top_k}, {self.top_p} and {self.min_p}."
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Sampling:
        """From a mapping; UsageError for an option that the adapter does not apply."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(options) - known):
            raise UsageError(
                f"options must be among {', '.join(sorted(known))} with a watermark; got "
                f"{', '.join(unknown)}. Leave them out."
            )
        return cls(**options)

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Final scores: float32 [vocabulary] -> the same, minus infinity for what is cut off."""
        size = logits.shape[0]
        kept = np.arange(size)
        if 0 < self.top_k < size:
            kept = np.argpartition(logits, size - self.top_k)[size - self.top_k :]
        order = kept[np.argsort(-logits[kept], kind="stable")]
        values = logits[order].astype(np.float64)
        if self.top_p < 1:
            shares = np.exp(values - values[0])
            cumulative = np.cumsum(shares) / shares.sum()
            count = int(np.searchsorted(cumulative, self.top_p)) + 1
            order, values = order[:count], values[:count]
        if self.min_p > 0:
            likely = values >= values[0] + log(self.min_p)
            order, values = order[likely], values[likely]
        scores = np.full(size, -np.inf, dtype=np.float32)
        scores[order] = values / self.temperature
        return scores


class LlamaCppWatermark:
    """Generates marked responses with a `llama_cpp.Llama`; re-usable, keeps nothing of a call."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark

    def respond(
        self,
        llama: Any,
        prompt: Sequence[int],
        labels: Labels,
        options: Mapping[str, Any] | None = None,
        end_tokens: Sequence[int] | None = None,
        sink: ResponseSink | None = None,
    ) -> ServedResponse:
        """One whole response, logged in `sink` if there is one, with the tokens that coins decided.

        The other parameters, and what is raised: see `generate`.
        """
        if sink is not None:
            sink.check_keyring(self.watermark.keyring.public)
        processor, ids = self._draw(llama, prompt, labels, options, end_tokens)
        tokens = list(ids)
        ended = bool(tokens) and tokens[-1] in _end_tokens(llama, end_tokens)
        drawn = np.array([processor.drawn[i] for i in range(len(tokens))], dtype=np.bool_)
        response = ServedResponse(
            marked=bool(drawn.any()),
            labels=labels,
            token_ids=np.array(tokens, dtype=np.uint32),
            prompt_token_ids=np.array(prompt, dtype=np.uint32),
            drawn=drawn,
            finish="end" if ended else "length",
        )
        if sink is not None:
            sink.write(response)
        return response

    def generate(
        self,
        llama: Any,
        prompt: Sequence[int],
        labels: Labels,
        options: Mapping[str, Any] | None = None,
        end_tokens: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Yield the ids of one response as they are drawn, the token that ends it too.

        The end token was drawn with the mark and belongs to the response: log it, and leave it out
        of what a client reads.

        Parameters
        ----------
        llama : llama_cpp.Llama, loaded without a draft model
        prompt : ids, at least one; what `llama.tokenize` returned
        labels : attribute values of the request
        options : fields of `Sampling`
        end_tokens : ids that end a response; default: the model's end token

        Raises (at the call) UsageError for an unknown option, greedy decoding, a draft model or an
        empty prompt; ConfigurationMismatchError if a label has no key.
        """
        return self._draw(llama, prompt, labels, options, end_tokens)[1]

    def _draw(
        self,
        llama: Any,
        prompt: Sequence[int],
        labels: Labels,
        options: Mapping[str, Any] | None,
        end_tokens: Sequence[int] | None,
    ) -> tuple[_Processor, Iterator[int]]:
        """What draws, and the ids that it will draw; see `generate`."""
        sampling = Sampling.from_options(options or {})
        if getattr(llama, "draft_model", None) is not None:
            raise UsageError(
                "a draft model must not be used with a watermark; llama has one. Load it without "
                "draft_model."
            )
        if not prompt:
            raise UsageError("prompt must hold at least one id; it is empty. Start with BOS.")
        self.watermark.check_labels(labels)
        processor = _Processor(self.watermark, labels, prompt, sampling)
        ends = _end_tokens(llama, end_tokens)
        return processor, _generate(llama, list(prompt), processor, sampling.max_tokens, ends)


def _end_tokens(llama: Any, given: Sequence[int] | None) -> set[int]:
    return {int(llama.token_eos())} if given is None else set(given)


def _generate(
    llama: Any, prompt: list[int], processor: _Processor, limit: int, ends: set[int]
) -> Iterator[int]:
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "temp": 1.0}
    drawn = llama.generate(prompt, **neutral, repeat_penalty=1.0, logits_processor=[processor])
    for _ in range(limit):
        token = int(next(drawn))
        yield token
        if token in ends:
            return


class _Processor:
    """Draws the token and leaves only that token possible.

    drawn : for each place of the response, whether a coin decided it
    """

    def __init__(
        self, watermark: Watermark, labels: Labels, prompt: Sequence[int], sampling: Sampling
    ) -> None:
        self._watermark = watermark
        self._numbers = watermark.key_numbers([labels])
        self._width = len(prompt)
        self._prompts = watermark.read_prompts([prompt])
        self.drawn: dict[int, bool] = {}
        self._sampling = sampling

    def __call__(
        self, input_ids: NDArray[np.intc], logits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """input_ids [width + n], logits float32 [vocabulary] -> the same shape."""
        response = np.asarray(input_ids)[np.newaxis, self._width :].astype(np.uint32)
        scores = self._sampling.apply(np.ascontiguousarray(logits, dtype=np.float32))
        drawn = np.empty(1, dtype=np.bool_)
        (token,) = self._watermark.draw_scores(
            self._numbers, response, scores[np.newaxis], self._prompts, drawn
        )
        self.drawn[response.shape[1]] = bool(drawn[0])
        only = np.full(scores.shape, -np.inf, dtype=np.float32)
        only[token] = 0.0
        return only
