"""The figures of docs/method.md are those that the program and the recorded results give."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.power_statement import MARGIN
from provenance.keys.keyring import MASTER_FILE, TOKENIZER_FILE, Keyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.suspect.access.outputs import observe
from tests.world.power.response import CURVES

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
PAGE = " ".join((ROOT / "docs/method.md").read_text().split())


def test_the_table_of_the_response_curve_is_the_one_in_the_package():
    curves = json.loads(CURVES.read_text())["curves"]
    (curve,) = [one for one in curves if one["setting"]["weight_rule"] == "log-sqrt"]
    assert len(curves) == 6
    shares, z = map(np.array, zip(*curve["points"], strict=True))
    lowered = np.minimum.accumulate((z - MARGIN)[::-1])[::-1]
    text = (ROOT / "docs/method.md").read_text()
    tables = dict(re.findall(r"^\| ([a-z][^|]+?) \|((?: -?[\d.]+ \|)+)$", text, re.MULTILINE))
    printed = {
        name: [float(cell) for cell in cells.split("|")[:-1]] for name, cells in tables.items()
    }
    np.testing.assert_allclose(printed["share of marked responses in the fine-tuning data"], shares)
    np.testing.assert_allclose(printed["z of the global key, one student each"], z, atol=0.0501)
    np.testing.assert_allclose(printed["used: z - 1.645, made increasing"], lowered, atol=0.0501)
    assert f"sqrt({curve['effective_coins']:,.0f})" in PAGE


def test_the_largest_shifts_are_those_in_the_package():
    rows = json.loads(CURVES.read_text())["strongest"]
    shifts = {(row["mark"], row["access"]): f"{row['shift']:.3f}" for row in rows}
    for mark in ("green", "tournament", "gumbel"):
        printed = [shifts[mark, access] for access in ("outputs", "weights", "logprobs")]
        assert f"{mark} " + " / ".join(one.removeprefix("0") for one in printed) in PAGE


def test_the_example_is_what_the_fixtures_give(tmp_path):
    keys = tmp_path / "keys"
    shutil.copytree(FIXTURES / "keys", keys)
    (keys / MASTER_FILE).chmod(0o600)
    public = Keyring.load(keys)
    keyring = public.unlock(keys)
    build_index([FIXTURES / "served.parquet"], tmp_path / "index", keyring)
    seen = observe(
        [FIXTURES / "suspects/base.jsonl.gz"], load_tokenizer(keys / TOKENIZER_FILE, public), public
    )
    with Index.open(tmp_path / "index", public) as index:
        verdict = check_outputs(seen, index, keyring, CheckSettings(placebo_keys=50))
    power = verdict.power
    assert f"has {verdict.hypotheses[0].tail.effective_coins:,.0f} effective coins" in PAGE
    assert f"a shift of {power.shift:.4f} (mean z {power.z:.2f})".replace(" 0.", " .") in PAGE
    stated = int(re.findall(r"student with (\d+) % of marked data", PAGE)[0])
    assert stated == pytest.approx(100 * power.share, abs=1)
    assert stated >= 100 * power.share
