"""`provenance check` of weights, logprobs and twins: exit codes, cache, one line for bad input."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.conftest import train_tokenizer
from tests.world.synthetic import LABELS, WORDS, Teacher, make_world

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def _model(folder, tokenizer_path, seed, size=WORDS):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    shutil.copy(tokenizer_path, folder / "tokenizer.json")
    return model


def _train(model, ids, steps):
    ids = torch.from_numpy(ids.astype(np.int64))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Keys, a marked log and its index; a model trained on the log, and two that were not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_world(tmp_path_factory.mktemp("access"), Teacher.draw(0), 1, 40, 40)
    folder, tokenizer = made.folder, made.folder / "tokenizer.json"
    _model(folder / "base", tokenizer, 1)
    _model(folder / "other", tokenizer, 2)
    guilty = _model(folder / "guilty", tokenizer, 1)
    _train(guilty, made.served, 60)
    guilty.save_pretrained(folder / "guilty")
    foreign = train_tokenizer(folder / "bpe.json", 300, ["w1 w2 w30 w255"] * 9, [])
    _model(folder / "foreign", foreign, 3, Tokenizer.from_file(str(foreign)).get_vocab_size())
    twins = made.teacher.sample(np.random.default_rng(9), 40, 40)
    lines = [
        {"served": one.tolist(), "unserved": two.tolist()}
        for one, two in zip(made.served, twins, strict=True)
    ]
    (folder / "twins.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_logprobs(folder / "logprobs.jsonl", guilty, made.served)
    yield made
    torch.set_num_threads(threads)


def _write_logprobs(path, model, served):
    """The 20 most probable tokens at every position, as an API would list them."""
    with torch.inference_mode():
        logs = model.eval()(torch.from_numpy(served.astype(np.int64))).logits.log_softmax(-1)
    top = logs.topk(20)
    with path.open("w") as file:
        for row, ids in enumerate(served.tolist()):
            lists = [
                [[i, min(v, 0.0)] for i, v in zip(own.tolist(), values.tolist(), strict=True)]
                for own, values in zip(top.indices[row], top.values[row], strict=True)
            ]
            record = {
                "output_token_ids": ids,
                "top_logprobs": [[], *lists[:-1]],
                "finish": "length",
            }
            file.write(json.dumps(record) + "\n")


def _keys(world):
    return ("--keys", world.folder / "keys", "--index", world.folder / "index")


def _check(world, model="guilty", *more):
    read = world.folder / "served.jsonl"
    fixed = ("check", *_keys(world), "--placebo-keys", "60")
    return (*fixed, "--weights", world.folder / model, "--read", read, *more)


def _one_line(error):
    lines = [line for line in error.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("provenance: ")


# ---- verdicts ----


def test_a_model_trained_on_the_log_is_found_by_its_weights(run, world, tmp_path):
    base = world.folder / "base"
    report, cache = tmp_path / "report", tmp_path / "cache"
    more = ("--reference", base, "--cache", cache, "--innocent", world.folder / "other")
    code, out, _ = run(*_check(world, "guilty", "--json", "-o", report, *more))
    assert code == 1
    verdict = json.loads(out)
    assert verdict == json.loads((report / "verdict.json").read_text())
    assert verdict["conclusion"] == "evidence"
    assert verdict["log10_p"] < -10
    assert verdict["weight_rule"] == "residual"
    assert verdict["controls_passed"]
    assert verdict["twins"] is None
    told = verdict["inputs"]["outputs"]
    assert told["source"]["access"] == "weights"
    assert told["source"]["positions_kept"] == 1
    assert told["reference"]["kind"] == "model"
    assert told["outputs"] == 40
    assert list(told["sha256"]) == ["served.jsonl"]
    assert set(verdict["attributed"]) <= set(LABELS)
    # everything that a model said is in the cache now
    again = run(*_check(world, "guilty", "--json", *more))
    assert again[0] == 1
    assert json.loads(again[1]) == verdict


def test_models_that_were_not_trained_are_not_accused(run, world):
    code, out, _ = run(*_check(world, "other", "--reference", world.folder / "base"))
    assert code == 0
    assert out.startswith("NO EVIDENCE")
    code, out, _ = run(*_check(world, "base", "--json", "--documents", 20))
    assert code == 0
    verdict = json.loads(out)
    assert verdict["conclusion"] == "no evidence"
    assert verdict["inputs"]["outputs"]["outputs"] == 20


def test_logprobs_of_a_trained_model(run, world):
    path = world.folder / "logprobs.jsonl"
    fixed = ("check", *_keys(world), "--placebo-keys", "60", "--logprobs", path, "--json")
    for more in ((), ("--reference", world.folder / "base")):
        code, out, _ = run(*fixed, *more)
        verdict = json.loads(out)
        assert code == 1
        assert verdict["log10_p"] < -5
        assert verdict["inputs"]["outputs"]["source"]["access"] == "logprobs"


def test_twins_are_a_second_line(run, world):
    twins = ("--twins", world.folder / "twins.jsonl", "--json", "--alpha", "1e-3")
    code, out, _ = run(*_check(world, "guilty", "--reference", world.folder / "base", *twins))
    verdict = json.loads(out)
    assert code == 1
    assert verdict["twins"]["rejected"]
    assert verdict["twins"]["log10_p"] < -6
    assert (verdict["twins"]["pairs"], verdict["twins"]["alpha"]) == (40, 5e-4)
    assert verdict["alpha"] == 5e-4
    code, out, _ = run(*_check(world, "other", *twins))
    assert code == 0
    assert not json.loads(out)["twins"]["rejected"]
    code, out, _ = run(*_check(world, "other", *twins[:2]))
    assert "Twins (a second line)" in out


def test_an_innocent_that_is_the_reference_with_a_cache(run, world, tmp_path):
    base = world.folder / "base"
    more = ("--reference", base, "--innocent", base, "--cache", tmp_path / "cache")
    code, _, err = run(*_check(world, "guilty", *more))
    assert code == 1, err


# ---- usage ----


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["OUTPUTS", "--weights", "GUILTY", "--read", "LOG"],
        ["OUTPUTS", "--logprobs", "LOGPROBS"],
        ["--weights", "GUILTY", "--logprobs", "LOGPROBS", "--read", "LOG"],
        ["--weights", "GUILTY"],
        ["--read", "LOG"],
        ["OUTPUTS", "--read", "LOG"],
        ["--logprobs", "LOGPROBS", "--read", "LOG"],
        ["OUTPUTS", "--documents", "5"],
        ["--logprobs", "LOGPROBS", "--documents", "5"],
        ["OUTPUTS", "--twins", "TWINS"],
        ["--logprobs", "LOGPROBS", "--twins", "TWINS"],
        ["--weights", "GUILTY", "--read", "LOG", "--reference", "ngram"],
        ["--weights", "GUILTY", "--read", "LOG", "--reference-text", "LOG"],
        ["--weights", "GUILTY", "--read", "LOG", "--rule", "best"],
        ["--weights", "GUILTY", "--read", "LOG", "--alpha", "0"],
        ["--weights", "GUILTY", "--read", "LOG", "--placebo-keys", "1"],
    ],
    ids=" ".join,
)
def test_impossible_accesses(run, world, more):
    names = {
        "OUTPUTS": world.folder / "logprobs.jsonl",
        "GUILTY": world.folder / "guilty",
        "LOG": world.folder / "served.jsonl",
        "LOGPROBS": world.folder / "logprobs.jsonl",
        "TWINS": world.folder / "twins.jsonl",
    }
    code, out, err = run("check", *_keys(world), *(names.get(word, word) for word in more))
    assert code == 2, err
    assert _one_line(err), err
    assert out == ""


@pytest.mark.parametrize("documents", ["0", "-3", "many"])
def test_documents_must_be_a_positive_number(run, world, documents):
    code, out, err = run(*_check(world, "guilty", "--documents", documents))
    assert code == 2
    assert "--documents" in err
    assert out == ""


# ---- broken inputs ----


def _assert_stops(run, expected, *arguments):
    code, out, err = run(*arguments)
    assert code == expected, err
    assert _one_line(err), err
    assert out == ""


def test_missing_files(run, world, tmp_path):
    missing = tmp_path / "missing"
    _assert_stops(run, 74, *_check(world, missing))
    _assert_stops(run, 74, *_check(world, "guilty", "--read", missing.with_suffix(".jsonl")))
    _assert_stops(run, 74, *_check(world, "guilty", "--reference", missing))
    _assert_stops(run, 74, *_check(world, "guilty", "--innocent", missing))
    _assert_stops(run, 74, "check", *_keys(world), "--logprobs", missing)
    _assert_stops(run, 74, *_check(world, "guilty", "--twins", missing))


@pytest.fixture
def copy(world, tmp_path):
    """A copy of the model that a test may break."""
    return shutil.copytree(world.folder / "guilty", tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.safetensors", None, 74),
        ("config.json", None, 74),
        ("tokenizer.json", None, 74),
        ("config.json", b"{", 74),
        ("config.json", b'{"model_type": "nonsense"}', 74),
        ("tokenizer.json", b"{}", 78),
        pytest.param(
            "model.safetensors",
            b"garbage" * 100,
            74,
        ),
    ],
)
def test_broken_models(run, world, copy, name, content, expected):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    _assert_stops(run, expected, *_check(world, copy))


def test_pickled_weights_are_not_read(run, world, copy):
    weights = torch.nn.Linear(2, 2).state_dict()
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    _assert_stops(run, 74, *_check(world, copy))


def test_another_tokenizer(run, world):
    _assert_stops(run, 78, *_check(world, "foreign"))
    _assert_stops(run, 78, *_check(world, "guilty", "--reference", world.folder / "foreign"))
    # the whole log is marked, and that must not be read with another tokenizer
    _assert_stops(run, 65, *_check(world, "foreign", "--other-tokenizer"))


def test_another_tokenizer_reads_what_was_served_unmarked(run, world, tmp_path):
    path = tmp_path / "unmarked.jsonl"
    lines = (world.folder / "served.jsonl").read_text()
    path.write_text(lines.replace('"marked":true', '"marked":false'))
    fixed = ("check", *_keys(world), "--placebo-keys", "60", "--json", "--other-tokenizer")
    code, out, _ = run(*fixed, "--weights", world.folder / "foreign", "--read", path)
    verdict = json.loads(out)
    assert (code, verdict["conclusion"]) == (3, "inconclusive")  # so few tokens show nothing
    source = verdict["inputs"]["outputs"]["source"]
    assert 0 < source["positions_kept"] <= 1
    assert 0 <= source["mass_kept"] <= 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"output_token_ids": [1, 2, 3], "top_logprobs": [[], [], [[4, 0.5]]]}\n',
        b'{"output_token_ids": [1, 2, 3], "top_logprobs": [[], [], [[4, NaN]]]}\n',
        b'{"output": "w1 w2 w3"}\n',
        b"",
        b"\xff\n",
    ],
)
def test_bad_logprobs(run, world, tmp_path, line):
    (tmp_path / "bad.jsonl").write_bytes(line)
    _assert_stops(run, 65, "check", *_keys(world), "--logprobs", tmp_path / "bad.jsonl")


def test_bad_twins(run, world, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"served": "w1"}\n')
    _assert_stops(run, 65, *_check(world, "guilty", "--twins", tmp_path / "bad.jsonl"))


def test_a_log_without_an_indexed_context(run, world, tmp_path):
    line = {"response_id": "x", "marked": True, "labels": {}, "token_ids": [250, 251, 252, 253]}
    (tmp_path / "strange.jsonl").write_text(json.dumps(line) + "\n")
    fixed = ("check", *_keys(world), "--weights", world.folder / "guilty")
    _assert_stops(run, 65, *fixed, "--read", tmp_path / "strange.jsonl")


# ---- a checkpoint that is not whole is never "no evidence" ----


def _edit(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


LAYER = "model.layers.0.mlp.up_proj.weight"
NOT_WHOLE = {
    "missing": lambda t: t.pop(LAYER),
    "renamed": lambda t: t.__setitem__("model.layers.0.mlp.up.weight", t.pop(LAYER)),
    "mismatched": lambda t: t.__setitem__(LAYER, t[LAYER][1:].clone()),
    "unexpected": lambda t: t.__setitem__("model.layers.1.mlp.up_proj.weight", t[LAYER].clone()),
    "not finite": lambda t: t[LAYER].fill_(float("nan")),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_a_suspect_that_is_not_whole_is_refused(run, world, copy, name):
    _edit(copy, NOT_WHOLE[name])
    _assert_stops(run, 65, *_check(world, copy))


@pytest.mark.parametrize("option", ["--reference", "--innocent"])
def test_a_reference_that_is_not_whole_is_refused(run, world, copy, option):
    _edit(copy, NOT_WHOLE["missing"])
    _assert_stops(run, 65, *_check(world, "guilty", option, copy))


def test_twins_of_a_model_that_is_not_whole_are_refused(run, world, copy):
    _edit(copy, NOT_WHOLE["missing"])
    _assert_stops(run, 65, *_check(world, copy, "--twins", world.folder / "twins.jsonl"))


def test_a_model_that_overflows_while_it_reads_is_refused(run, world, copy):
    """Every weight is finite; what comes of them is not."""
    _edit(copy, lambda t: t["lm_head.weight"].fill_(3e38))
    _assert_stops(run, 65, *_check(world, copy))


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused(run, world, tmp_path):
    _model(tmp_path / "small", world.folder / "tokenizer.json", 1, WORDS - 3)
    _assert_stops(run, 78, *_check(world, tmp_path / "small"))


# ---- the same tokenizer in other bytes ----


def _resave(path):
    """As a fine-tuning tool saves it: other bytes, an empty post-processor, a length."""
    document = json.loads(path.read_text())
    document["post_processor"] = {"type": "Sequence", "processors": []}
    document["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1))


def test_a_suspect_whose_tokenizer_was_saved_again(run, world, copy):
    code, before, _ = run(*_check(world, "guilty", "--json"))
    _resave(copy / "tokenizer.json")
    for option in ((), ("--other-tokenizer",)):
        found, after, err = run(*_check(world, copy, "--json", *option))
        assert (found, code) == (1, 1), err
        assert json.loads(after)["log10_p"] == json.loads(before)["log10_p"]


def test_the_option_takes_a_tokenizer_that_was_saved_again(run, world, tmp_path):
    path = tmp_path / "tokenizer.json"
    shutil.copy(world.folder / "tokenizer.json", path)
    _resave(path)
    logprobs = ("--logprobs", world.folder / "logprobs.jsonl", "--placebo-keys", "60", "--json")
    found = [
        run("check", *_keys(world), *logprobs, *option) for option in ((), ("--tokenizer", path))
    ]
    assert [code for code, _, _ in found] == [1, 1]
    assert found[0][1] == found[1][1]


def test_a_tokenizer_with_one_other_id_is_refused_and_the_way_out_is_named(run, world, copy):
    path = copy / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    path.write_text(json.dumps(document))
    code, out, err = run(*_check(world, copy))
    assert (code, out) == (78, "")
    assert "another vocabulary" in " ".join(err.split())
    assert "--other-tokenizer" in " ".join(err.split())


# ---- logprobs whose tokens are numbers ----


def _number(world, name, with_text):
    """The logprobs as a vLLM server with --return-tokens-as-token-ids answers."""

    def token(identifier, value):
        text = f"token_id:{identifier}"
        return {"token": text, "bytes": list(text.encode()), "logprob": value}

    tokenizer = Tokenizer.from_file(str(world.folder / "tokenizer.json"))
    path = world.folder / name
    with path.open("w") as file:
        for line in (world.folder / "logprobs.jsonl").read_text().splitlines():
            record = json.loads(line)
            ids, lists = record["output_token_ids"], record["top_logprobs"]
            content = [
                {**token(i, -9999.0), "top_logprobs": [token(*pair) for pair in listed]}
                for i, listed in zip(ids, lists, strict=True)
            ]
            text = {"output": tokenizer.decode(ids)} if with_text else {}
            file.write(json.dumps({"logprobs": {"content": content}, **text}) + "\n")
    return path


def test_numbers_of_tokens_are_read_where_the_text_shows_whose_they_are(run, world):
    fixed = ("check", *_keys(world), "--placebo-keys", "60", "--json", "--logprobs")
    code, out, err = run(*fixed, _number(world, "numbers.jsonl", with_text=True))
    assert code == 1, err
    source = json.loads(out)["inputs"]["outputs"]["source"]
    assert source["positions_kept"] == 1
    assert (source["records"], source["records_silent"]) == (40, 0)


def test_numbers_of_tokens_without_a_text_are_refused_by_name(run, world):
    path = _number(world, "bare.jsonl", with_text=False)
    code, out, err = run("check", *_keys(world), "--logprobs", path)
    assert (code, out) == (65, "")
    assert "--return-tokens-as-token-ids" in " ".join(err.split())
