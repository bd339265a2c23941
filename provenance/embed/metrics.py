"""Numbers that a serving process counts, on the registry of prometheus_client too if it imports.

vLLM brings prometheus_client and serves its default registry at `/metrics`. Without it the numbers
are kept all the same, and only this process sees them. Making a metric again gives the same object.

    counter("provenance_refused", "Requests refused.", "reason").inc(reason="greedy")

A name may not contain `vllm`: vLLM unregisters those. prometheus_client shows a counter with the
suffix `_total`. Values of labels must be few and never come from a client.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

try:
    import prometheus_client
except ImportError:
    prometheus_client = None


class Metric:
    """One number for each combination of its labels' values; safe in threads."""

    def __init__(self, kind: str, name: str, text: str, labels: tuple[str, ...]) -> None:
        self.kind, self.name, self.labels = kind, name, labels
        self._values: dict[tuple[str, ...], float] = {}
        self._lock = Lock()
        self._shown: Any = prometheus_client and getattr(prometheus_client, kind)(
            name, text, labels
        )

    def value(self, **labels: str) -> float:
        """What was counted or set last, 0 at first; of a histogram the sum of what was observed."""
        return self._values.get(self._place(labels), 0.0)

    def _place(self, labels: dict[str, str]) -> tuple[str, ...]:
        if labels.keys() != set(self.labels):
            raise TypeError(f"{self.name} has the labels {self.labels}; got {tuple(labels)}")
        return tuple(labels[name] for name in self.labels)

    def _change(self, method: str, number: float, labels: dict[str, str], *, add: bool) -> None:
        place = self._place(labels)
        with self._lock:
            self._values[place] = number + (self._values.get(place, 0.0) if add else 0.0)
        if self._shown is not None:
            child = self._shown.labels(*place) if place else self._shown
            getattr(child, method)(number)


class Counter(Metric):
    """Only rises."""

    def inc(self, number: float = 1, **labels: str) -> None:
        """Add a number."""
        self._change("inc", number, labels, add=True)


class Gauge(Metric):
    """May fall."""

    def set(self, number: float, **labels: str) -> None:
        """Put a number in the place of the last one."""
        self._change("set", number, labels, add=False)


class Histogram(Metric):
    """How often values fall between prometheus_client's default bounds (seconds, .005 to 10)."""

    def observe(self, number: float, **labels: str) -> None:
        """Count a value."""
        self._change("observe", number, labels, add=True)


@cache
def counter(name: str, text: str, *labels: str) -> Counter:
    """The counter of this name: what it counts, in words, and the names of its labels."""
    return Counter("Counter", name, text, labels)


@cache
def gauge(name: str, text: str, *labels: str) -> Gauge:
    """The gauge of this name; parameters as `counter`."""
    return Gauge("Gauge", name, text, labels)


@cache
def histogram(name: str, text: str, *labels: str) -> Histogram:
    """The histogram of this name; parameters as `counter`."""
    return Histogram("Histogram", name, text, labels)
