"""A file that changes between hashing and reading, or while it is read, is noticed."""

import os
from contextlib import nullcontext

import pytest

from provenance.errors import DataError
from provenance.served.build import build_index
from provenance.served.group_build import build_group
from provenance.served.writer import LogWriter
from provenance.storage.lines import LineReader
from provenance.storage.shapes.containers import ValueFile

FORMS = ("jsonl", "parquet")


def _write(path, first, count=12):
    with LogWriter(path) as log:
        for number in range(count):
            ids = [(first + number * 7 + i) % 300 for i in range(30)]
            log.write(
                *(f"r{number}",), labels={"account": f"a{number % 3}"}, marked=True,
                token_ids=ids, prompt_token_ids=[], finish="length",
            )  # fmt: skip
    return path


class _Exchanging:
    """Exchanges a file for another one of the same size after its hash, or its first line."""

    def __init__(self, path, other):
        self.path, self.other = path, other

    def __call__(self, path, *more):
        from provenance.storage.files import sha256_of_file

        found = sha256_of_file(path)
        if path == self.path:
            os.replace(self.other, self.path)  # noqa: PTH105
        return found


@pytest.fixture
def exchange(tmp_path, monkeypatch):
    """A log that somebody exchanges for another one when it was hashed."""

    def make(form):
        path = _write(tmp_path / f"served.{form}", 0)
        other = _write(tmp_path / f"other.{form}", 1)
        if form == "parquet":
            double = _Exchanging(path, other)
            monkeypatch.setattr("provenance.served.parquet_log.sha256_of_file", double)
        else:
            lines = LineReader.__iter__

            def changing(reader):
                for number, line in lines(reader):
                    if number == 5 and other.exists():
                        os.replace(other, path)  # noqa: PTH105
                    yield number, line

            monkeypatch.setattr(LineReader, "__iter__", changing)
        return path

    return make


@pytest.mark.parametrize("form", FORMS)
def test_a_log_that_changes_makes_no_index(exchange, keyring, tmp_path, form):
    path = exchange(form)
    with pytest.raises(DataError, match="has changed"):
        build_index([path], tmp_path / "index", keyring, threads=1)
    assert not list((tmp_path / "index").glob("[!.]*"))


def test_a_log_that_changes_makes_no_group(exchange, keyring, tmp_path):
    path = exchange("parquet")
    with pytest.raises(DataError, match="has changed"):
        build_group([path], tmp_path / "group", keyring, ["a1"], "account", threads=1)
    assert not list((tmp_path / "group").glob("[!.]*"))


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_that_does_not_look_is_found_out(exchange, keyring, tmp_path, monkeypatch, form):
    """The double: without the look the manifest names a hash of what was not read."""
    for place in ("served.parquet_log", "storage.lines"):
        monkeypatch.setattr(f"provenance.{place}.unchanging", lambda paths: nullcontext())
    path = exchange(form)
    build_index([path], tmp_path / "index", keyring, threads=1)
    assert (tmp_path / "index/manifest.json").exists()


def test_outputs_in_parquet_that_change_are_noticed(tmp_path):
    path, other = (_write(tmp_path / f"{name}.parquet", i) for i, name in enumerate("ab"))
    rows = iter(ValueFile(path))
    next(rows)
    os.replace(other, path)  # noqa: PTH105
    with pytest.raises(DataError, match="has changed"):
        list(rows)


def test_lines_that_grow_while_they_are_read_are_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 3)
    lines = iter(LineReader(path))
    next(lines)
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match="has changed"):
        list(lines)
