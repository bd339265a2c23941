"""Parquet columns that unpack without end are refused by their footer, before they are unpacked."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from provenance.errors import DataError
from provenance.served.parquet_log import ParquetFile
from provenance.storage.parquet import cut_batch
from provenance.storage.shapes.containers import ValueFile


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """One string of 80 MB in some kilobytes."""
    path = tmp_path_factory.mktemp("bomb") / "x.parquet"
    columns = {"response_id": ["r"], "marked": [True], "text": ["a" * 80_000_000]}
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < 100_000
    return path


def test_a_log_and_outputs_with_one_huge_string_are_refused(bomb):
    for read in (lambda: list(ParquetFile(bomb, 300, 10)), lambda: list(ValueFile(bomb))):
        with pytest.raises(DataError, match="expand") as caught:
            read()
        assert len(str(caught.value)) < 500


def test_a_batch_is_cut_by_its_longest_string():
    long = pa.array(["a" * (1 << 22)]).dictionary_encode().take(pa.array([0] * 40))
    batch = pa.record_batch({"a": long, "n": pa.array(range(40))})
    parts = list(cut_batch(batch))
    assert [part.num_rows for part in parts] == [16, 16, 8]
    assert pa.Table.from_batches(parts)["n"].to_pylist() == list(range(40))
    short = pa.record_batch({"a": ["x", None], "n": [1, 2]})
    assert [part.num_rows for part in cut_batch(short)] == [2]
