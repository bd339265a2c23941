"""A bundle as it is written verifies, step by step, and says what it could not do."""

import base64
import gzip
import json
import shutil
import stat
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.check.pairs import read_pairs, write_pairs
from provenance.check.score import WeightedPairs
from provenance.errors import StorageError
from provenance.evidence.bundle import BundleParts, make_report, write_bundle
from provenance.evidence.manifest import write_manifest
from provenance.evidence.signature import sign_bundle
from provenance.evidence.steps import StepFailedError
from provenance.evidence.verify.custody import check_manifest, check_signature
from provenance.evidence.verify.run import verify_bundle
from provenance.evidence.verify.state import State, Trust


def _statuses(run, *arguments):
    code, out, _ = run("verify", *arguments, "--json")
    found = json.loads(out)
    assert found["passed"] == (code == 0)
    return code, {step["number"]: step["status"] for step in found["steps"]}


def test_everything_holds_with_the_signers_key_and_the_authoritys_root(run, lab, bundle):
    code, statuses = _statuses(
        run, bundle, "--public-key", lab.public_key, "--trust", lab.authority.roots
    )
    assert code == 0
    assert {n for n, status in statuses.items() if status != "held"} <= {
        16,
        18,
    }  # the report; no case
    code, out, _ = run("verify", bundle)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(" 1 held")
    assert lines[-1].startswith("VERIFIED")
    assert "give the authority's root with --trust" in lines[4]


def test_what_is_left_out_is_said_and_not_claimed(run, lab, tmp_path):
    folder = tmp_path / "bundle"
    contents = BundleParts(pairs=False)
    examination = replace(lab.examination, verdict=replace(lab.examination.verdict, plan=None))
    write_bundle(folder, examination, lab.world.keyring, contents)
    assert run("verify", folder)[0] == 1  # nobody signed it
    code, statuses = _statuses(run, folder, "--unsigned")
    assert code == 0
    held = {number for number, status in statuses.items() if status == "held"}
    assert held <= {1, 3, 7, 13, 15, 16, 17}
    assert {1, 3, 7, 13, 15, 17} <= held
    document = json.loads((folder / "verdict.json").read_text())
    assert document["exploratory"] is True
    assert document["plan"] is None


def test_some_keys_may_be_disclosed_and_others_not(run, lab, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(
        folder, lab.examination, lab.world.keyring, BundleParts(disclosed=["global", "selector"])
    )
    assert (
        run("verify", folder, "--unsigned")[0] == 1
    )  # the verdict states a plan: it must be there
    shown = [json.loads(path.read_text()) for path in (folder / "disclosed").iterdir()]
    assert sorted(one["slot"] for one in shown) == ["global", "selector"]
    text = "".join(path.read_text() for path in folder.glob("*.json"))
    for pair in lab.world.keyring.public.commitments:
        if pair[0] not in ("global", "selector"):
            assert lab.world.keyring.key(*pair).reveal().hex() not in text


def test_a_bundle_replaces_an_earlier_one_and_nothing_else(lab, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(folder, lab.examination, lab.world.keyring, BundleParts(disclosed=["all"]))
    parts = BundleParts(pairs=False)
    with pytest.raises(StorageError, match="--force"):
        write_bundle(folder, lab.examination, lab.world.keyring, parts)
    write_bundle(folder, lab.examination, lab.world.keyring, parts, force=True)
    assert not list(folder.glob("pairs/*"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        write_bundle(folder, lab.examination, lab.world.keyring, parts, force=True)
    assert (folder / "manifest.json").exists()
    (folder / "notes.txt").unlink()
    sign_bundle(folder, lab.signing_key)
    with pytest.raises(StorageError, match="signed"):
        write_bundle(folder, lab.examination, lab.world.keyring, parts, force=True)


def test_the_same_examination_gives_the_same_bytes(lab, tmp_path):
    for name in ("one", "two"):
        write_bundle(tmp_path / name, lab.examination, lab.world.keyring, BundleParts())
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "report.html"):  # dates
            twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == twin.read_bytes(), path


def test_confidential_files_are_private(bundle, lab):
    for path in [*lab.bundle.glob("pairs/*"), *lab.bundle.glob("disclosed/*"), lab.signing_key]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_scheme_that_is_not_known_is_not_claimed(run, lab, bundle):
    """Tails and sums hold for any scheme; scores and controls are left open, and said to be."""
    for name in ("plan.json", "plan.tsq", "plan.tsr"):
        (bundle / name).unlink()
    shutil.rmtree(bundle / "disclosed")
    for name, change in (
        ("verdict.json", {"plan": None, "exploratory": True, "caveat": "of theirs"}),
        ("keyring.json", {}),
    ):
        document = json.loads((bundle / name).read_text()) | change
        document["scheme"] = {"name": "theirs", "parameters": {}}
        (bundle / name).write_text(json.dumps(document))
    (bundle / "report.html").write_bytes(make_report(bundle, None, "2099-01-01T00:00:00Z"))
    write_manifest(bundle, "2099-01-01T00:00:00Z", pairs=True)
    sign_bundle(bundle, lab.signing_key)
    code, statuses = _statuses(run, bundle)
    assert code == 0
    held = {number for number, status in statuses.items() if status == "held"}
    assert held - {16} == {1, 2, 3, 7, 9, 12, 13, 15, 17}


@given(st.integers(1, 3), st.integers(0, 40), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_pairs_survive_their_files_in_one_form(width, size, seed, scored):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, 30, (size, width + 1)), axis=0).astype(np.uint32)
    weights = rng.integers(1, 2**40, len(rows)) * rng.choice([-1, 1], len(rows))
    scores = rng.integers(0, 89, len(rows)) if scored else None
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):  # the order of the input does not matter
            order = rng.permutation(len(rows))
            pairs = WeightedPairs(rows[order, :width], rows[order, width], weights[order])
            write_pairs(Path(folder), name, pairs, scores[order] if scored else None)
        assert sorted(path.name for path in Path(folder).iterdir()) == ["one.csv.gz", "two.csv.gz"]
        one, two = (Path(folder, f"{name}.csv.gz").read_bytes() for name in ("one", "two"))
        assert one == two
        found, read = read_pairs(Path(folder), "one", width, scored=scored)
    assert (found.contexts == rows[:, :width]).all()
    assert (found.tokens == rows[:, width]).all()
    assert (found.weights == weights).all()
    assert read is None if scores is None else (read == scores).all()


def test_openssl_verifies_signature_and_timestamp(lab):
    signature = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", lab.public_key, "-rawin"]
    files = ["-in", lab.bundle / "manifest.json", "-sigfile", lab.bundle / "manifest.sig"]
    subprocess.run([*signature, *files], check=True, capture_output=True)
    stamp = ["openssl", "ts", "-verify", "-data", lab.bundle / "plan.json"]
    files = ["-in", lab.bundle / "plan.tsr", "-CAfile", lab.authority.roots]
    subprocess.run([*stamp, *files], check=True, capture_output=True)


def _check_origin(bundle):
    check_manifest(State(bundle, Trust()))
    check_signature(State(bundle, Trust()))


def test_one_flipped_bit_anywhere_is_found(bundle):
    """A few places in every file, manifest and signature among them: more than 200 in all."""
    places = 0
    for path in sorted(bundle.rglob("*")):
        if not path.is_file() or path.name == ".lock":
            continue
        content = path.read_bytes()
        for at in {len(content) * part // 6 for part in range(6)} | {len(content) - 1}:
            broken = bytearray(content)
            broken[at] ^= 1 << (at % 8)
            path.write_bytes(bytes(broken))
            with pytest.raises(StepFailedError):
                _check_origin(bundle)
            places += 1
        path.write_bytes(content)
    assert places > 200
    assert verify_bundle(bundle, Trust()).passed


def test_a_signing_key_is_as_private_as_the_master_key(run, lab, bundle, tmp_path, monkeypatch):
    key = shutil.copy(lab.signing_key, tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    assert run("evidence", "sign", bundle, "--signing-key", key)[0] == 77
    (tmp_path / "key").chmod(0o600)
    assert run("evidence", "sign", bundle, "--signing-key", key)[0] == 0
    assert run("evidence", "sign", bundle)[0] == 2
    assert run("evidence", "new-signing-key", key)[0] == 0  # the public half was missing
    assert run("evidence", "new-signing-key", key)[0] == 74
    monkeypatch.setenv("PROVENANCE_SIGNING_KEY_CMD", f"cat {key}")
    assert run("evidence", "sign", bundle)[0] == 0
    assert run("verify", bundle, "--public-key", lab.public_key)[0] == 0
    (bundle / "verdict.json").write_text("{}")
    code, _, err = run("evidence", "sign", bundle)
    assert code == 65
    assert "verdict.json" in err


def test_no_secret_but_the_disclosed_keys_reaches_a_bundle(run, lab, tmp_path):
    """Canary: raw, hex and base64 forms of master, signing key and undisclosed keys."""
    folder = tmp_path / "bundle"
    contents = BundleParts(disclosed=["global"])
    verdict = replace(lab.examination.verdict, plan=None)
    write_bundle(folder, replace(lab.examination, verdict=verdict), lab.world.keyring, contents)
    _, one, two = run("evidence", "sign", folder, "--signing-key", lab.signing_key)
    code, three, four = run("verify", folder, "--json")
    assert code == 0
    written = [(one + two + three + four).encode()]
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            written += [content, gzip.decompress(content) if path.suffix == ".gz" else b""]
    secrets = [lab.signing_key.read_bytes(), (lab.world.folder / "keys/master.key").read_bytes()]
    keyring = lab.world.keyring
    secrets += [keyring.key(*pair).reveal() for pair in keyring.public.commitments]
    shown = keyring.key("global", "").reveal()
    for secret in secrets:
        forms = (secret, secret.hex().encode(), base64.b64encode(secret))
        leaked = any(form in content for content in written for form in forms)
        assert leaked == (secret == shown)  # the planted leak is found
