"""Evidence is not lost by being written again, and what a kill left is taken over and cleaned."""

import gzip
import shutil
from itertools import islice
from pathlib import Path

import pytest

import provenance as pv
from provenance.evidence.manifest import PUBLIC_KEY_FILE, SIGNATURE_FILE
from provenance.storage.files import name_of_leftover, write_atomically

FEW = ("--placebo-keys", "100")
"""What a control needs does not matter here."""
DONE = (0, 3)
"""Checked: whether some outputs are enough for an answer does not matter either."""
FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(FIXTURES / "keys", folder / "keys")
    (folder / "keys/master.key").chmod(0o600)
    pv.build_index(FIXTURES / "served.parquet", folder / "index", folder / "keys")
    with gzip.open(FIXTURES / "suspects/base.jsonl.gz", "rb") as file:
        (folder / "few.jsonl").write_bytes(b"".join(islice(file, 100)))
    return folder


@pytest.fixture(scope="module")
def made(world):
    """A bundle, to be copied: it takes seconds."""
    with pv.open_case(world / "keys", world / "index") as case:
        verdict = case.check(world / "few.jsonl", placebo_keys=100)
        verdict.save(world / "bundle")
    return world / "bundle"


@pytest.fixture
def check(run, world, tmp_path):
    def call(*more):
        asked = (world / "few.jsonl", "--keys", world / "keys")
        return run(
            "check", *asked, "--index", world / "index", "-o", tmp_path / "bundle", *FEW, *more
        )

    return call


def _content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_is_replaced_when_it_is_asked_for_and_a_signed_one_never(
    run, check, made, tmp_path
):
    bundle, key = tmp_path / "bundle", tmp_path / "signer.key"
    shutil.copytree(made, bundle)
    kept = _content(bundle)
    code, _, err = check()
    assert code == 74
    assert "--force" in err
    assert _content(bundle) == kept
    assert check("--force")[0] in DONE
    assert run("evidence", "new-signing-key", key)[0] == 0
    assert run("evidence", "sign", bundle, "--signing-key", key)[0] == 0
    kept = _content(bundle)
    for more in ((), ("--force",)):
        code, _, err = check(*more)
        assert code == 74
        assert "signed" in err
        assert _content(bundle) == kept


def test_an_index_is_replaced_when_it_is_asked_for(run, world, tmp_path):
    shutil.copytree(world / "index", tmp_path / "index")
    asked = ("index", "build", FIXTURES / "served.parquet", "--keys", world / "keys")
    kept = _content(tmp_path / "index")
    code, _, err = run(*asked, "-o", tmp_path / "index")
    assert code == 74
    assert "--force" in err
    assert _content(tmp_path / "index") == kept
    assert run(*asked, "-o", tmp_path / "index", "--force")[0] == 0


def test_what_a_killed_check_left_is_taken_over(check, tmp_path):
    left = [".verdict.json.k3x_9a2b", "pairs/.000.parquet.abcdefgh", "verdict.json"]
    for name in left:
        (tmp_path / "bundle" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / name).write_text("half")
    assert check()[0] in DONE
    assert not any((tmp_path / "bundle" / name).exists() for name in left[:2])


def test_a_file_of_somebody_elses_is_no_leftover(check, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/.notes.txt.abcdefgh").write_text("mine")
    code, _, err = check()
    assert code == 74
    assert "notes" in err


def test_what_a_killed_signing_left_is_accepted_and_cleaned(run, made, tmp_path):
    bundle, key = tmp_path / "bundle", tmp_path / "signer.key"
    shutil.copytree(made, bundle)
    assert run("evidence", "new-signing-key", key)[0] == 0
    before = run("verify", bundle)[:2]
    left = [bundle / f".{name}.abcdefgh" for name in (SIGNATURE_FILE, PUBLIC_KEY_FILE)]
    for path in left:
        path.write_text("half")
    assert run("verify", bundle)[:2] == before
    assert run("evidence", "sign", bundle, "--signing-key", key)[0] == 0
    assert not any(path.exists() for path in left)
    (bundle / ".verdict.json.abcdefgh").write_text("of a file that the manifest lists")
    assert "must be listed in the manifest" in str(run("verify", bundle))


def test_a_keyring_whose_making_was_killed_is_made_with_the_secret_that_is_there(run, tmp_path):
    asked = ("keys", "new", tmp_path / "ring", "--tokenizer", FIXTURES / "keys/tokenizer.json")
    (tmp_path / "ring").mkdir()
    write_atomically(tmp_path / "ring/master.key", bytes(range(32)), mode=0o600)
    assert run(*asked)[0] == 0
    assert (tmp_path / "ring/master.key").read_bytes() == bytes(range(32))
    assert pv.open_keyring(tmp_path / "ring").public.commitments
    assert run(*asked)[0] == 74  # a whole one is never replaced


def test_a_signing_key_whose_making_was_killed_is_completed(run, tmp_path):
    key = tmp_path / "signer.key"
    assert run("evidence", "new-signing-key", key)[0] == 0
    public = key.with_name("signer.key.pub.pem")
    whole, seed = public.read_bytes(), key.read_bytes()
    public.unlink()
    assert run("evidence", "new-signing-key", key)[0] == 0
    assert (public.read_bytes(), key.read_bytes()) == (whole, seed)
    code, _, err = run("evidence", "new-signing-key", key)
    assert code == 74
    assert "must not exist yet" in err


def test_leftovers_have_the_names_that_a_killed_write_gives(tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("provenance.storage.files.os.fsync", kill)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "verdict.json", b"{}")
    (left,) = tmp_path.iterdir()
    assert name_of_leftover(left.name) == "verdict.json"
