"""What is said of power before a check and after one, and what is not said."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import provenance as pv
from provenance.check.planned_power import LAB_SIGNAL
from provenance.check.power_statement import Setting, find_curve, state_power
from provenance.errors import DataError, StorageError, UsageError
from provenance.keys.keyring import SchemeSpecification
from provenance.stats.power import critical_value
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from tests.conftest import make_keyring
from tests.test_docs import FIXTURES

ALONE = {"global": 0.2}


@pytest.fixture(scope="module")
def keyring(tmp_path_factory, tokenizer_path):
    """As in the laboratory of the curves: a fifth of the contexts, one key."""
    folder = tmp_path_factory.mktemp("alone")
    return make_keyring(folder / "k", tokenizer_path, shares=ALONE, values={})


def _round_trip(found):
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found
    return found


def test_tokens_for_a_fully_trained_suspect_are_what_the_curve_gives(keyring):
    found = _round_trip(pv.plan_power(1.0, keyring, reference="ngram"))
    assert (found.outcome, found.exit_code, found.level) == ("tokens", 0, 1e-4)
    # 31.3 - 1.645 at 196,118 tokens, and about 5.1 is needed: a part (5.1 / 29.65)^2 of them
    assert found.z == pytest.approx(31.296 - 1.645, abs=1e-6)
    assert 4.9 < found.z_needed < 5.4
    assert 0.027 < found.tokens / found.measured < 0.036
    assert "196,118 tokens" in str(found)
    more = pv.plan_power(1.0, keyring, reference="ngram", alpha=1e-8)
    assert more.tokens > 1.5 * found.tokens
    fewer = pv.plan_power(1.0, keyring, access="weights", reference="model")
    assert fewer.tokens < found.tokens / 3


def test_the_planned_number_of_coins_finds_it(keyring):
    """Scores drawn with the curve's shift at so many coins are found about as often as planned."""
    found = pv.plan_power(1.0, keyring, reference="ngram", power=0.9)
    law = pv.make_scheme("gumbel").null_law
    shift = found.z / np.sqrt(found.curve["effective_coins"])
    count, rng = int(found.coins), np.random.default_rng(0)
    tilt = shift / np.sqrt(law.variance)
    raised = law.probabilities * np.exp(tilt * np.arange(len(law.masses)))
    raised /= raised.sum()
    draws = rng.choice(raised.size, (400, count), p=raised).sum(axis=1)
    table = ClassTable((ScoreClass(1, law, count, count * law.support[0]),))
    assert 0.85 < (draws >= critical_value(table, found.level)).mean() < 0.999


def test_what_was_not_measured_is_not_said(keyring, tmp_path, tokenizer_path):
    few = _round_trip(pv.plan_power(0.3, keyring))
    assert (few.outcome, few.exit_code, few.tokens) == ("too many tokens", 3, None)
    assert "MORE THAN 196,118 tokens" in str(few)
    none = pv.plan_power(0.02, keyring)
    assert (none.outcome, none.exit_code) == ("share too small", 3)
    assert "NO NUMBER" in str(none)
    for share in (0.01, 1.5, 0.0, float("nan")):
        with pytest.raises(UsageError, match="within the measured"):
            pv.plan_power(share, keyring)
    with pytest.raises(UsageError, match="only where students were measured"):
        pv.plan_power(0.5, keyring, access="logprobs")
    with pytest.raises(UsageError, match="alpha"):
        pv.plan_power(0.5, keyring, alpha=0.5)
    green = SchemeSpecification("green", {"gamma": 0.25, "delta": 2.0})
    other = make_keyring(tmp_path / "g", tokenizer_path, scheme=green, shares=ALONE, values={})
    with pytest.raises(UsageError, match="green"):
        pv.plan_power(0.5, other)


def test_a_smaller_share_of_contexts_needs_more_tokens(keyring, tmp_path, tokenizer_path):
    whole = pv.plan_power(1.0, keyring, reference="ngram")
    half = make_keyring(
        tmp_path / "h", tokenizer_path, shares={"global": 0.1, "capability": 0.1},
        values={"capability": ["code", "prose"]},
    )  # fmt: skip
    found = pv.plan_power(1.0, half, reference="ngram")
    assert found.level == 5e-5
    assert 1.9 < found.tokens / whole.tokens < 2.3


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited") / "keys"
    shutil.copytree(FIXTURES / "keys", folder)
    (folder / "master.key").chmod(0o600)
    return pv.audit_log([FIXTURES / "served.parquet"], pv.open_keyring(folder))


def test_the_audit_says_the_signal_of_every_capability(audit):
    groups = {one["name"]: one for one in audit.to_json()["groups"] if one["kind"] == "key"}
    assert groups["global"]["signal"] == pytest.approx(LAB_SIGNAL, abs=5e-4)
    signals = [groups[f"capability={name}"]["signal"] for name in ("code", "prose", "headers")]
    assert signals == pytest.approx([3.941, 4.416, 3.994], abs=1e-3)
    assert 0.01 < groups["capability=code"]["signal_error"] < 0.04
    assert "capability=prose" in str(audit).partition("signal")[2]


def test_a_mix_of_capabilities_scales_what_the_curve_gives(audit, tmp_path):
    public = pv.Keyring.load(FIXTURES / "keys")
    plain = pv.plan_power(1.0, public, reference="ngram")
    mixed = _round_trip(pv.plan_power(1.0, public, reference="ngram", audit=audit))
    assert sum(mixed.mix.values()) == pytest.approx(1)
    assert 0.85 < mixed.density < 1
    assert mixed.signal == 1.0  # never more than the lab's
    assert mixed.tokens > plain.tokens
    code = pv.plan_power(1.0, public, reference="ngram", audit=audit, mix={"code": 2})
    assert code.mix == {"code": 1.0}
    assert code.signal == pytest.approx(3.941 / LAB_SIGNAL, abs=1e-3)
    document = audit.to_json()
    for one in document["groups"]:
        one["signal"] = one["signal"] and one["signal"] / 4
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(document))
    dull = pv.plan_power(1.0, public, access="weights", reference="model", audit=path)
    full = pv.plan_power(1.0, public, access="weights", reference="model", audit=audit)
    assert 12 < dull.tokens / full.tokens < 18  # the square of the signal
    with pytest.raises(UsageError, match="poetry"):
        pv.plan_power(1.0, public, audit=audit, mix={"poetry": 1})
    with pytest.raises(UsageError, match="must come with the audit"):
        pv.plan_power(1.0, public, mix={"code": 1})
    with pytest.raises(UsageError, match="parts"):
        pv.plan_power(1.0, public, audit=audit, mix={"code": -1})
    path.write_text('{"groups": [{}]}')
    with pytest.raises(DataError, match="log audit"):
        pv.plan_power(1.0, public, audit=path)


def test_a_bundle_says_what_each_of_its_keys_finds(tmp_path, monkeypatch):
    """Of three of its keys, since each costs half a second."""
    folder = FIXTURES / "evidence/first"
    verdict = pv.Verdict.from_json(json.loads((folder / "verdict.json").read_text()))
    names = ("global", "capability=code", "cohort=trial")
    kept = tuple(one for one in verdict.hypotheses if one.name in names)
    monkeypatch.setattr(
        "provenance.check.planned_power.read_result", lambda _: replace(verdict, hypotheses=kept)
    )
    found = _round_trip(pv.state_detectable(folder))
    assert [one.key for one in found.keys] == list(names)
    setting = Setting(**found.setting)
    said = state_power(kept[0].table, "global", 5e-5, setting)
    assert (found.keys[0].shift, found.keys[0].share) == (said.shift, said.share)
    assert found.keys[1].shift > found.keys[0].shift  # fewer coins, and a smaller part of alpha
    assert found.curve == find_curve(setting)
    assert "share: of marked responses" in str(found)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="must hold one of"):
        pv.state_detectable(tmp_path)
