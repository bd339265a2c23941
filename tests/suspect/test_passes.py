"""Passes: sums against dictionaries, interruption, corruption, and what is left on the disk."""

import json
import math
import weakref
from collections import Counter, defaultdict

import numpy as np
import pytest

from provenance.errors import LockedError, StorageError
from provenance.suspect.passes import Pass, Reading, run_pass, sum_passes

DESCRIPTION = {"format": 1, "model": {"weights": "abc"}}


def _reading(seed, pairs=300, contexts=30, tokens=12, visits=80):
    """Random masses; pairs repeat, some contexts are visited without a mass."""
    rng = np.random.default_rng(seed)
    visited = rng.integers(0, contexts, visits)
    own = rng.choice(np.unique(visited), pairs)
    return Reading(
        contexts=own,
        tokens=rng.integers(0, tokens, pairs).astype(np.uint32),
        masses=rng.random(pairs),
        visited=visited,
        tally={"positions": float(visits), "kept": 0.5},
    )


def _empty():
    none = np.empty(0, dtype=np.int64)
    return Reading(none, none.astype(np.uint32), np.empty(0), none, {"positions": 0.0})


def _slow(readings):
    """(context, token) -> mass, and context -> visits."""
    masses, visits = defaultdict(float), Counter()
    for reading in readings:
        visits.update(reading.visited.tolist())
        triples = (reading.contexts.tolist(), reading.tokens.tolist(), reading.masses.tolist())
        for context, token, mass in zip(*triples, strict=True):
            masses[context, token] += mass
    return masses, visits


def _slow_sum(suspect, reference):
    """What `sum_passes` must give: (context, token) -> (mass, expected, total)."""
    masses, visits = _slow(suspect)
    if reference is None:
        return {pair: (mass, 0.0, visits[pair[0]]) for pair, mass in masses.items()}
    expected, read = _slow(reference)
    return {
        (c, t): (
            masses.get((c, t), 0.0),
            expected.get((c, t), 0.0) * visits[c] / read[c],
            visits[c],
        )
        for c, t in {*masses, *expected}
        if visits[c] and read[c]
    }


def _as_dict(summed):
    columns = (summed.contexts, summed.tokens, summed.masses, summed.expected, summed.totals)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert [row[:2] for row in rows] == sorted({row[:2] for row in rows})
    return {row[:2]: row[2:] for row in rows}


def _assert_equal(found, slow):
    assert found.keys() == slow.keys()
    for pair, values in slow.items():
        assert found[pair] == pytest.approx(values, rel=1e-9)


def _run(readings, cache=None, description=DESCRIPTION, progress=None):
    return run_pass(readings, lambda reading: reading, description, cache, progress)


# ---- sums ----


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_sum_equals_dictionaries_without_a_reference(parts):
    readings = [_reading(seed) for seed in range(parts)]
    with _run(readings) as done:
        summed = sum_passes(done, None)
    _assert_equal(_as_dict(summed), _slow_sum(readings, None))
    assert [column.dtype for column in vars(summed).values()] == [
        np.int64,
        np.uint32,
        np.float64,
        np.float64,
        np.int64,
    ]
    assert done.tally == {"positions": 80.0 * parts, "kept": 0.5 * parts}


def test_the_sum_scales_a_reference_that_read_other_positions():
    """Contexts of one side only, other visits on both sides, pairs of one side only."""
    suspect = [_reading(seed, contexts=40) for seed in range(4)]
    reference = [_reading(seed, contexts=50, tokens=15, visits=60) for seed in range(10, 13)]
    with _run(suspect) as one, _run(reference) as two:
        found = _as_dict(sum_passes(one, two))
    slow = _slow_sum(suspect, reference)
    _assert_equal(found, slow)
    # the cases that the test is about are there
    (masses, visits), (expected, read) = _slow(suspect), _slow(reference)
    assert any(visits[c] != read[c] for c, _ in slow)
    assert {c for c in visits if not read[c]}
    assert {c for c in read if not visits[c]}
    assert any(pair not in masses for pair in slow)
    assert any(pair not in expected for pair in slow)


def test_a_context_visited_without_any_mass_still_takes_the_expected_mass():
    seven = np.array([7])
    mute = Reading(seven[:0], np.empty(0, np.uint32), np.empty(0), np.array([7, 7, 7]), {})
    says = Reading(seven, np.array([3], dtype=np.uint32), np.array([0.5]), seven, {})
    with _run([mute]) as one, _run([says]) as two:
        assert _as_dict(sum_passes(one, two)) == {(7, 3): (0.0, 1.5, 3)}
        assert _as_dict(sum_passes(two, one)) == {(7, 3): (0.5, 0.0, 1)}
        assert _as_dict(sum_passes(one, None)) == {}


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_nothing_read_is_an_empty_sum(parts):
    with _run([_empty()] * parts) as done:
        assert len(done.parts) == parts
        for reference in (None, done):
            summed = sum_passes(done, reference)
            assert {column.shape for column in vars(summed).values()} == {(0,)}


@pytest.mark.parametrize("limit", [1, 17, 100])
def test_a_limit_keeps_the_pairs_that_differ_most(limit):
    suspect, reference = [_reading(1), _reading(2)], [_reading(3, visits=200)]
    with _run(suspect) as one, _run(reference) as two:
        found = _as_dict(sum_passes(one, two, limit))
    slow = _slow_sum(suspect, reference)

    def surprise(pair):
        mass, expected, total = slow[pair]
        return abs(mass - expected) / math.sqrt(expected / total + 0.01)

    best = sorted(slow, key=surprise, reverse=True)[:limit]
    _assert_equal(found, {pair: slow[pair] for pair in best})


def test_large_contexts_and_tokens_survive():
    """Three ids of 21 bits fill 63 bits; tokens are uint32."""
    context, token = np.array([(1 << 63) - 1]), np.array([2**32 - 1], dtype=np.uint32)
    with _run([Reading(context, token, np.array([0.25]), context, {})] * 2) as done:
        assert _as_dict(sum_passes(done, done)) == {
            (int(context[0]), int(token[0])): (0.5, 0.5, 2),
        }


def test_the_same_parts_give_the_same_bits():
    readings = [_reading(seed, pairs=4000, contexts=300) for seed in range(20)]
    with _run(readings) as done:
        found = {sum_passes(done, None).masses.tobytes() for _ in range(4)}
    assert len(found) == 1


def test_a_pass_does_not_differ_from_itself():
    readings = [_reading(seed, pairs=4000, contexts=300) for seed in range(20)]
    with _run(readings) as done:
        found = sum_passes(done, done)
    assert (found.masses == found.expected).all()


# ---- interruption, cache, corruption ----


class InterruptedReadError(Exception):
    pass


def test_an_interrupted_pass_goes_on_at_the_missing_part(tmp_path):
    readings = [_reading(seed) for seed in range(6)]
    read = []

    def break_at(number):
        def reader(place):
            if place == number:
                raise InterruptedReadError
            read.append(place)
            return readings[place]

        return reader

    for number, expected in ((2, [0, 1]), (5, [2, 3, 4]), (None, [5]), (None, [])):
        read.clear()
        run = run_pass(range(6), break_at(number), DESCRIPTION, tmp_path)
        if number is not None:
            with pytest.raises(InterruptedReadError), run:
                pytest.fail("an incomplete pass must not be handed out")
        else:
            with run as done:
                _assert_equal(_as_dict(sum_passes(done, done)), _slow_sum(readings, readings))
                assert done.tally == {"positions": 480.0, "kept": 3.0}
                assert done.description == DESCRIPTION
        assert read == expected


def test_a_pass_cut_off_while_a_part_is_written_reads_it_again(tmp_path):
    """A killed process leaves `part-N.partial`, never a part that looks whole."""
    readings = [_reading(seed) for seed in range(2)]
    with _run(readings, tmp_path) as done:
        folder = done.parts[0].parent
    done.parts[1].rename(done.parts[1].with_suffix(".partial"))
    (done.parts[1].with_suffix(".partial") / "masses.parquet").write_bytes(b"half")
    read = []
    with run_pass(readings, lambda r: read.append(1) or r, DESCRIPTION, tmp_path) as done:
        _assert_equal(_as_dict(sum_passes(done, None)), _slow_sum(readings, None))
    assert read == [1]
    assert not list(folder.glob("*.partial"))


def test_another_description_is_another_folder(tmp_path):
    first, second = [_reading(1)], [_reading(2)]
    other = {**DESCRIPTION, "model": {"weights": "abd"}}
    with _run(first, tmp_path) as one, _run(second, tmp_path, other) as two:
        assert one.parts[0].parent != two.parts[0].parent
        _assert_equal(_as_dict(sum_passes(one, None)), _slow_sum(first, None))
        _assert_equal(_as_dict(sum_passes(two, None)), _slow_sum(second, None))
        for done in (one, two):
            text = (done.parts[0].parent / "pass.json").read_text()
            assert json.loads(text) == done.description


def test_the_order_of_the_description_does_not_matter(tmp_path):
    turned = dict(reversed(DESCRIPTION.items()))
    with _run([_reading(1)], tmp_path):
        pass
    with run_pass([0], lambda _: pytest.fail("it was read before"), turned, tmp_path) as done:
        assert len(done.parts) == 1


def test_two_processes_cannot_work_on_one_pass(tmp_path):
    with _run([_reading(1)], tmp_path), pytest.raises(LockedError), _run([], tmp_path):
        pass


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def _empty_file(path):
    path.write_bytes(b"")


def _overwrite(path):
    content = bytearray(path.read_bytes())
    content[4:-300] = bytes(len(content) - 304)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["masses.parquet", "visits.parquet"])
@pytest.mark.parametrize("breaker", [_truncate, _empty_file, _overwrite, type(None)])
def test_a_corrupt_part_is_a_storage_error(tmp_path, name, breaker):
    readings = [_reading(seed) for seed in range(3)]
    with _run(readings, tmp_path) as done:
        path = done.parts[1] / name
    if breaker is type(None):
        path.unlink()
        if name == "masses.parquet":
            with _run(readings, tmp_path) as done:
                _assert_equal(_as_dict(sum_passes(done, None)), _slow_sum(readings, None))
            return
    else:
        breaker(path)
    with pytest.raises(StorageError) as raised, _run(readings, tmp_path) as done:
        sum_passes(done, None)
    assert len(str(raised.value).splitlines()) == 1


def test_the_message_of_a_corrupt_part_names_it(tmp_path):
    with _run([_reading(1)], tmp_path) as done:
        path = done.parts[0] / "visits.parquet"
    path.write_bytes(b"")
    with pytest.raises(StorageError) as raised, _run([_reading(1)], tmp_path) as done:
        sum_passes(done, None)
    assert str(path.parent.name) in str(raised.value)
    assert "Free some space" not in str(raised.value)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    readings = [_reading(1)]
    with _run(readings, tmp_path) as done:
        path = done.parts[0] / "masses.parquet"
    content = path.read_bytes()
    slow = _slow_sum(readings, None)
    for place in range(8, len(content) - 8, 97):
        flipped = bytearray(content)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        try:
            with _run(readings, tmp_path) as done:
                _assert_equal(_as_dict(sum_passes(done, None)), slow)
        except StorageError:
            continue


def test_an_unwritable_cache_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError), _run([_reading(1)], tmp_path / "file"):
        pass


def test_without_a_cache_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _run([_reading(1)]) as done:
        assert done.parts[0].is_dir()
        assert tmp_path in done.parts[0].parents
        sum_passes(done, done)
    assert list(tmp_path.iterdir()) == []

    def broken(_):
        raise InterruptedReadError

    with pytest.raises(InterruptedReadError), run_pass([1, 2], broken, DESCRIPTION, None):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError):
        sum_passes(Pass((tmp_path / "missing",), {}, {}), None)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_parts_done_also_those_of_the_cache(tmp_path):
    for _ in range(2):
        told = []
        with _run([_reading(1), _reading(2)], tmp_path, progress=told.append):
            assert told == [1, 2]


# ---- memory ----


class Chunk:
    pass


def test_earlier_chunks_and_readings_are_let_go():
    """At most two chunks and two readings live at a time, however many there are."""
    chunks, masses, most = weakref.WeakSet(), [], Counter()

    def generate():
        for _ in range(30):
            chunk = Chunk()
            chunks.add(chunk)
            yield chunk

    def read(chunk):
        most["chunks"] = max(most["chunks"], len(chunks))
        most["readings"] = max(most["readings"], sum(array() is not None for array in masses))
        reading = _reading(len(masses))
        masses.append(weakref.ref(reading.masses))
        return reading

    with run_pass(generate(), read, DESCRIPTION, None) as done:
        assert len(done.parts) == 30
    assert 1 <= most["chunks"] <= 2
    assert most["readings"] <= 1
