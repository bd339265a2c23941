"""What the processors of both runners share: the keys, the log, the counts of one engine process.

The log is written here, from what was drawn: the ids as the engine has them (the end token, hidden
reasoning and tool calls among them), which of them a coin decided, and an id that no client chose.
Nothing of this module may end an engine: what fails is counted, said, and served unmarked, and the
record says so. Configured by the environment, since vLLM makes its processors itself:

    PROVENANCE_LOG          folder of the served log; without it the engine writes none
    PROVENANCE_LOG_PROMPTS  1: log the ids of prompts as well. An index needs them only under a
                            keyring that marks contexts of the prompt: there they are always logged
    PROVENANCE_REPLICA      name of this replica in the log; by default the host's
    PROVENANCE_SWITCH       file of `embed.switch`
"""

from __future__ import annotations

import logging
import os
import socket
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from provenance.embed.metrics import counter, gauge
from provenance.embed.sink import ResponseSink
from provenance.embed.switch import Switch
from provenance.embed.vllm.log_lines import join_log_lines
from provenance.embed.vllm.requests import (
    RequestParameters,
    ServedWatermark,
    Wish,
    check_server,
    make_generator,
    named_folder,
    parse_wish,
    why_unmarkable,
)
from provenance.errors import ProvenanceError, say_briefly
from provenance.served.background import BackgroundLog
from provenance.served.records import Finish, Labels, ServedResponse
from provenance.served.rotation import RotatingLog

_log = logging.getLogger(__name__)

LOG_VARIABLE: Final = "PROVENANCE_LOG"
PROMPTS_VARIABLE: Final = "PROVENANCE_LOG_PROMPTS"
REPLICA_VARIABLE: Final = "PROVENANCE_REPLICA"
SWITCH_VARIABLE: Final = "PROVENANCE_SWITCH"
REPLICA_LABEL: Final = "replica"
MAXIMUM_WAIT: Final = 600.0
"""Seconds without a step after which a request is logged, whatever became of it."""
_QUIET_SECONDS: Final = 60.0

_REQUESTS: Final = ("provenance_requests", "Requests that entered the engine.", "outcome")
_FAILURES: Final = ("provenance_failures", "Errors that the engine was kept from.", "place")


class Parameters(RequestParameters, Protocol):
    """What the engine reads of `vllm.SamplingParams` beside."""

    max_tokens: int | None
    stop: Any
    stop_token_ids: list[int] | None

    @property
    def eos_token_id(self) -> int | None:
        """The model's end token; None if the request ignores it."""


@dataclass(frozen=True)
class Task:
    """A request that entered the engine.

    labels : whose keys draw it; None: it is served unmarked
    record : what its record says already
    ends, most : tokens that end it, and how many it may have
    has_stops : a string may end it, which only vLLM's front end sees
    """

    labels: Labels | None
    record: ServedResponse
    ends: frozenset[int]
    most: int
    has_stops: bool

    def how_ended(self, ids: Sequence[int] | NDArray[np.uint32]) -> Finish | None:
        """By the ids of the response: with an end token, at its length; None: they do not tell."""
        if len(ids) and int(ids[-1]) in self.ends:
            return "end"
        return "length" if len(ids) >= self.most else None


class Engine:
    """One process that draws. Made when the server starts; only then it raises.

    Raises UsageError if `PROVENANCE_KEYRING` is not set; ConfigurationMismatchError if the keyring
    does not fit the model or the engine's logprobs would show the mark; StorageError if the log's
    folder cannot be written; and what `provenance.keys.worker.open_keys` raises.
    """

    def __init__(self, vllm_config: Any, vocabulary_size: int) -> None:
        join_log_lines()
        self._generator = make_generator(vllm_config)
        self.served = ServedWatermark(named_folder(), self._generator)
        model = vllm_config.model_config
        check_server(self.served.keyring, vocabulary_size, model.logprobs_mode)
        self._longest = int(model.max_model_len)
        switch = os.environ.get(SWITCH_VARIABLE)
        self._switch = Switch(Path(switch) if switch else None)
        asked = os.environ.get(PROMPTS_VARIABLE, "0") not in ("", "0")
        # a context that an earlier turn reached counts once, by the prompt or since it is not drawn
        self._logs_prompts = asked or not self.served.known.reads_prompt
        self._failed = -_QUIET_SECONDS
        self.log = _open_log(vllm_config.parallel_config)
        if self.log is not None and getattr(vllm_config, "shutdown_timeout", None) == 0:
            _log.warning(
                "without --shutdown-timeout vLLM kills this process when the server is told to "
                "stop: responses that run then will be missing in the served log"
            )
        self._replica = _name_replica(vllm_config.parallel_config)
        self._sink: ResponseSink | None = None
        if self.log is not None:
            self._sink = ResponseSink(self.served.keyring, self.log)
            self.log.on_tick(self._show_counts)
        self.served.watermark.warm_up()

    def take(self, parameters: Parameters, prompt_length: int) -> Task | None:
        """How to serve a request that enters; None if it asks for nothing. Raises nothing."""
        reason: str | None
        try:
            wish = parse_wish(parameters.extra_args)
        except ProvenanceError as error:  # admission refused it, so nobody can have sent it
            wish, outcome, reason = Wish({}, mark="never"), "malformed", say_briefly(error)
        else:
            outcome, reason = self._find_reason(wish, parameters)
        labels: Labels | None = None
        if wish is not None and reason is None:
            outcome, reason, labels = self._find_keys(wish)
        counter(*_REQUESTS).inc(outcome=outcome)
        if wish is None:
            return None
        most = self._longest - prompt_length
        return Task(
            labels=labels,
            record=ServedResponse(
                labels={REPLICA_LABEL: self._replica, **wish.groups, **wish.labels},
                conversation_id=wish.conversation_id,
                request_id=wish.request_id,
                reason=reason,
            ),
            ends=_find_ends(parameters),
            most=most if parameters.max_tokens is None else min(parameters.max_tokens, most),
            has_stops=bool(parameters.stop),
        )

    def write(
        self,
        task: Task,
        prompt: list[int] | NDArray[np.uint32] | None,
        ids: NDArray[np.uint32],
        drawn: NDArray[np.bool_],
    ) -> None:
        """Log a response that left: uint32 [n], bool [n]. Raises nothing."""
        if self._sink is None or not ids.shape[0]:
            return
        finish = task.how_ended(ids)
        if finish is None and not task.has_stops:
            finish = "abort"
        with self.guard("log"):
            self._sink.write(
                replace(
                    task.record,
                    token_ids=ids,
                    prompt_token_ids=prompt if self._logs_prompts else None,
                    drawn=drawn,
                    finish=finish,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )

    @contextmanager
    def guard(self, place: str) -> Iterator[None]:
        """Keep an error from the engine: count it, and say it once a minute."""
        try:
            yield
        except Exception:  # noqa: BLE001  whatever it is, other people's responses go on
            counter(*_FAILURES).inc(place=place)
            if clock.monotonic() - self._failed > _QUIET_SECONDS:
                self._failed = clock.monotonic()
                _log.exception("%s failed; the engine goes on without it", place)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of a step's draws, and the step."""
        begun = clock.perf_counter()
        yield
        counter("provenance_steps", "Steps of the engine with a row to mark.").inc()
        counter("provenance_draw_seconds", "Seconds of these steps in the watermark.").inc(
            clock.perf_counter() - begun
        )

    def count_placeholder(self) -> None:
        """A row could not be drawn, since its last id is not known yet: that token has no mark."""
        counter("provenance_placeholders", "Tokens unmarked since an id was missing.").inc()

    def _find_reason(self, wish: Wish | None, parameters: Parameters) -> tuple[str, str | None]:
        """The outcome, and why a request is not to be marked at all."""
        if wish is None:
            return "not asked", None
        if wish.mark == "never":
            return "not to be marked", "it is not to be marked"
        if (reason := why_unmarkable(parameters)) is not None:
            return "unmarkable", reason
        reason = self._switch.why_not(float(self._generator.random()))
        return ("marked", None) if reason is None else ("switched off", reason)

    def _find_keys(self, wish: Wish) -> tuple[str, str | None, Labels]:
        """The outcome, what the record says of it, and the labels whose keys are here.

        Admission vouched for all of them, perhaps by a newer file than this process can read: what
        is here marks, and nobody's stream is cut for the rest.
        """
        outcome, reason = "marked", None
        with self.guard("keys"):
            try:
                self.served.follow(wish.labels)
            except ProvenanceError as error:
                outcome, reason = "no key", say_briefly(error)
        held = self.served.known.list_held()
        gauge("provenance_keys", "Keys that this process holds.").set(len(held))
        return outcome, reason, {n: v for n, v in wish.labels.items() if (n, v) in held}

    def _show_counts(self) -> None:
        if self.log is not None:
            gauge("provenance_log_queue", "Records that wait to be written.").set(self.log.depth)
            gauge("provenance_log_written", "Records written.").set(self.log.written)
            gauge("provenance_log_lost", "Records that could not be written.").set(self.log.lost)
            gauge("provenance_log_waited_seconds", "Waiting for the log.").set(self.log.waited)


def _find_ends(parameters: Parameters) -> frozenset[int]:
    """Tokens that end a response, as `check_stop` of vllm/v1/core/sched/utils.py has it.

    `all_stop_token_ids` holds the end token also where the request ignores it.
    """
    ends = set(parameters.stop_token_ids or ())
    return frozenset(ends if parameters.eos_token_id is None else {*ends, parameters.eos_token_id})


def _open_log(parallel: Any) -> BackgroundLog | None:
    """The log of this process; None without a folder, and on all ranks but the first."""
    folder = os.environ.get(LOG_VARIABLE)
    if not folder:
        _log.warning("%s is not set: this engine logs no response", LOG_VARIABLE)
        return None
    if int(getattr(parallel, "rank", 0)) % int(parallel.tensor_parallel_size):
        return None
    safe = "".join(c if c.isalnum() or c in "._" else "_" for c in _name_replica(parallel))
    return BackgroundLog(RotatingLog(folder, stem=f"served-{safe}")).start()


def _name_replica(parallel: Any) -> str:
    name = os.environ.get(REPLICA_VARIABLE) or socket.gethostname()
    several = int(getattr(parallel, "data_parallel_size", 1)) > 1
    return f"{name}-{parallel.data_parallel_rank}" if several else name
