"""Counters keep their numbers with and without prometheus_client."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from provenance.embed import metrics


class _Shown:
    """What this package calls of a metric of prometheus_client."""

    def __init__(self, name, text, labels):
        self.calls, self.children = [], {}

    def labels(self, *values):
        return self.children.setdefault(values, _Shown("", "", ()))

    def __getattr__(self, method):
        if method not in ("inc", "set", "observe"):
            raise AttributeError(method)
        return lambda number: self.calls.append((method, number))


@pytest.fixture(autouse=True, params=["with", "without"])
def client(request, monkeypatch):
    doubled = SimpleNamespace(Counter=_Shown, Gauge=_Shown, Histogram=_Shown)
    monkeypatch.setattr(metrics, "prometheus_client", doubled if request.param == "with" else None)
    for maker in (metrics.counter, metrics.gauge, metrics.histogram):
        maker.cache_clear()
    yield doubled if request.param == "with" else None
    for maker in (metrics.counter, metrics.gauge, metrics.histogram):
        maker.cache_clear()


def test_numbers_are_kept_by_label_and_shown(client):
    refused = metrics.counter("provenance_t_refused", "Refused.", "reason")
    refused.inc(reason="greedy")
    refused.inc(2, reason="greedy")
    refused.inc(reason="beams")
    assert (refused.value(reason="greedy"), refused.value(reason="beams")) == (3, 1)
    assert refused.value(reason="never") == 0
    depth = metrics.gauge("provenance_t_depth", "Depth.")
    depth.set(5)
    depth.set(3)
    assert depth.value() == 3
    seconds = metrics.histogram("provenance_t_seconds", "Seconds.")
    seconds.observe(0.5)
    seconds.observe(1.5)
    assert seconds.value() == 2
    if client is not None:
        greedy = refused._shown.children[("greedy",)]
        assert greedy.calls == [("inc", 1), ("inc", 2)]
        assert depth._shown.calls == [("set", 5), ("set", 3)]
        assert seconds._shown.calls == [("observe", 0.5), ("observe", 1.5)]


def test_a_metric_is_made_once_and_wants_its_labels():
    first = metrics.counter("provenance_t_once", "Once.", "reason")
    assert metrics.counter("provenance_t_once", "Once.", "reason") is first
    with pytest.raises(TypeError, match="labels"):
        first.inc()
    with pytest.raises(TypeError, match="labels"):
        first.inc(cause="x")


def test_threads_lose_no_count():
    many = metrics.counter("provenance_t_many", "Many.")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [many.inc() for _ in range(1000)], range(4)))
    assert many.value() == 4000
