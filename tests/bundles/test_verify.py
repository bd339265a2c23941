"""A bundle as it is written verifies, step by step, and says what it could not do."""

import json
import shutil
import stat
import subprocess
from dataclasses import replace

import pytest

from provenance.evidence.bundle import Contents, write_bundle
from provenance.evidence.origins import check_manifest, check_signature
from provenance.evidence.signature import sign_bundle
from provenance.evidence.state import State, Trust
from provenance.evidence.steps import StepFailedError
from provenance.evidence.verify import verify_bundle


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
    assert {n for n, status in statuses.items() if status != "held"} <= {16}  # the report
    code, out, _ = run("verify", bundle)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(" 1 held")
    assert lines[-1].startswith("VERIFIED")
    assert "give the authority's root with --trust" in lines[4]


def test_what_is_left_out_is_said_and_not_claimed(run, lab, tmp_path):
    folder = tmp_path / "bundle"
    contents = Contents(pairs=False)
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
        folder, lab.examination, lab.world.keyring, Contents(disclosed=["global", "selector"])
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
    write_bundle(folder, lab.examination, lab.world.keyring, Contents(disclosed=["all"]))
    sign_bundle(folder, lab.signing_key)
    write_bundle(folder, lab.examination, lab.world.keyring, Contents(pairs=False))
    assert not list(folder.glob("pairs/*"))
    assert not (folder / "manifest.sig").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match=r"notes\.txt"):
        write_bundle(folder, lab.examination, lab.world.keyring, Contents())
    assert (folder / "manifest.json").exists()


def test_the_same_examination_gives_the_same_bytes(lab, tmp_path):
    for name in ("one", "two"):
        write_bundle(tmp_path / name, lab.examination, lab.world.keyring, Contents())
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == twin.read_bytes(), path


def test_confidential_files_are_private(bundle, lab):
    for path in [*lab.bundle.glob("pairs/*"), *lab.bundle.glob("disclosed/*"), lab.signing_key]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


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
    assert run("evidence", "new-signing-key", key)[0] == 74
    monkeypatch.setenv("PROVENANCE_SIGNING_KEY_CMD", f"cat {key}")
    assert run("evidence", "sign", bundle)[0] == 0
    assert run("verify", bundle, "--public-key", lab.public_key)[0] == 0
    (bundle / "verdict.json").write_text("{}")
    code, _, err = run("evidence", "sign", bundle)
    assert code == 65
    assert "verdict.json" in err
