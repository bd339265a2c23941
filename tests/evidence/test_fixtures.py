"""Old bundles stay verifiable: by every later release, and without any release at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "fixtures/evidence"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
SCRIPT = ROOT / "docs/verify_without_us.py"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Run code where numpy is all there is: no site-packages, no repository, no environment."""
    library = tmp_path_factory.mktemp("library")
    packages = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists():
            (library / name).symlink_to(packages / name)

    def call(code, *arguments):
        prelude = f"import sys; sys.path.insert(0, {str(library)!r})\n"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", prelude + code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=library,
        )

    return call


def _reproduce(stranger, bundle):
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    return stranger(code, bundle)


def test_there_is_a_fixture_and_it_is_small():
    assert "first" in NAMES
    for name in NAMES:
        size = sum(path.stat().st_size for path in (FOLDER / name).rglob("*") if path.is_file())
        assert size <= 300_000


@pytest.mark.parametrize("name", NAMES)
def test_this_release_verifies_an_old_bundle(run, name):
    signer, root = (FOLDER / f"{name}.{what}.pem" for what in ("signer", "authority"))
    arguments = ("verify", FOLDER / name, "--public-key", signer, "--trust", root, "--json")
    code, out, err = run(*arguments)
    assert code == 0, out + err
    statuses = {step["number"]: step["status"] for step in json.loads(out)["steps"]}
    assert {number for number, status in statuses.items() if status != "held"} <= {16, 18}


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_reproduces_an_old_bundle(stranger, name):
    absent = stranger("import provenance")
    assert absent.returncode == 1
    assert "No module named 'provenance'" in absent.stderr
    done = _reproduce(stranger, FOLDER / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "REPRODUCED"


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, {"evidence"}),
        ({"log10_p": -3.0}, {"no evidence", "inconclusive"}),
        ({"log10_p": -3.0, "twins": {"rejected": True}}, {"evidence"}),
        ({"reservations": [{"against": "evidence"}]}, {"inconclusive"}),
        ({"reservations": [{"against": "both"}]}, {"inconclusive"}),
        ({"reservations": [{"against": "no evidence"}]}, {"evidence"}),
        ({"log10_p": -3.0, "reservations": [{"against": "no evidence"}]}, {"inconclusive"}),
        ({"passed": False}, {"inconclusive"}),
        ({"schema_version": 1}, {"evidence"}),
        ({"schema_version": 1, "passed": False}, {"invalid"}),
        ({"schema_version": 1, "log10_p": -3.0, "twins": {"rejected": True}}, {"no evidence"}),
    ],
)
def test_a_stranger_allows_the_conclusions_of_either_form(change, allowed):
    import runpy

    verdict = {"schema_version": 2, "alpha": 1e-4, "twins": None, "reservations": []} | change
    if verdict["schema_version"] == 1:
        del verdict["reservations"]
    log10_p, passed = verdict.pop("log10_p", -9.0), verdict.pop("passed", True)
    found = set(runpy.run_path(str(SCRIPT))["allowed"](verdict, log10_p, passed))
    said = {
        1: {"evidence", "no evidence", "invalid"},
        2: {"evidence", "no evidence", "inconclusive"},
    }
    assert found & said[verdict["schema_version"]] == allowed


def _edit_json(name, change):
    def edit(bundle):
        document = json.loads((bundle / name).read_text())
        change(document)
        (bundle / name).write_text(json.dumps(document))

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _edit_json("verdict.json", lambda d: d.update(conclusion="no evidence")),
        _edit_json("verdict.json", lambda d: d["hypotheses"][0].update(log10_p=-17.0)),
        _edit_json("verdict.json", lambda d: d["hypotheses"][3].update(log10_adjusted=-5.0)),
        _edit_json("verdict.json", lambda d: d["controls"][0].update(passed=False)),
        _edit_json("keyring.json", lambda d: d["slots"][1]["values"][0].update(salt="00" * 32)),
        _edit_json("disclosed/001.json", lambda d: d.update(key="00" * 32)),
        lambda b: shutil.copy(b / "pairs/001.csv.gz", b / "pairs/000.csv.gz"),
        lambda b: (b / "plan.json").write_text("{}"),
    ],
)
def test_a_stranger_finds_what_was_changed_and_sealed_again(stranger, lab, tmp_path, edit):
    from provenance.evidence.manifest import write_manifest
    from provenance.evidence.signature import sign_bundle

    bundle = shutil.copytree(FOLDER / "first", tmp_path / "bundle")
    edit(bundle)
    write_manifest(bundle, "2099-01-01T00:00:00Z", pairs=True)
    sign_bundle(bundle, lab.signing_key)
    done = _reproduce(stranger, bundle)
    assert done.returncode == 1
    assert "REPRODUCED" not in done.stdout
    assert done.stderr.startswith("NOT REPRODUCED: ")


def _take_keys(bundle, names):
    for path in (bundle / "disclosed").iterdir():
        shown = json.loads(path.read_text())
        if f"{shown['slot']} {shown['value']}".strip() in names:
            path.unlink()


def _take_pairs(bundle):
    shutil.rmtree(bundle / "pairs")


LACKS = [
    (lambda b: _take_keys(b, {"week 2026-W17"}), "its key is not disclosed", 1),
    (lambda b: shutil.rmtree(b / "disclosed"), "its key is not disclosed", 14),
    (_take_pairs, "pairs are not in the bundle", 14),
]


@pytest.mark.parametrize(("take", "why", "many"), LACKS, ids=["key", "keys", "pairs"])
def test_what_is_not_in_the_bundle_is_not_possible_and_no_contradiction(
    stranger, lab, tmp_path, take, why, many
):
    from provenance.evidence.manifest import write_manifest
    from provenance.evidence.signature import sign_bundle

    bundle = shutil.copytree(FOLDER / "first", tmp_path / "bundle")
    take(bundle)
    write_manifest(bundle, "2099-01-01T00:00:00Z", pairs=(bundle / "pairs").exists())
    sign_bundle(bundle, lab.signing_key)
    done = _reproduce(stranger, bundle)
    assert (done.returncode, done.stderr) == (3, "")
    lines = done.stdout.splitlines()
    assert sum(line.startswith("--  not possible: ") and why in line for line in lines) == many
    assert lines[-1].startswith(f"NOT POSSIBLE: {many} of the steps above.")
    # the p-value of every key is recomputed all the same, from the tables as they are stated
    assert sum(": log10 p = " in line for line in lines if line.startswith("ok")) == 14
    _edit_json("verdict.json", lambda d: d["hypotheses"][1].update(log10_p=-17.0))(bundle)
    write_manifest(bundle, "2099-01-01T00:00:00Z", pairs=(bundle / "pairs").exists())
    sign_bundle(bundle, lab.signing_key)
    assert _reproduce(stranger, bundle).returncode == 1


def test_an_unsigned_bundle_and_wrong_calls_have_codes_of_their_own(stranger, tmp_path):
    bundle = shutil.copytree(FOLDER / "first", tmp_path / "bundle")
    (bundle / "manifest.sig").unlink()
    assert _reproduce(stranger, bundle).returncode == 1  # a key without its signature
    (bundle / "manifest.pub.pem").unlink()
    done = _reproduce(stranger, bundle)
    assert done.returncode == 3
    assert "not possible: who vouches for these files, since nobody signed them" in done.stdout
    assert _reproduce(stranger, tmp_path).returncode == 2
    (bundle / "verdict.json").unlink()
    done = _reproduce(stranger, bundle)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "verdict.json is there, unchanged" in done.stderr


def test_a_stranger_finds_a_flipped_byte_and_a_broken_signature(stranger, tmp_path):
    bundle = shutil.copytree(FOLDER / "first", tmp_path / "bundle")
    signature = bytearray((bundle / "manifest.sig").read_bytes())
    signature[5] ^= 1
    (bundle / "manifest.sig").write_bytes(signature)
    assert "manifest.pub.pem signed" in _reproduce(stranger, bundle).stderr
    (bundle / "keyring.json").write_bytes((bundle / "keyring.json").read_bytes() + b" ")
    assert "keyring.json is there, unchanged" in _reproduce(stranger, bundle).stderr


def test_the_script_is_short_and_imports_little():
    text = SCRIPT.read_text()
    assert text.count("\n") <= 220
    modules = {line.split()[1].split(".")[0] for line in text.splitlines()
               if line.startswith(("import ", "from "))}  # fmt: skip
    assert modules - set(sys.stdlib_module_names) == {"numpy"}


def test_the_scripts_coins_are_those_of_rfc_8439_and_of_openssl():
    import runpy

    script = runpy.run_path(str(SCRIPT))
    key = bytes(range(32))
    # RFC 8439, section 2.3.2: the serialised block of this key and nonce at counter 1
    nonce = np.frombuffer(bytes.fromhex("000000090000004a00000000"), dtype="<u4").astype(np.uint32)
    block = "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    block += "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    tokens = np.arange(16, 32, dtype=np.uint32)
    found = script["coins"](key, np.tile(nonce, (16, 1)), tokens)
    assert found.astype("<u4").tobytes().hex() == block
    for token in (16, 23, 31):
        assert script["openssl_coin"](key, nonce, token) == found[token - 16]


def test_the_scripts_tail_agrees_with_ours_on_random_tables():
    """Two computations that share no code, on tables of either sign, biased and not."""
    import runpy

    from provenance.marks.own import make_scheme
    from provenance.stats.tables import ClassTable
    from provenance.stats.tails import upper_tail

    script = runpy.run_path(str(SCRIPT))
    rng = np.random.default_rng(0)
    schemes = [
        ("gumbel", {}),
        ("green", {"gamma": 0.25, "delta": 2.0}),
        ("tournament", {"layers": 4}),
    ]
    for trial in range(12):
        name, parameters = schemes[trial % 3]
        size = int(rng.integers(2, 150))
        weights = rng.integers(-25 if trial % 2 else 1, 64, size)
        weights[weights == 0] = 1
        words = rng.integers(0, 2**32, size, dtype=np.uint32)
        if trial % 4 > 1:
            chosen = (rng.random(size) < 0.3) & (weights > 0)
            words[chosen] = words[chosen] >> 4 if name == "green" else words[chosen] | 0xF0000000
        scores, law = script["score"]({"name": name, "parameters": parameters}, words)
        made = make_scheme(name, parameters)
        assert (scores == made.score(words)).all()
        assert tuple(law) == made.null_law.masses
        ours = upper_tail(ClassTable.from_scores(weights, scores, made.null_law)).log10_p
        theirs = script["log10_tail"](weights, law, int(weights @ scores))
        assert theirs == pytest.approx(ours, abs=1e-8)
