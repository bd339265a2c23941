"""`presence` is retired: nothing begins with it, what was made with it verifies and goes on."""

from dataclasses import replace

import pytest

from provenance.check import examine as check
from provenance.check import weigh
from provenance.check.examine import check_outputs, examine_outputs
from provenance.check.looks import state as sequential
from provenance.errors import UsageError
from provenance.evidence.bundle import BundleParts, write_bundle
from provenance.suspect.access.outputs import observe
from tests.evidence.conftest import SETTINGS

OLD = replace(SETTINGS, rule="presence")


@pytest.fixture
def observed(lab):
    keyring = lab.world.keyring.public
    return observe([lab.folder / "guilty.jsonl"], lab.world.tokenizer, keyring)


def _before(monkeypatch):
    """As the version was in which the rule was offered."""
    for module in (check, sequential):
        monkeypatch.setattr(module, "refuse_retired", lambda rule: rule)


def test_a_new_check_a_plan_and_a_sequential_check_refuse_it_in_one_line(lab, observed, tmp_path):
    world = lab.world
    for begin in (
        lambda: check_outputs(observed, world.index, world.keyring, OLD),
        lambda: sequential.continue_check(
            tmp_path / "state", observed, world.index, world.keyring, OLD
        ),
    ):
        with pytest.raises(UsageError, match="presence is retired") as refused:
            begin()
        assert "\n" not in str(refused.value)
    plan = replace(lab.plan, weight_rule="presence")
    with pytest.raises(UsageError, match="make a new plan"):
        check_outputs(observed, world.index, world.keyring, replace(OLD, rule=None), plan=plan)


def test_the_commands_refuse_it(run, lab, tmp_path):
    where = ("--keys", lab.world.folder / "keys", "--index", lab.world.folder / "index")
    code, _, error = run("check", lab.folder / "guilty.jsonl", *where, "--rule", "presence")
    assert code == 2
    assert "presence is retired" in error
    more = ("--suspect", "x", "--outputs", 40, "--rule", "presence")
    code, _, error = run("plan", "new", tmp_path / "plan.json", *where, *more)
    assert code == 2
    assert "presence is retired" in error
    assert not (tmp_path / "plan.json").exists()


def test_a_bundle_that_was_made_with_it_verifies(run, lab, observed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _before(patch)
        made = examine_outputs(observed, lab.world.index, lab.world.keyring, OLD)
    assert made.verdict.weight_rule == "presence"
    write_bundle(tmp_path / "bundle", made, lab.world.keyring, BundleParts(disclosed=["all"]))
    code, out, _ = run("verify", tmp_path / "bundle", "--unsigned")
    assert code == 0, out
    assert "VERIFIED" in out


def test_a_sequential_check_that_began_with_it_goes_on(lab, observed, tmp_path, monkeypatch):
    world = lab.world
    other = observe([lab.folder / "innocent.jsonl"], world.tokenizer, world.keyring.public)
    with monkeypatch.context() as patch:
        _before(patch)
        sequential.continue_check(tmp_path / "s", observed, world.index, world.keyring, OLD)
    again, _ = sequential.continue_check(tmp_path / "s", other, world.index, world.keyring, OLD)
    assert again.settings.rule == "presence"


def test_it_is_not_offered():
    assert "presence" not in weigh.RULES
    assert set(weigh.MAXIMAL_WEIGHTS) == {*weigh.RULES, *weigh.RETIRED}
