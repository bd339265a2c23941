"""Collected outputs in a check: the ledger's head and counts stand in what is signed."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import provenance
from provenance.errors import DataError
from tests.suspect.collect.test_batches import write
from tests.world.synthetic import learn, write_outputs

SCHEMAS = Path(provenance.__file__).parent / "evidence/schemas"


@pytest.fixture(scope="module")
def collected(synthetic_world, tmp_path_factory):
    """A collection whose answers a guilty suspect gave, by a batch."""
    folder, rng = tmp_path_factory.mktemp("collected"), np.random.default_rng(5)
    write_outputs(folder / "guilty.jsonl", learn(synthetic_world, rng, 200, 80))
    texts = [
        json.loads(line)["output"] for line in (folder / "guilty.jsonl").read_text().splitlines()
    ]
    prompts = write(folder / "p.jsonl", [{"prompt": f"Question {n}"} for n in range(len(texts))])
    settings = provenance.CollectSettings(model="suspect-7")
    provenance.prepare_batch(prompts, folder / "out", settings, "openai-batch")
    lines = [
        {
            "custom_id": f"{number}-0",
            "response": {
                "status_code": 200,
                "body": {"model": "suspect-7", "choices": [{"message": {"content": text}}]},
            },
        }
        for number, text in enumerate(texts[:-2], start=1)
    ]
    lines.append({"custom_id": f"{len(texts)}-0", "error": {"code": "content_filter"}})
    return provenance.import_batch(write(folder / "r.jsonl", lines), folder / "out")


@pytest.fixture
def case(synthetic_world):
    made = synthetic_world.folder
    with provenance.open_case(made / "keys", made / "index") as opened:
        yield opened


def test_the_bundle_states_head_and_counts_of_the_ledger(collected, case, tmp_path):
    found = case.check(collected.folder, placebo_keys=60)
    assert found.found_evidence
    found.save(tmp_path / "bundle")
    verdict = json.loads((tmp_path / "bundle/verdict.json").read_text())
    stated = verdict["inputs"]["outputs"]["source"]["collected"]["outputs.jsonl"]
    assert stated["head"] == collected.facts["head"]
    assert (stated["answered"], stated["errors"], stated["unanswered"]) == (198, 1, 1)
    assert provenance.verify(tmp_path / "bundle", unsigned=True).passed
    head = stated["head"]
    assert provenance.verify_collection(collected.folder, head).exit_code == 0
    assert head in (tmp_path / "bundle/report.html").read_text()
    assert head in str(found)
    lines = (collected.folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    (cut / "prompts.jsonl").write_bytes((collected.folder / "prompts.jsonl").read_bytes())
    assert "the head that was stated" in provenance.verify_collection(cut, head).say()
    schema = json.loads((SCHEMAS / "verdict.schema.json").read_text())
    jsonschema.validate(verdict, schema)
    del stated["head"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(verdict, schema)


@pytest.mark.parametrize("break_it", ["outputs", "ledger", "prompts"])
def test_a_check_refuses_outputs_that_do_not_follow_from_their_ledger(
    collected, case, tmp_path, break_it
):
    for path in collected.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = f"{break_it}.jsonl"
    lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
    (tmp_path / name).write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(DataError, match=name):
        case.check(tmp_path / "outputs.jsonl", placebo_keys=60)
    found = provenance.verify_collection(tmp_path)
    assert found.exit_code == 1
    assert name in found.say() or "taken out" in found.say()


def test_a_sequential_check_states_it_of_every_batch(collected, case, tmp_path):
    look = case.look(tmp_path / "state", collected.folder / "outputs.jsonl")
    assert collected.facts["head"] in look.say(200)
