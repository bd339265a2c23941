"""An index is opened without reading it, and no byte of it is used that was not verified."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from provenance.commands.app import app
from provenance.errors import DataError, StorageError
from provenance.served import seal, table
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.served.index_manifest import IndexManifest, hash_document
from provenance.served.seal import Seal, SealedFile, SealedGroup, SealedPiece


@pytest.fixture(scope="module")
def built(tmp_path_factory, keyring, make_log, write_log):
    """An index of row groups of 20 rows."""
    folder = tmp_path_factory.mktemp("sealed")
    log = write_log(folder / "log.jsonl", make_log(3, 400))
    before, table._GROUP_ROWS = table._GROUP_ROWS, 20
    try:
        build_index([log], folder / "index", keyring, control_share=1.0)
    finally:
        table._GROUP_ROWS = before
    return folder / "index"


@pytest.fixture
def hashed(monkeypatch):
    """Numbers of the pieces that were hashed."""
    numbers = []
    real = seal.SealedFile._piece

    def piece(self, number):
        if number not in self._kept:
            numbers.append(number)
        return real(self, number)

    monkeypatch.setattr(seal.SealedFile, "_piece", piece)
    return numbers


def _look_up_everything(index):
    contexts = np.arange(9, dtype=np.int64) << 21
    names = np.unique(np.concatenate([contexts + last for last in range(9)]))
    return [index.lookup(slot, names) for slot in range(4)]


def _open_and_use(folder, public):
    with Index.open(folder, public) as index:
        _look_up_everything(index)


def test_every_byte_belongs_to_one_piece(built):
    manifest = IndexManifest.load(built)
    path = built / manifest.table
    starts = [piece.start for piece in (*manifest.seal.groups, manifest.seal.footer)]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert manifest.seal.size == path.stat().st_size
    assert len(manifest.seal.groups) > 8


def test_answers_are_those_of_an_index_that_was_read_whole(built, keyring):
    with Index.open(built, keyring.public) as lazy, Index.open(built, None, "all") as whole:
        for one, other in zip(_look_up_everything(lazy), _look_up_everything(whole), strict=True):
            for name in ("query", "value", "responses"):
                assert getattr(one, name).tolist() == getattr(other, name).tolist()
        rng = np.random.default_rng(0)
        mixed = rng.integers(0, 9, 3000) * (1 << 21) + rng.integers(0, 9, 3000)
        one, other = lazy.lookup(1, mixed), whole.lookup(1, mixed)
        assert one.query.tolist() == other.query.tolist()
        again = lazy.lookup(1, np.sort(mixed))
        assert np.sort(again.responses).tolist() == np.sort(one.responses).tolist()


def test_only_what_is_used_is_read(built, keyring, hashed):
    groups = IndexManifest.load(built).seal.groups
    with Index.open(built, keyring.public) as index:
        opened = len(hashed)
        assert hashed == [len(groups)]  # the footer
        wanted = next(n for n, group in enumerate(groups) if group.slot == 1)
        found = index.lookup(1, np.array([groups[wanted].first]))
        assert found.responses.size
    assert set(hashed[opened:]) == {wanted}


@pytest.mark.parametrize("place", ["group", "footer", "size"])
def test_a_flipped_byte_is_found_when_it_is_used(built, keyring, tmp_path, place):
    manifest = IndexManifest.load(built)
    groups = manifest.seal.groups
    number = max(n for n, group in enumerate(groups) if group.slot == 1)
    start, end = groups[number].start, groups[number + 1].start
    places = {
        "group": range(start, end, 7),
        "footer": range(manifest.seal.footer.start, manifest.seal.size, 97),
        "size": [-1],
    }[place]
    content = (built / manifest.table).read_bytes()
    shutil.copytree(built, tmp_path / "copy")
    for byte in places:
        changed = bytearray(content)
        if place == "size":
            changed.append(0)
        else:
            changed[byte] ^= 4
        (tmp_path / "copy" / manifest.table).write_bytes(changed)
        if place == "group":
            other = next(group for group in groups if group.slot == 2)
            with Index.open(tmp_path / "copy", keyring.public) as index:
                assert index.lookup(2, np.array([other.first])).responses.size
        with pytest.raises(DataError, match=manifest.table) as found:
            _open_and_use(tmp_path / "copy", keyring.public)
        assert found.value.exit_code == 65
        assert "\n" not in str(found.value)


def test_info_verifies_on_demand(built, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    manifest = IndexManifest.load(built)
    path = tmp_path / "copy" / manifest.table
    content = bytearray(path.read_bytes())
    content[manifest.seal.groups[3].start + 9] ^= 1
    path.write_bytes(content)
    run = CliRunner().invoke
    assert run(app, ["index", "info", str(tmp_path / "copy")]).exit_code == 0
    assert run(app, ["index", "info", "--verify", str(built)]).exit_code == 0
    broken = run(app, ["index", "info", "--verify", str(tmp_path / "copy")])
    assert isinstance(broken.exception, DataError) or broken.exit_code == 65


def test_a_seal_of_other_pieces_is_refused(built, keyring, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    manifest = IndexManifest.load(built)
    groups = manifest.seal.groups
    swapped = (*groups[1:], groups[0])
    moved = replace(groups[0], last=groups[0].last + 1)
    with pytest.raises(ValueError, match="one after another"):
        replace(manifest.seal, groups=swapped)
    for change in (groups[:-1], (moved, *groups[1:])):
        forged = replace(manifest, seal=replace(manifest.seal, groups=change))
        forged.write(tmp_path / "copy")
        with pytest.raises(DataError):
            Index.open(tmp_path / "copy", keyring.public, "all")


def test_an_index_without_a_seal_is_read_whole(built, keyring, tmp_path, hashed):
    shutil.copytree(built, tmp_path / "copy")
    manifest = replace(IndexManifest.load(built), seal=None)
    manifest.write(tmp_path / "copy")
    with Index.open(tmp_path / "copy", keyring.public) as index:
        assert _look_up_everything(index)[1].responses.size
    assert not hashed
    (tmp_path / "copy" / manifest.table).unlink()
    (tmp_path / "copy" / manifest.table).symlink_to(built / manifest.table)
    with pytest.raises(DataError, match="link"):
        Index.open(tmp_path / "copy", keyring.public)
    IndexManifest.load(built).write(tmp_path / "copy")
    with pytest.raises(DataError, match="link"):
        Index.open(tmp_path / "copy", keyring.public)
    (tmp_path / "copy" / manifest.table).unlink()
    with pytest.raises(StorageError, match=manifest.table):
        Index.open(tmp_path / "copy", keyring.public)


@pytest.mark.parametrize("version", [1, 2])
def test_older_manifests_hold_all_control_contexts_and_no_seal(built, version):
    document = IndexManifest.load(built).to_json()
    document["version"] = version
    for name in ("control_words", "seal"):
        del document["index"][name]
    document["sha256"] = hash_document(document)
    older = IndexManifest.from_json(document)
    assert older.control_words == 1 << 32
    assert older.seal is None
    document["version"] = 3
    document["sha256"] = hash_document(document)
    with pytest.raises(ValueError, match="missing fields control_words, seal"):
        IndexManifest.from_json(document)


@pytest.mark.parametrize(
    "starts", [[0, 40, 40, 90], [0, 50, 30, 90], [5, 20, 40, 90], [0, 9, 20, 8]]
)
def test_a_seal_has_its_pieces_one_after_another(starts):
    *groups, footer, size = starts
    with pytest.raises(ValueError, match="one after another"):
        Seal(
            tuple(SealedGroup(start, "0" * 64, 0, 0, 0) for start in groups),
            SealedPiece(footer, "0" * 64),
            size,
        )


def test_a_pipe_in_the_place_of_a_table_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "windows.parquet")
    seal = Seal((SealedGroup(0, "0" * 64, 0, 0, 0),), SealedPiece(4, "0" * 64), 9)
    with pytest.raises(StorageError, match="pipe or a device"):
        SealedFile(tmp_path / "windows.parquet", seal)
