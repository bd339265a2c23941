"""A foreign mark with contexts of four tokens, read with weights and with a reference model."""

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.weigh import REFERENCE_RULE
from provenance.marks.foreign import make_foreign
from provenance.marks.foreign.mark import ForeignMark
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.storage.files import sha256_of_file
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.outputs import count_positions
from provenance.suspect.access.probabilities import expect_with_model, observe_weights
from provenance.suspect.observations import add_expectations
from provenance.suspect.positions import find_positions

WIDTH = 4
SETTINGS = CheckSettings(rule=REFERENCE_RULE, placebo_keys=50)


@pytest.fixture(scope="module")
def mark(tokenizer_path, keyring):
    config = {"ngram_len": WIDTH + 1, "keys": [3, 1415, 92653, 58979], "sampling_table_seed": 0}
    scheme = make_foreign("hf-synthid", config)
    size = keyring.public.vocabulary_size
    return ForeignMark(scheme, size, sha256_of_file(tokenizer_path))


@pytest.fixture(scope="module")
def index(tmp_path_factory, log, mark, tokenizer_path):
    folder = tmp_path_factory.mktemp("long") / "index"
    build_index([log], folder, mark, tokenizer_path, threads=1)
    with Index.open(folder, mark.public) as opened:
        yield opened


@pytest.fixture(scope="module")
def models(suspect_folder, base_folder, mark, tokenizer):
    from provenance.suspect.models.language_model import LanguageModel

    return [LanguageModel(f, mark.public, tokenizer) for f in (suspect_folder, base_folder)]


def test_weights_are_read_and_every_context_keeps_its_ids(log, tokenizer, index, mark, models):
    suspect, reference = models
    documents = Documents([log], tokenizer, index, mark)
    found = observe_weights(suspect, reference, documents)
    known = {
        tuple(positions.outputs[row][place - WIDTH : place].tolist())
        for positions, _ in documents
        for row, place in zip(positions.rows, positions.offsets, strict=True)
    }
    ids = found.context_ids(np.arange(found.contexts.size), WIDTH)
    assert ids.shape == (found.contexts.size, WIDTH)
    assert set(map(tuple, ids.tolist())) <= known
    assert np.unique(ids, axis=0).shape[0] == np.unique(found.contexts).size > 10
    verdict = check_outputs(found, index, mark, SETTINGS)
    assert not verdict.found_evidence
    assert verdict.controls_passed
    assert verdict.hypotheses[0].tail.coins > 100


def test_a_reference_model_expects_pairs_of_the_outputs_contexts_only(
    log, tokenizer, index, mark, models
):
    [(read, _)] = list(Documents([log], tokenizer, index, mark))
    rows = list(range(len(read.outputs)))
    positions = find_positions(read.outputs, read.prompts, rows, WIDTH, {"outputs": "0" * 64})
    found = count_positions(positions)
    both = add_expectations(found, expect_with_model(models[1], positions, index, mark))
    assert both.expected.sum() > 1
    every = np.arange(both.contexts.size)
    assert set(map(tuple, both.context_ids(every, WIDTH).tolist())) == set(
        map(tuple, found.context_ids(np.arange(found.contexts.size), WIDTH).tolist())
    )
    assert any(h.tail.coins for h in check_outputs(both, index, mark, SETTINGS).hypotheses)
