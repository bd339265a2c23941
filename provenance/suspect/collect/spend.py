"""What a collection may still spend, and when it may ask next.

A request is admitted if all that was spent, all that is unknown, and the bounds of all that is
under way leave room for its own bound: a budget is never exceeded by what an API that keeps to the
bound can count. Knows numbers; no request.
"""

from __future__ import annotations

import asyncio
import time

from provenance.suspect.collect.settings import CollectSettings
from provenance.suspect.collect.standing import Standing


class Budget:
    """Admits requests within the budget in tokens and money; see `admit`."""

    def __init__(self, settings: CollectSettings, standing: Standing) -> None:
        self._settings, self._standing = settings, standing
        self._settled = asyncio.Condition()

    async def admit(self, bound: tuple[int, int]) -> bool:
        """Whether a request of this bound may be sent; waits while others may leave room for it."""
        async with self._settled:
            while not self._fits(bound):
                if not self._standing.waiting:
                    return False
                await self._settled.wait()
        return True

    async def settle(self) -> None:
        """Say that a request was answered or lost, and stands in the ledger."""
        async with self._settled:
            self._settled.notify_all()

    def _fits(self, bound: tuple[int, int]) -> bool:
        standing, settings = self._standing, self._settings
        parts = [standing.unknown, bound, *standing.waiting.values()]
        read = standing.read + sum(first for first, _ in parts)
        written = standing.written + sum(second for _, second in parts)
        if settings.max_tokens_total is not None and read + written > settings.max_tokens_total:
            return False
        cost = settings.cost(read, written)
        return settings.max_spend is None or cost is None or cost <= settings.max_spend


class Gate:
    """Holds all requests back until a time: what an API that says Retry-After asks for."""

    def __init__(self) -> None:
        self._opens = 0.0

    def close(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._opens = max(self._opens, time.monotonic() + seconds)

    @property
    def is_open(self) -> bool:
        """Whether anybody may pass."""
        return self._opens <= time.monotonic()

    async def wait(self) -> None:
        """Until it is open."""
        while (left := self._opens - time.monotonic()) > 0:
            await asyncio.sleep(left)
