"""The command line is a thin view of the library: same inputs, same bytes."""

import json

import numpy as np
import pytest

import provenance as pv
from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.twin_test import measure_twins
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.outputs import observe, read_positions
from provenance.suspect.access.probabilities import observe_logprobs, observe_weights
from provenance.suspect.access.twins import read_twins
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import add_expectations
from tests.world.synthetic import innocent, learn, write_outputs

pytest.importorskip("torch")

from tests.commands.test_check_access import world

__all__ = ["world"]

FAST = CheckSettings(placebo_keys=50)


@pytest.fixture(scope="module")
def suspects(world):
    """Files of text: a guilty suspect and the unmarked teacher."""
    rng = np.random.default_rng(5)
    guilty = write_outputs(world.folder / "text.jsonl", learn(world, rng, 60, 60))
    clean = write_outputs(world.folder / "clean.jsonl", *innocent("ordinary", world, rng))
    return guilty, clean


def _model(world, name):
    from provenance.suspect.models.language_model import LanguageModel

    return LanguageModel(world.folder / name, world.keyring.public, world.tokenizer)


def _text(world, suspects):
    public = world.keyring.public
    return [suspects[0]], [], observe([suspects[0]], world.tokenizer, public), None


def _ngram(world, suspects):
    public = world.keyring.public
    text = read_positions([suspects[1]], world.tokenizer, public)
    reference = NgramReference(text, public.vocabulary_size, public.context_width)
    seen = observe([suspects[0]], world.tokenizer, public)
    options = ["--reference", "ngram", "--reference-text", suspects[1]]
    return [suspects[0]], options, add_expectations(seen, reference.expect(seen)), None


def _logprobs(world, suspects):
    path = world.folder / "logprobs.jsonl"
    seen = observe_logprobs([path], None, world.tokenizer, world.index, world.keyring)
    return [], ["--logprobs", path], seen, None


def _weights(world, suspects, reference=None):
    documents = Documents(
        [world.folder / "served.jsonl"], world.tokenizer, world.index, world.keyring, None
    )
    seen = observe_weights(_model(world, "guilty"), reference, documents)
    options = ["--weights", world.folder / "guilty", "--read", world.folder / "served.jsonl"]
    return [], options, seen, None


def _weights_with_reference(world, suspects):
    _, options, seen, _ = _weights(world, suspects, _model(world, "base"))
    return [], [*options, "--reference", world.folder / "base"], seen, None


def _twins(world, suspects):
    _, options, seen, _ = _weights(world, suspects)
    path = world.folder / "twins.jsonl"
    twins = read_twins([path], world.tokenizer, world.keyring.public)
    measured = measure_twins(twins, _model(world, "guilty"), None)
    return [], [*options, "--twins", path], seen, measured


CASES = {
    "text": (_text, "log-sqrt"),
    "text with k-grams": (_ngram, "residual"),
    "logprobs": (_logprobs, "residual"),
    "weights": (_weights, "residual"),
    "weights with a model": (_weights_with_reference, "residual"),
    "weights and twins": (_twins, "residual"),
}


def _front_door(world, files, options):
    """The same options, said to the library; paths as str, and one alone without a list."""
    given = {options[i][2:].replace("-", "_"): options[i + 1] for i in range(0, len(options), 2)}
    opening = {name: given.pop(name) for name in list(given) if name.startswith("reference")}
    with pv.open_case(str(world.folder / "keys"), world.folder / "index", **opening) as case:
        return case.check(str(files[0]) if files else None, **given, placebo_keys=50)


@pytest.mark.parametrize("name", CASES)
def test_library_and_command_give_the_same_bytes(run, world, suspects, name):
    make, rule = CASES[name]
    files, options, seen, twins = make(world, suspects)
    keyed = ("--keys", world.folder / "keys", "--index", world.folder / "index")
    code, out, err = run("check", *files, *options, *keyed, "--placebo-keys", "50", "--json")
    verdict = check_outputs(seen, world.index, world.keyring, FAST, twins=twins)
    assert code == verdict.exit_code, err
    assert json.dumps(json.loads(out)) == json.dumps(verdict.to_json())
    assert verdict.weight_rule == rule == verdict.inputs["settings"]["rule"]
    asked = _front_door(world, files, options)
    assert asked == verdict
    assert json.dumps(asked.to_json()) == json.dumps(verdict.to_json())


def test_words_and_bundles_are_the_same_too(run, world, suspects, tmp_path):
    keyed = ("--keys", world.folder / "keys", "--index", world.folder / "index")
    files, innocent = [suspects[0]], ["--innocent", suspects[1]]
    command = ("check", *files, *innocent, *keyed, "--placebo-keys", "50")
    _, out, err = run(*command, "-o", tmp_path / "one", "--disclose", "all")
    assert err.strip() == ""
    with pv.open_case(pv.open_keyring(world.folder / "keys"), world.folder / "index") as case:
        verdict = case.check(files, innocents=suspects[1], placebo_keys=50)
    assert str(verdict) == out.rstrip("\n")
    assert "\n" not in repr(verdict)
    assert len(repr(verdict)) < 200
    verdict.save(str(tmp_path / "two"), ["all"])
    names = [
        sorted(path.relative_to(tmp_path / one) for path in (tmp_path / one).rglob("*"))
        for one in ("one", "two")
    ]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        if one.is_file() and name.name not in ("manifest.json", "report.html"):
            assert one.read_bytes() == two.read_bytes()
    # the report says when its bundle was written; it is that of the manifest's time
    assert pv.verify(tmp_path / "one", unsigned=True).passed
    found = pv.verify(tmp_path / "two", unsigned=True)
    code, out, _ = run("verify", tmp_path / "two", "--unsigned")
    assert (code, out.rstrip("\n")) == (0, str(found))


def test_a_bundle_that_does_not_hold_is_an_exception(world, suspects, tmp_path):
    with pv.open_case(world.keyring, world.folder / "index") as case:
        case.check(suspects[0], placebo_keys=50).save(tmp_path / "bundle")
    with pytest.raises(pv.VerificationError, match="NOT VERIFIED") as caught:
        pv.verify(tmp_path / "bundle")  # nobody signed it
    assert not caught.value.verification.passed
    assert pv.verify(tmp_path / "bundle", unsigned=True).passed
    verdict = tmp_path / "bundle/verdict.json"
    verdict.write_text(verdict.read_text().replace('"alpha": 0.0001', '"alpha": 0.01', 1))
    with pytest.raises(pv.VerificationError):
        pv.verify(tmp_path / "bundle", unsigned=True)


def test_sequential_looks_are_the_same(run, world, suspects, tmp_path):
    keyed = ("--keys", world.folder / "keys", "--index", world.folder / "index")
    for rule in ("none", "ngram"):
        more = ["--reference-text", suspects[1]] if rule == "ngram" else []
        command = ("check", *keyed, "--placebo-keys", "50", "--reference", rule, *more, "--json")
        states = tmp_path / f"{rule}-command", tmp_path / f"{rule}-library"
        opening = {"reference": rule, "reference_text": suspects[1] if more else None}
        with pv.open_case(world.keyring, world.folder / "index", **opening) as case:
            for files in ([suspects[0]], []):
                code, out, err = run(*command, *files, "--sequential", states[0])
                look = case.look(states[1], files, placebo_keys=50)
                assert code == look.exit_code, err
                assert json.dumps(json.loads(out)) == json.dumps(look.to_json())
        assert look.verdict.weight_rule == ("residual" if more else "log-sqrt")
        assert (states[0] / "state.json").read_bytes() == (states[1] / "state.json").read_bytes()


def test_planned_checks_and_the_question_of_enough_are_the_same(run, world, suspects, tmp_path):
    keys, index = world.folder / "keys", world.folder / "index"
    keyed = ("--keys", keys, "--index", index)
    wanted = {"outputs": [60], "placebo_keys": 50, "alpha": 1e-3}
    made = pv.make_plan(tmp_path / "one.json", pv.Keyring.load(keys), str(index), "x", **wanted)
    options = ("--suspect", "x", "--outputs", "60", "--placebo-keys", "50", "--alpha", "1e-3")
    assert run("plan", "new", tmp_path / "two.json", *keyed, *options)[0] == 0
    free = {"created", "nonce"}
    two = pv.Plan.load(tmp_path / "two.json").document
    assert {k: v for k, v in two.items() if k not in free} == {
        k: v for k, v in made.document.items() if k not in free
    }
    plan = ("--plan", tmp_path / "one.json")
    code, out, err = run("check", suspects[0], *keyed, *plan, "--json")
    with pv.open_case(world.keyring, index) as case:
        verdict = case.check([suspects[0]], plan=str(tmp_path / "one.json"))
        found = case.enough(suspects[0], 0.3)
    assert code == verdict.exit_code, err
    assert json.dumps(json.loads(out)) == json.dumps(verdict.to_json())
    assert not verdict.exploratory
    _, out, _ = run("plan", "enough", suspects[0], *keyed, "--shift", "0.3", "--json")
    assert json.loads(out) == found.to_json()


def test_detection_is_the_same(run, world, suspects):
    keys = world.folder / "keys"
    for pool in (False, True):
        options = ("--pool",) if pool else ()
        code, out, _ = run("detect", suspects[0], "--keys", keys, "--json", *options)
        found = pv.detect_texts([suspects[0]], world.keyring, pool=pool)
        assert (code, json.loads(out)) == (found.exit_code, found.to_json())
        _, out, _ = run("detect", suspects[0], "--keys", keys, *options)
        assert out.rstrip("\n") == str(found)


def test_alpha_is_shared_out_in_the_library_and_both_lines_draw_one_conclusion(world, suspects):
    _, _, seen, twins = _twins(world, suspects)
    verdict = check_outputs(seen, world.index, world.keyring, FAST, twins=twins)
    assert verdict.inputs["settings"]["alpha"] == 1e-4
    assert (verdict.alpha, verdict.twins.alpha) == (5e-5, 5e-5)
    assert verdict.found_by == ("keys", "twins")
    alone = check_outputs(seen, world.index, world.keyring, FAST)
    assert (alone.alpha, alone.twins, alone.found_by) == (1e-4, None, ("keys",))


def test_a_rule_that_was_chosen_stays_chosen(world, suspects):
    _, _, seen, _ = _ngram(world, suspects)
    settings = CheckSettings(rule="log-sqrt", placebo_keys=50)
    verdict = check_outputs(seen, world.index, world.keyring, settings)
    assert verdict.weight_rule == "log-sqrt"
