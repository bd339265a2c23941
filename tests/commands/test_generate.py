"""`provenance generate` with a real (tiny, random) model: prompts, log, index, detection."""

import json
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import provenance as pv  # noqa: E402
from provenance.commands.app import main  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402


@pytest.fixture
def model_folder(tmp_path, tokenizer_path):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_path), pad_token="<pad>", eos_token="<end>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # the file that the keyring fixes, byte for byte
    (folder / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())
    return folder


def _run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["provenance", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


def test_generate_then_index_then_detect(
    tmp_path, tokenizer_path, model_folder, monkeypatch, capsys
):
    keys = tmp_path / "keys"
    make_keyring(keys, tokenizer_path)
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "import path", "labels": {"cohort": "b"}}, {"prompt": "def x():"}] * 6
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = tmp_path / "served.jsonl"
    code, _, err = _run(
        monkeypatch,
        capsys,
        *("generate", "--model", model_folder, "--prompts", prompts, "--keys", keys, "-o", log),
        *("--label", "week=2026-W17", "--label", "cohort=a", "--max-new-tokens", 60),
        *("--batch-size", 5, "--seed", 3),
    )
    assert code == 0, err
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) == 12
    assert {record["labels"]["cohort"] for record in records} == {"a", "b"}
    assert {record["labels"]["week"] for record in records} == {"2026-W17"}
    assert all(isinstance(record["marked"], bool) for record in records)
    assert len({record["response_id"] for record in records}) == 12
    assert any(record["marked"] for record in records)
    code, _, err = _run(
        monkeypatch, capsys, "index", "build", log, "--keys", keys, "-o", tmp_path / "index"
    )
    assert code == 0, err
    joined = tmp_path / "joined.jsonl"
    text = " ".join(record["text"] for record in records)
    joined.write_text(json.dumps({"text": text}) + "\n")
    code, out, _ = _run(monkeypatch, capsys, "detect", joined, "--keys", keys, "--json")
    assert code == 1
    assert {key["slot"] for key in json.loads(out)["texts"][0]["keys"]} >= {"global", "week"}


@pytest.mark.parametrize(
    ("content", "more", "code"),
    [
        ("", [], 65),
        ("{", [], 65),
        ('{"text": "x"}\n', [], 65),
        ('{"prompt": "x", "labels": ["a"]}\n', [], 65),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', [], 65),
        ('{"prompt": "x"}\n', ["--label", "week=1999-W01"], 78),
        ('{"prompt": "x"}\n', ["--label", "week"], 2),
        ('{"prompt": "x"}\n', ["--temperature", "0"], 2),
    ],
)
def test_bad_requests_write_nothing(
    tmp_path, tokenizer_path, model_folder, monkeypatch, capsys, content, more, code
):
    keys = tmp_path / "keys"
    make_keyring(keys, tokenizer_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(content)
    log = tmp_path / "served.jsonl"
    found, _, err = _run(
        monkeypatch,
        capsys,
        *("generate", "--model", model_folder, "--prompts", prompts, "--keys", keys, "-o", log),
        *more,
    )
    assert found == code, err
    assert err.strip().splitlines()[-1].startswith("provenance: ")
    assert not log.exists()


def test_another_models_tokenizer_is_a_mismatch(
    tmp_path, tokenizer_path, model_folder, monkeypatch, capsys
):
    keys = tmp_path / "keys"
    make_keyring(keys, tokenizer_path)
    path = model_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<pad>", "<pap>"))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    code, _, _ = _run(
        monkeypatch,
        capsys,
        *("generate", "--model", model_folder, "--prompts", prompts, "--keys", keys),
        *("-o", tmp_path / "served.jsonl"),
    )
    assert code == 78


def test_generate_into_a_folder_after_a_killed_run(
    tmp_path, tokenizer_path, model_folder, monkeypatch, capsys
):
    """What the killed run had finished stays, and the index reads both."""
    keys, served = tmp_path / "keys", tmp_path / "served"
    make_keyring(keys, tokenizer_path)
    served.mkdir()
    part = served / "served-00000.jsonl.part"
    part.write_text('{"response_id":"old","marked":true,"token_ids":[5,6,7,8,9]}\n{"resp')
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "def x():"}) + "\n")
    arguments = ("generate", "--model", model_folder, "--prompts", prompts, "--keys", keys)
    code, _, err = _run(monkeypatch, capsys, *arguments, "-o", served, "--max-new-tokens", 80)
    assert code == 0, err
    index = ("index", "build", served, "--keys", keys, "-o", tmp_path / "index")
    code, _, err = _run(monkeypatch, capsys, *index)
    assert code == 0, err
    assert "of 2" in err
    (tmp_path / "a.jsonl.part").write_bytes(part.read_bytes())
    code, _, err = _run(monkeypatch, capsys, *arguments, "-o", tmp_path / "a.jsonl")
    assert code == 0, err
    assert "a.recovered-1.jsonl" in err.replace("\n", "")


def test_a_model_that_is_not_whole_generates_nothing(
    tmp_path, tokenizer_path, model_folder, monkeypatch, capsys
):
    from safetensors.torch import load_file, save_file

    weights = load_file(model_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    keys = tmp_path / "keys"
    make_keyring(keys, tokenizer_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    code, _, err = _run(
        monkeypatch,
        capsys,
        *("generate", "--model", model_folder, "--prompts", prompts, "--keys", keys),
        *("-o", tmp_path / "served.jsonl"),
    )
    assert code == 65, err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "served.jsonl").exists()


def test_unmarked_responses_are_innocents_references_and_a_log(
    tmp_path, tokenizer_path, model_folder, run
):
    """The whole chain: marked log, unmarked answers, index of both, a check, the choice."""
    keys, index = tmp_path / "keys", tmp_path / "index"
    make_keyring(keys, tokenizer_path)
    prompts = tmp_path / "prompts.jsonl"
    asked = ["import path", "def x():", "the cat sat"]
    prompts.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    served, unmarked, suspect = (tmp_path / f"{n}.jsonl" for n in ("served", "plain", "suspect"))
    model = ("--model", model_folder, "--prompts", prompts, "--max-new-tokens", 40, "--n", 2)
    label = ("--label", "capability=code")
    code, _, err = run("generate", *model, "--keys", keys, *label, "--seed", 1, "-o", served)
    assert code == 0, err
    assert "6 responses, 6 of them marked" in err
    code, _, err = run("generate", *model, "--unmarked", *label, "--seed", 2, "-o", unmarked)
    assert code == 0, err
    assert "6 responses, 0 of them marked" in err
    records = [json.loads(line) for line in unmarked.read_text().splitlines()]
    assert [one["prompt"] for one in records] == [one for one in asked for _ in range(2)]
    assert {one["marked"] for one in records} == {False}
    assert len({one["output"] for one in records}) == 6
    more = ("--keys", keys, "--seed", 2, "-o", suspect)
    assert run("generate", *model, "--unmarked", *label, *more)[0] == 0
    again = [json.loads(line)["output"] for line in suspect.read_text().splitlines()]
    assert again == [one["output"] for one in records]  # the same seed
    assert run("generate", *model, "--unmarked", "--seed", 3, "-o", suspect)[0] == 0
    code, out, err = run("index", "build", served, unmarked, "--keys", keys, "-o", index)
    assert code == 0, err
    manifest, _ = pv.describe_index(index)
    assert (manifest["responses"], manifest["marked_responses"]) == (12, 6)
    code, out, err = run(
        *("check", suspect, "--keys", keys, "--index", index, "--placebo-keys", 50, "--json"),
        *("--innocent", unmarked, "--reference", "ngram", "--reference-text", unmarked),
    )
    assert code == 3, err  # far too little, but read and checked
    assert json.loads(out)["inputs"]["outputs"]["outputs"] == 6
    chosen = tmp_path / "chosen.jsonl"
    code, out, err = run(
        *("plan", "prompts", served, "--keys", keys, "--unmarked", unmarked, "-o", chosen),
        *("--count", 2, "--json"),
    )
    assert code == 0, err
    made = json.loads(out)
    assert (made["chosen"], made["candidates"], made["answered"]) == (2, 3, 2)
    assert {json.loads(line)["prompt"] for line in chosen.read_text().splitlines()} <= set(asked)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ((), 2),
        (("--unmarked", "--n", 0), 2),
        (("--unmarked", "--temperature", 0), 2),
        (("--unmarked", "-o", "served/"), 2),
    ],
)
def test_bad_unmarked_requests_write_nothing(tmp_path, model_folder, run, more, code):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "plain.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    base = ("--model", model_folder, "--prompts", prompts, "-o", output)
    found, _, err = run("generate", *base, *more)
    assert (found, err.count("\n")) == (code, 1), err
    assert not output.exists()


def test_another_models_tokenizer_is_a_mismatch_without_the_mark_too(
    tmp_path, tokenizer_path, model_folder, run
):
    make_keyring(tmp_path / "keys", tokenizer_path)
    path = model_folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<pad>", "<pap>"))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    base = ("--model", model_folder, "--prompts", tmp_path / "prompts.jsonl", "--unmarked")
    code, _, _ = run("generate", *base, "--keys", tmp_path / "keys", "-o", tmp_path / "o.jsonl")
    assert code == 78


def test_a_model_without_a_padding_token_serves_prompts_of_any_length(
    tmp_path, tokenizer_path, model_folder, run
):
    for path in model_folder.glob("*token*.json"):
        if path.name != "tokenizer.json":
            path.unlink()
    bare = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_path))
    bare.save_pretrained(tmp_path / "bare")
    config = tmp_path / "bare/tokenizer_config.json"
    (model_folder / config.name).write_bytes(config.read_bytes())
    make_keyring(tmp_path / "keys", tokenizer_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "import path"}\n{"prompt": "return"}\n')
    for more in (["--keys", tmp_path / "keys"], ["--unmarked"]):
        log = tmp_path / f"{more[0]}.jsonl"
        code, _, err = run(
            *("generate", "--model", model_folder, "--prompts", prompts, "-o", log),
            *("--max-new-tokens", "9", *more),
        )
        assert code == 0, err
        assert len(log.read_text().splitlines()) == 2
