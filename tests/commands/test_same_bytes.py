"""The command line is a thin view of the library: same inputs, same bytes."""

import json

import numpy as np
import pytest

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
