"""A run: asks for every item that has no answer, and records each step before the next.

An `asked` record is on the disk before a request is sent, and its answer is before another request
takes its place. So what a killed run leaves is known: answered, or asked with an unknown end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from time import monotonic
from typing import Any, Final

from provenance.storage.chain import Chain
from provenance.suspect.collect.answers import Answer, pack_body, read_answer
from provenance.suspect.collect.client import TOO_LONG, Client, Reply
from provenance.suspect.collect.prompts import Prompts, Request
from provenance.suspect.collect.result import Progress, say_spent
from provenance.suspect.collect.settings import CollectSettings
from provenance.suspect.collect.spend import Budget, Gate
from provenance.suspect.collect.standing import Standing

_LONGEST_BACKOFF: Final = 60.0
_OK, _TOO_MANY, _UNAUTHORISED = 200, 429, 401
_TRANSIENT: Final = frozenset({408, 409, 425, 429, *range(500, 600)})
_OF_ALL: Final = frozenset({402, 403, 404})
"""What a wrong model, key or account gives at every request: final once another was answered."""
_QUOTA: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


class Run:
    """One run of a collection whose folder is locked; see `complete`."""

    def __init__(
        self,
        ledger: Chain,
        standing: Standing,
        prompts: Prompts,
        settings: CollectSettings,
        progress: Progress,
    ) -> None:
        self.ledger, self.standing = ledger, standing
        self.prompts, self.settings, self.progress = prompts, settings, progress
        self.gate, self.budget = Gate(), Budget(settings, standing)
        self.stopped = ""
        self._jitter = random.Random()
        self._started, self._before = monotonic(), len(standing.outcomes)

    async def complete(self, client: Client) -> str:
        """Ask for all that has no answer; why the run stopped before the end, empty if it did not.

        Raises StorageError.
        """
        items = self.unsettled()
        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.settings.concurrency, self.standing.header["wanted"])):
                        group.create_task(self._work(client, items))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if not self.stopped and any(self.unsettled()):
            left = self.standing.header["wanted"] - len(self.standing.outcomes)
            self.stopped = f"{left:,} got no answer after {self.settings.retries + 1} requests each"
        return self.stopped

    def unsettled(self) -> Iterator[str]:
        """Items to ask for."""
        for item in self.prompts.items(self.settings.samples):
            if item not in self.standing.outcomes:
                yield item

    def record(self, kind: str, **fields: Any) -> None:
        """Append a record, and let it count. Raises StorageError."""
        self.standing.take(self.ledger.append(kind, **fields))

    async def _work(self, client: Client, items: Iterator[str]) -> None:
        for item in items:
            if self.stopped:
                return
            request = self.prompts.request(item, self.settings)
            for attempt in range(self.settings.retries + 1):
                wait = await self._try(client, request, attempt)
                if wait is None or self.stopped or attempt == self.settings.retries:
                    break
                await asyncio.sleep(wait)
            self._tell()

    async def _try(self, client: Client, request: Request, attempt: int) -> float | None:
        """One attempt; seconds to wait before the next, None if the item is settled or given up."""
        if not await self._may_ask(request):
            return None
        reply = await self.exchange(client, request)
        await self.budget.settle()
        if reply.retry_after is not None and reply.status in _TRANSIENT:
            self.gate.close(reply.retry_after)
            return 0.0
        if self.is_settled(request.item) or not self._is_transient(reply):
            return None
        longest: float = min(_LONGEST_BACKOFF, self.settings.backoff * 2**attempt)
        return longest * self._jitter.uniform(0.5, 1.0)

    async def _may_ask(self, request: Request) -> bool:
        """Wait for the gate and the budget, until both are open at once; False if the run stops."""
        while not self.stopped:
            await self.gate.wait()
            if not await self.budget.admit(request.bound):
                self.stopped = self.stopped or "the budget is spent"
            elif self.gate.is_open:
                break
        return not self.stopped

    async def exchange(self, client: Client, request: Request) -> Reply:
        """Ask and record: before, and after. Raises StorageError."""
        self.write_asked(request)
        reply = await client.ask(request.body)
        self.write_reply(request, reply)
        return reply

    def write_asked(self, request: Request) -> None:
        """Record that a request is about to be sent."""
        parameters = {
            name: value
            for name, value in request.body.items()
            if name not in ("messages", "prompt")
        }
        self.record(
            "asked",
            item=request.item,
            attempt=self.standing.tried[request.item] + 1,
            parameters=parameters,
            body_sha256=request.body_sha256,
            prompt_sha256=request.prompt_sha256,
            bound=list(request.bound),
        )

    def write_reply(self, request: Request, reply: Reply) -> None:
        """Record what came back, or that nothing did."""
        item = request.item
        common = {"item": item, "attempt": self.standing.tried[item]}
        if reply.lost == TOO_LONG:  # paid, and asking again would not make it shorter
            answer = Answer("error", error=TOO_LONG, tokens=request.bound)
        elif reply.lost:
            self.record("failed", **common, reason=reply.lost, sent=reply.sent)
            return
        else:
            answer = read_answer(reply.status, reply.body)
        self.record(
            "answered",
            **common,
            status=reply.status,
            request_id=reply.request_id,
            prompt_sha256=request.prompt_sha256,
            settled=reply.lost == TOO_LONG or self._settles(reply, answer),
            **answer.facts(),
            **pack_body(reply.body),
        )

    def is_settled(self, item: str) -> bool:
        """Whether it needs no other request."""
        return item in self.standing.outcomes

    def _settles(self, reply: Reply, answer: Answer) -> bool:
        """Whether asking again is of no use; stops the run where no request is of any."""
        if answer.outcome in ("answer", "empty"):
            return True
        if reply.status == _OK or reply.status in _TRANSIENT:
            if answer.error in _QUOTA:
                self.stopped = f"the API says {answer.error}"
            return False
        hopeless = reply.status in _OF_ALL and not self.standing.counts["answer"]
        if reply.status == _UNAUTHORISED or hopeless:
            self.stopped = f"the API says {reply.status} ({answer.error}): check key and model"
            return False
        return True

    def _is_transient(self, reply: Reply) -> bool:
        return bool(reply.lost) or reply.status in _TRANSIENT or reply.status == _OK

    def _tell(self) -> None:
        standing = self.standing
        done = len(standing.outcomes) - self._before
        seconds = monotonic() - self._started
        wanted = standing.header["wanted"]
        left = (wanted - len(standing.outcomes)) * seconds / done if done else None
        cost = self.settings.cost(
            standing.read + standing.unknown[0], standing.written + standing.unknown[1]
        )
        spent = say_spent(standing.tokens, cost, left)
        self.progress("Collecting", len(standing.outcomes), wanted, spent)
