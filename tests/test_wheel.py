"""What is installed from a wheel is the whole product: nothing is left behind in the clone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built from what git holds and laid out as an installer does; its site folder."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    ).stdout
    names = [name for name in os.fsdecode(listed).split("\0") if name]
    if not names:
        pytest.skip("not a clone")
    source = folder / "source"
    for name in names:
        if name.startswith(("provenance/", "fixtures/")) or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                target.write_bytes((ROOT / name).read_bytes())
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--quiet",
            "--no-index",
            "--disable-pip-version-check",
            "-w",
            str(folder),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "setuptools" in made.stderr and "No module" in made.stderr:
        pytest.skip("no setuptools here to build with")
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    site = folder / "prefix" / "lib"
    (folder / "prefix").mkdir()
    (folder / "unpacked").rename(site)
    (data,) = site.glob("*.data")
    (data / "data" / "share").rename(folder / "prefix" / "share")
    return site


def test_every_file_of_the_package_is_in_the_wheel(installed):
    kinds = (".py", ".json", ".html", ".css", ".typed", ".j2", ".jinja")
    own = {
        path.relative_to(ROOT)
        for path in (ROOT / "provenance").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in kinds
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    own = {path for path in own if str(path) in tracked.splitlines()}
    assert own
    assert not [path for path in sorted(own) if not (installed / path).exists()]


def test_the_demo_finds_its_data_beside_an_installed_package(installed, tmp_path):
    """From another folder, without the clone: everything that the catalogue names is there."""
    code = (
        "import json, sys, sysconfig\n"
        f"sysconfig.get_path = lambda *_: {str(installed.parent)!r}\n"
        "from provenance.case import story\n"
        "place = story._find_demo()\n"
        "catalogue = json.loads((place / story.CATALOGUE).read_text())\n"
        "names = [catalogue['served'], *catalogue['innocents'], 'keys/master.key']\n"
        "names += ['keys/keyring.json', 'keys/tokenizer.json']\n"
        "names += [one['outputs'] for one in catalogue['suspects']]\n"
        "found = {'place': str(place), 'own': story.__file__}\n"
        "found['missing'] = [name for name in names if not (place / name).exists()]\n"
        "print(json.dumps(found))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert found["own"].startswith(str(installed))
    assert found["place"].startswith(str(installed.parent / "share"))
    assert found["missing"] == []
