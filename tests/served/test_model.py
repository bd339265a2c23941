"""A model is loaded whole or refused by name: broken checkpoints and harmless ones."""

import json
import shutil

import pytest

from provenance.errors import ConfigurationMismatchError, DataError, ProvenanceError, StorageError
from provenance.storage.checkpoint import check_checkpoint, find_weights
from provenance.suspect.models.model_files import describe_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from provenance.served.model import load_model  # noqa: E402

SIZE = 40
DOWN = "model.layers.1.mlp.down_proj.weight"


def _save(folder, **options):
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        **options,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    _save(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(sound, tmp_path / "model")


def _edit(folder, change):
    """Change the tensors of the one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _configure(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _shard(folder):
    """The same weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for number, (name, tensor) in enumerate(tensors.items()):
        names[sorted(names)[number % 2]][name] = tensor
    for file, own in names.items():
        save_file(own, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, own in names.items() for name in own}
    document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    return weight_map


def _set(value):
    def change(tensors):
        tensors[DOWN][0, 0] = value

    return change


def _rename(tensors):
    tensors["model.layers.1.mlp.down.weight"] = tensors.pop(DOWN)


BROKEN_TENSORS = {
    "missing": (lambda t: t.pop(DOWN), DataError, "missing"),
    "missing output layer": (lambda t: t.pop("lm_head.weight"), DataError, "missing"),
    "missing embedding": (lambda t: t.pop("model.embed_tokens.weight"), DataError, "missing"),
    "missing norm": (lambda t: t.pop("model.norm.weight"), DataError, "missing"),
    "renamed": (_rename, DataError, "missing"),
    "other prefix": (
        lambda t: [t.__setitem__(f"module.{n}", t.pop(n)) for n in list(t)],
        DataError,
        "missing",
    ),
    "empty": (lambda t: t.clear(), DataError, "missing"),
    "unexpected": (
        lambda t: t.__setitem__("model.layers.2.mlp.down_proj.weight", t[DOWN].clone()),
        DataError,
        "not the model's",
    ),
    "adapter left in": (
        lambda t: t.__setitem__("model.layers.1.mlp.down_proj.lora_A.weight", t[DOWN].clone()),
        DataError,
        "not the model's",
    ),
    "mismatched": (lambda t: t.__setitem__(DOWN, t[DOWN][:-1].clone()), DataError, "another shape"),
    "emptied": (lambda t: t.__setitem__(DOWN, t[DOWN][:0].clone()), DataError, "another shape"),
    "not a number": (_set(float("nan")), DataError, "NaN or infinity"),
    "infinite": (_set(float("-inf")), DataError, "NaN or infinity"),
    "zeros": (lambda t: t[DOWN].zero_(), DataError, "all zeros"),
    "int8": (lambda t: t.__setitem__(DOWN, t[DOWN].to(torch.int8)), DataError, "is I8"),
    "float8": (
        lambda t: t.__setitem__(DOWN, t[DOWN].to(torch.float8_e4m3fn)),
        DataError,
        "is F8_E4M3",
    ),
    "bool": (lambda t: t.__setitem__(DOWN, t[DOWN] > 0), DataError, "is BOOL"),
}


def _assert_refused(folder, error, said):
    with pytest.raises(error) as raised:
        load_model(folder)
    message = str(raised.value)
    assert said in message, message
    assert message.startswith(str(folder)), message
    assert len(message.splitlines()) == 1
    assert len(message) < 600


@pytest.mark.parametrize("name", BROKEN_TENSORS)
def test_broken_tensors(folder, name, capfd):
    change, error, said = BROKEN_TENSORS[name]
    _edit(folder, change)
    _assert_refused(folder, error, said)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"num_hidden_layers": 1}, DataError, "not the model's"),
        ({"num_hidden_layers": 3}, DataError, "missing"),
        ({"vocab_size": SIZE + 8}, DataError, "another shape"),
        ({"vocab_size": SIZE - 8}, DataError, "another shape"),
        ({"hidden_size": 32}, DataError, "another shape"),
        ({"attention_bias": True}, DataError, "missing"),
        ({"model_type": "gpt2"}, DataError, "missing"),
        ({"model_type": "bert"}, DataError, "missing"),
        ({"model_type": "t5"}, StorageError, "must be a transformers model"),
        ({"model_type": "mystery"}, StorageError, "must be a transformers model"),
        ({"hidden_size": "wide"}, StorageError, "must be a transformers model"),
        ({"num_attention_heads": 0}, StorageError, "must be a transformers model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, DataError, "quantised"),
        ({"quantization_config": {"quant_method": "fp8"}}, DataError, "quantised"),
        ({"compression_config": {"format": "pack"}}, DataError, "compressed"),
        ({"transformers_weights": "other.safetensors"}, DataError, "another file"),
        (
            {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}, "model_type": "evil"},
            DataError,
            "code of its own",
        ),
        # transformers would read its own class here, which need not be what the code computes
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, DataError, "code of its own"),
    ],
)
def test_configurations_that_are_not_of_the_tensors(folder, values, error, said):
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    _configure(folder, **values)
    _assert_refused(folder, error, said)
    assert not (folder / "ran").exists()


# ---- which files ----


def test_shards_are_one_model(folder, sound):
    whole = load_model(sound).state_dict()
    _shard(folder)
    found = load_model(folder).state_dict()
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def _beside(folder, name):
    shutil.copy(folder / "model.safetensors", folder / name)


def _rewrite_index(folder, change):
    path = folder / "model.safetensors.index.json"
    document = json.loads(path.read_text())
    change(document["weight_map"])
    path.write_text(json.dumps(document))


def _lose_shard(folder):
    _shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _forget_shard(folder):
    _shard(folder)
    first = "model-00001-of-00002.safetensors"
    _rewrite_index(folder, lambda m: [m.pop(n) for n in list(m) if m[n] != first])


def _forget_and_delete_shard(folder):
    _forget_shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _name_others(folder):
    _shard(folder)
    _rewrite_index(folder, lambda m: m.update(dict.fromkeys(m, "model-00001-of-00009.safetensors")))


def _leave_stale(folder):
    _beside(folder, "old.bin")
    _shard(folder)
    (folder / "old.bin").rename(folder / "model.safetensors")


def _reach_out(folder):
    _shard(folder)
    shutil.copytree(folder, folder.parent / "elsewhere")
    name = "../elsewhere/model-00001-of-00002.safetensors"
    _rewrite_index(folder, lambda m: m.update(dict.fromkeys(m, name)))


def _store_twice(folder):
    weight_map = _shard(folder)
    other = ({*weight_map.values()} - {weight_map[DOWN]}).pop()
    path = folder / other
    tensors = load_file(path)
    tensors[DOWN] = torch.ones(16, 24)
    save_file(tensors, path, metadata={"format": "pt"})


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _only_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _empty(folder):
    for path in folder.iterdir():
        path.unlink()


def _index_of(text):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def _adapter_beside(folder):
    _beside(folder, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def _adapter_only(folder):
    _adapter_beside(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()


FOLDERS = {
    "lost shard": (_lose_shard, StorageError),
    "shard that the index does not name": (_forget_shard, DataError),
    "shard that is gone from the index too": (_forget_and_delete_shard, DataError),
    "index of other files": (_name_others, StorageError),
    "stale file beside an index": (_leave_stale, DataError),
    "index that reaches out of the folder": (_reach_out, DataError),
    "tensor stored twice": (_store_twice, DataError),
    "truncated": (_truncate, StorageError),
    "pickle only": (_only_pickle, StorageError),
    "empty folder": (_empty, StorageError),
    "index is empty": (_index_of('{"weight_map": {}}'), DataError),
    "index is a list": (_index_of("[]"), DataError),
    "index maps to numbers": (_index_of('{"weight_map": {"a": 1}}'), DataError),
    "index maps to a pickle": (_index_of('{"weight_map": {"a": "a.bin"}}'), DataError),
    "index is no JSON": (_index_of("{"), DataError),
    "another variant beside": (lambda f: _beside(f, "model.fp16.safetensors"), DataError),
    "adapter beside its base": (_adapter_beside, DataError),
    "adapter weights alone beside": (lambda f: _beside(f, "adapter_model.safetensors"), DataError),
    "adapter as a pickle": (lambda f: (f / "adapter_model.bin").write_bytes(b"x"), DataError),
    "adapter only": (_adapter_only, DataError),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_do_not_hold_one_whole_model(folder, name):
    change, error = FOLDERS[name]
    change(folder)
    _assert_refused(folder, error, "")


def test_an_adapter_is_told_how_to_become_a_model(folder):
    _adapter_beside(folder)
    with pytest.raises(DataError, match="merge_and_unload"):
        find_weights(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError):
        load_model(tmp_path / "nowhere")


# ---- harmless ones ----


def test_tied_weights_are_no_fault(tmp_path):
    model = _save(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    found = load_model(tmp_path)
    assert torch.equal(found.lm_head.weight, model.model.embed_tokens.weight)
    # stored all the same, as some tools do
    _edit(
        tmp_path,
        lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone()),
    )
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.model.embed_tokens.weight)


def test_an_output_layer_of_its_own_is_read_although_the_configuration_ties_it(tmp_path):
    _save(tmp_path, tie_word_embeddings=True)
    other = torch.full((SIZE, 16), 0.25)
    _edit(tmp_path, lambda t: t.__setitem__("lm_head.weight", other))
    assert torch.equal(load_model(tmp_path).lm_head.weight, other)


def test_constants_of_old_checkpoints_are_no_fault(folder):
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    _edit(folder, lambda t: t.update({name.format(i): torch.ones(4) for i in range(2)}))
    load_model(folder)


def test_the_masks_of_an_old_gpt2_are_no_fault(tmp_path):
    torch.manual_seed(5)
    config = transformers.GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    mask = torch.ones(1, 1, 8, 8).tril()
    for kind in (torch.uint8, torch.bool, torch.float32):
        _edit(tmp_path, lambda t, k=kind: t.__setitem__("transformer.h.0.attn.bias", mask.to(k)))
        load_model(tmp_path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_every_width(folder, kind):
    _edit(folder, lambda t: [t.__setitem__(n, t[n].to(kind)) for n in t])
    load_model(folder)


def test_a_copy_under_the_names_of_mistral_is_not_read(folder):
    _beside(folder, "consolidated.safetensors")
    assert [path.name for path in find_weights(folder)] == ["model.safetensors"]
    load_model(folder)


def test_a_configuration_with_infinity_is_read(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"some_limit": Infinity,', 1))
    check_checkpoint(folder)


def test_hashed_is_what_is_loaded(folder, sound):
    (folder / "tokenizer.json").write_text("{}")
    assert list(describe_model(folder)["weights"]) == ["model.safetensors"]
    _beside(folder, "consolidated.safetensors")
    assert list(describe_model(folder)["weights"]) == ["model.safetensors"]
    (folder / "consolidated.safetensors").unlink()
    weight_map = _shard(folder)
    assert set(describe_model(folder)["weights"]) == set(weight_map.values())
    shutil.copy(sound / "model.safetensors", folder)
    with pytest.raises(ProvenanceError, match="stale"):
        describe_model(folder)


def test_a_tokenizer_with_more_tokens_than_the_model():
    from provenance.served.model import check_rows

    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
            num_attention_heads=1,
        )
    )  # fmt: skip
    assert check_rows(model, 8, "folder") == 8
    with pytest.raises(ConfigurationMismatchError, match="each of the 9 tokens"):
        check_rows(model, 9, "folder")


# ---- a model that looks ahead reads off what the coins chose ----


def _save_bert(folder, **options):
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        **options,
    )
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_model_that_sees_what_it_predicts_is_refused(tmp_path):
    _assert_refused(_save_bert(tmp_path), DataError, "sees what comes after")


def test_the_same_model_as_a_decoder_is_read(tmp_path):
    load_model(_save_bert(tmp_path, is_decoder=True))


def test_a_model_of_overflowing_numbers_is_left_to_the_reading(folder):
    """Finite weights whose logits are not: said when it reads, not taken for looking ahead."""
    _edit(folder, lambda t: t["lm_head.weight"].fill_(3e38))
    load_model(folder)


# ---- other architectures, as they are saved ----

SMALL = {
    "vocab_size": SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
KEYS_AND_VALUES = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
WITHOUT_PADDING = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
ARCHITECTURES = {
    "Mistral": KEYS_AND_VALUES,
    "Qwen2": {**SMALL, "num_key_value_heads": 1},
    "Qwen3": KEYS_AND_VALUES,
    "Gemma": KEYS_AND_VALUES,
    "Gemma2": KEYS_AND_VALUES,
    "Gemma3": {**KEYS_AND_VALUES, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi": SMALL,
    "Phi3": {**SMALL, **WITHOUT_PADDING},
    "GPTNeoX": SMALL,
    "Mixtral": {**KEYS_AND_VALUES, "num_local_experts": 2},
    "Olmo2": {**SMALL, **WITHOUT_PADDING},
    "Starcoder2": {**SMALL, "num_key_value_heads": 1},
    "OPT": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
    "Bloom": {"vocab_size": SIZE, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Falcon": {**SMALL, "alibi": False, **WITHOUT_PADDING},
    "Mamba": {"vocab_size": SIZE, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_honest_models_of_other_architectures_are_read(tmp_path, name):
    torch.manual_seed(5)
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**ARCHITECTURES[name])
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config)
    model.save_pretrained(tmp_path)
    found = load_model(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
