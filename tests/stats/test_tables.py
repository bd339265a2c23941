"""Laws and class tables: construction, moments, canonical form, JSON, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.errors import DataError, UsageError
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

GREEN = NullLaw.bernoulli(2**30)
LAYERS = NullLaw((1, 4, 6, 4, 1))

tables = st.lists(
    st.tuples(
        st.integers(-50, 50).filter(bool), st.integers(1, 9), st.integers(0, 9), st.booleans()
    ),
    max_size=20,
)


def build(rows: list[tuple[int, int, int, bool]]) -> ClassTable:
    table = ClassTable(())
    for weight, count, total, layered in rows:
        law = LAYERS if layered else GREEN
        score = ScoreClass(weight, law, count, min(total, count * law.support[-1]))
        table = table.merge(ClassTable((score,)))
    return table


def test_gumbel_law_is_nearly_geometric(laws: dict[str, NullLaw]) -> None:
    law = laws["gumbel"]
    assert law.total == 2**32
    assert len(law.masses) == 89
    assert law.mean == pytest.approx(1 / math.expm1(0.25), rel=1e-6)
    assert law.variance == pytest.approx(math.exp(0.25) / math.expm1(0.25) ** 2, rel=1e-5)


def test_law_moments_are_exact() -> None:
    assert (LAYERS.mean, LAYERS.variance) == (2.0, 1.0)
    assert GREEN.variance == 3 / 16
    assert NullLaw((0, 0, 5)).variance == 0.0
    np.testing.assert_array_equal(LAYERS.probabilities, np.array([1, 4, 6, 4, 1]) / 16)
    assert NullLaw((np.int64(3), 1)) == NullLaw((3, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "masses", [(), (0, 0), (1, -1), (1.0, 2.0), (True, 2), ("1",), (1,) * 20_000, (2**300,), 7]
)
def test_malformed_laws_are_refused(masses: Any) -> None:
    with pytest.raises(UsageError, match="masses of a null law"):
        NullLaw(masses)


@pytest.mark.parametrize("threshold", [-1, 2**32 + 1])
def test_threshold_outside_the_words_is_refused(threshold: int) -> None:
    with pytest.raises(UsageError, match="threshold"):
        NullLaw.bernoulli(threshold)


def test_probabilities_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        GREEN.probabilities[0] = 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": 0},
        {"weight": 2**41},
        {"weight": 1.0},
        {"count": 0},
        {"count": True},
        {"count": 2**53},
        {"total": -1},
        {"total": 11},
    ],
)
def test_malformed_classes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="must be"):
        ScoreClass(**{"weight": 1, "law": GREEN, "count": 10, "total": 3, **fields})


def test_from_scores_equals_a_slow_count() -> None:
    rng = np.random.default_rng(3)
    for spread in (30, 10**7):
        weights = rng.integers(-spread, spread, 400)
        scores = rng.integers(0, 5, 400)
        table = ClassTable.from_scores(weights, scores, LAYERS)
        for item in table.classes:
            chosen = scores[weights == item.weight]
            assert (item.count, item.total) == (chosen.size, chosen.sum())
        assert table.coins == np.count_nonzero(weights)
        assert table.statistic == int(weights @ scores)


def test_moments_of_the_statistic() -> None:
    table = ClassTable.from_scores([1, -2, 3, 3], [0, 1, 1, 1], GREEN)
    assert table.statistic == 4
    assert table.mean == 5 / 4
    assert table.variance == pytest.approx(23 * 3 / 16)
    assert table.z == pytest.approx((4 - 1.25) / math.sqrt(23 * 3 / 16))
    fourth = 3 / 16 * (1 - 6 * 3 / 16)  # fourth cumulant of a coin
    expected = fourth * (1 + 16 + 81 + 81) / (23 * 3 / 16) ** 2
    assert table.excess_kurtosis == pytest.approx(expected)
    assert ClassTable(()).excess_kurtosis == 0.0


@pytest.mark.parametrize(
    ("weights", "scores", "error"),
    [
        ([1, 2], [1], UsageError),
        ([1.0], [1], UsageError),
        ([[1]], [[1]], UsageError),
        ([1], [0.5], UsageError),
        ([1], [2], DataError),
        ([1], [-1], DataError),
        ([2**41], [1], DataError),
        (np.array([2**63], dtype=np.uint64), [1], UsageError),
        ([True], [1], UsageError),
    ],
)
def test_malformed_scores_are_refused(weights: Any, scores: Any, error: type) -> None:
    with pytest.raises(error):
        ClassTable.from_scores(weights, scores, GREEN)


def test_score_of_probability_zero_is_refused() -> None:
    with pytest.raises(DataError, match="got score 1"):
        ClassTable.from_scores([1, 1], [0, 1], NullLaw((3, 0, 4)))


def test_order_is_canonical() -> None:
    rows = (ScoreClass(1, GREEN, 1, 0), ScoreClass(2, GREEN, 1, 0))
    assert ClassTable(rows).coins == 2
    for wrong in (rows[::-1], rows[:1] * 2):
        with pytest.raises(DataError, match="sorted by weight"):
            ClassTable(wrong)


@given(tables, tables)
def test_merge_is_commutative(left: Any, right: Any) -> None:
    assert build(left).merge(build(right)) == build(right).merge(build(left))
    assert build(left).merge(ClassTable(())) == build(left)


@given(tables)
def test_json_round_trip(rows: Any) -> None:
    table = build(rows)
    again = ClassTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.sha256() == table.sha256()


def test_hash_is_stable() -> None:
    """A change of the canonical form breaks every evidence file: it must be seen here."""
    table = ClassTable.from_scores([1, 2], [1, 0], NullLaw((3, 1)))
    assert json.dumps(table.to_json(), sort_keys=True, separators=(",", ":")) == (
        '{"classes":[{"count":1,"law":0,"total":1,"weight":1},'
        '{"count":1,"law":0,"total":0,"weight":2}],"laws":[{"id":0,"masses":[3,1]}]}'
    )
    # sha256sum of that text
    expected = "00b8a1f5c916600fe9e367ecddef5cfeb61d438c45a68f46aeeb017156d118bd"
    assert table.sha256() == expected


def valid() -> dict[str, Any]:
    mixed = ClassTable.from_scores([1, 2, 2], [1, 0, 1], GREEN)
    return mixed.merge(ClassTable.from_scores([2], [3], LAYERS)).to_json()


def altered(path: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(valid())
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


MALFORMED: dict[str, Any] = {
    "not an object": [],
    "empty object": {},
    "no laws": altered(("laws",), None),
    "unknown field": altered(("extra",), 1),
    "classes no list": altered(("classes",), {}),
    "laws no list": altered(("laws",), "x"),
    "row no object": altered(("classes", 0), 7),
    "row without count": altered(("classes", 0, "count"), None),
    "row with unknown field": altered(("classes", 0, "p"), 1),
    "float weight": altered(("classes", 0, "weight"), 1.0),
    "boolean weight": altered(("classes", 0, "weight"), True),
    "string total": altered(("classes", 0, "total"), "1"),
    "zero weight": altered(("classes", 0, "weight"), 0),
    "zero count": altered(("classes", 0, "count"), 0),
    "impossible total": altered(("classes", 0, "total"), 2),
    "negative total": altered(("classes", 0, "total"), -1),
    "unknown law": altered(("classes", 0, "law"), 2),
    "negative law": altered(("classes", 0, "law"), -1),
    "order": altered(("classes", 0, "weight"), 3),
    "repeated class": altered(("classes", 0, "weight"), 2),
    "law no object": altered(("laws", 0), [1]),
    "law misnumbered": altered(("laws", 0, "id"), 1),
    "law with negative mass": altered(("laws", 0, "masses"), [-1, 2]),
    "law with float mass": altered(("laws", 0, "masses"), [0.5, 0.5]),
    "law of no mass": altered(("laws", 0, "masses"), []),
    "masses no list": altered(("laws", 0, "masses"), 5),
    "unused law": altered(("laws", slice(2, 2)), [{"id": 2, "masses": [9, 9]}]),
    "repeated law": altered(("laws", 1, "masses"), [1, 4, 6, 4, 1]),
    "swapped laws": altered(("laws", 0, "masses"), [2**33, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_json_is_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        ClassTable.from_json(MALFORMED[name])
    assert "\n" not in str(caught.value)


def test_valid_json_is_accepted() -> None:
    assert ClassTable.from_json(valid()).coins == 4
