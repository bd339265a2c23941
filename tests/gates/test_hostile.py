"""Files of malicious authors, a sample; all of them: `make gates`."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gates.forks import Ended
from tests.gates.hostile import Case, judge, make_cases, try_case

_SAMPLE = 40


def test_files_of_malicious_authors_are_refused_in_a_line(forks, place, tmp_path):
    cases = make_cases(place)
    assert len(cases) >= 500
    cheap = [case for case in cases if case.kind in ("records", "documents", "special", "names")]
    failures = {
        case.name: found
        for case in random.Random(3).sample(cheap, _SAMPLE)
        if (found := try_case(case, forks, place, tmp_path / "case"))
    }
    assert not failures


def test_every_kind_of_failure_is_found_out():
    case = Case("x", "x", ("keys", "show"), lambda _: None)
    fine = Ended(65, "", "provenance: x", 1.0, 1.0, 0, 0)
    assert not judge(case, fine)
    for changed in (
        {"code": 70},
        {"code": 1},
        {"code": 0},
        {"code": -9},
        {"processor": 31.0},
        {"memory": 1 << 31},
        {"err": "Traceback (most recent call last)"},
        {"err": "\x1b[31m"},
        {"out": "\u202e"},
        {"err": "x" * 3000},
        {"err": "x\n" * 30000},
    ):
        assert judge(case, replace(fine, **changed)), changed


@pytest.mark.parametrize("name", ["index build: a link to itself", "keys show: bytes"])
def test_names_that_lead_nowhere_are_refused(forks, place, tmp_path, name):
    folder = tmp_path / "x"
    folder.mkdir()
    if "link" in name:
        (folder / "a.jsonl").symlink_to("a.jsonl")
        words = ("detect", folder / "a.jsonl", "--keys", place / "keys")
    else:
        words = ("keys", "show", f"{folder}/\udcff")
    ended = forks.run(*words)
    assert ended.code == 74, ended.err
    assert Path(folder).exists()


def test_json_on_stdout_steers_no_terminal_and_means_the_same(forks, place, tmp_path):
    name = "red\x9b31m\u202egnp é 日本.jsonl"
    (tmp_path / name).write_bytes((place / "few.jsonl").read_bytes())
    ended = forks.run("outputs", "show", name, "--json", folder=tmp_path)
    assert ended.code == 0, ended.err
    assert all(c == "\n" or c.isprintable() for c in ended.out)
    assert "é 日本" in ended.out
    assert name in json.loads(ended.out)["sha256"]
