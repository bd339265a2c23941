"""Commands under somebody else's scheme: options, secrets, exit codes."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

import provenance as pv
from provenance.marks.foreign import make_foreign
from tests.marks.foreign.lab import padded_windows
from tests.world.foreign import make_foreign_world, serve
from tests.world.synthetic import (
    WORDS,
    Teacher,
    decode,
    learn,
    save_tokenizer,
    write_outputs,
)

KEY = 1_234_567_891
CONFIG = {"greenlist_ratio": 0.25, "bias": 2.0, "hashing_key": KEY, "seeding_scheme": "lefthash"}


def private(path, content):
    path.touch(mode=0o600)
    path.write_text(content)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A log marked under the key of CONFIG, outputs of a student and of a stranger."""
    folder = tmp_path_factory.mktemp("foreign")
    teacher = Teacher.draw(0)
    made = make_foreign("hf-lefthash", CONFIG, None, WORDS)
    world = make_foreign_world(folder, teacher, "hf-lefthash", 1, 150, 60, made)
    rng = np.random.default_rng(1)
    write_outputs(folder / "student.jsonl", learn(world, rng, 150, 60))
    write_outputs(folder / "stranger.jsonl", list(teacher.sample(rng, 60, 60)))
    (folder / "marked.txt").write_text(decode(world.served[:8].ravel()))
    (folder / "plain.txt").write_text(decode(teacher.sample(rng, 8, 60).ravel()))
    private(folder / "config.json", json.dumps(CONFIG))
    without = {name: value for name, value in CONFIG.items() if name != "hashing_key"}
    (folder / "public.json").write_text(json.dumps(without))
    private(folder / "key", f"{KEY}\n")
    world.index.close()
    return folder


def scheme(place, config="config.json", *more):
    return (
        *("--scheme", "hf-lefthash", "--scheme-config", place / config),
        *("--tokenizer", place / "tokenizer.json", *more),
    )


SIZE = ("--vocabulary-size", str(WORDS))


def test_the_whole_story_with_the_key_in_a_file_of_its_own(run, place, tmp_path):
    secret = ("--scheme-key-file", place / "key")
    index = tmp_path / "index"
    code, out, err = run(
        *("index", "build", place / "served.jsonl", "-o", index),
        *scheme(place, "public.json", *SIZE, *secret),
    )
    assert code == 0, err
    said = out + err
    code, out, err = run(
        *("check", place / "student.jsonl", "--index", index, "-o", tmp_path / "report"),
        *scheme(place, "public.json", *secret),
        *("--innocent", place / "stranger.jsonl", "--placebo-keys", "50"),
    )
    assert code == 1, err
    assert "EVIDENCE" in out
    assert "Caveat of this mark" in out
    said += out + err
    assert run("evidence", "new-signing-key", tmp_path / "signing.key")[0] == 0
    code, out, err = run(
        "evidence", "sign", tmp_path / "report", "--signing-key", tmp_path / "signing.key"
    )
    assert code == 0, err
    code, out, err = run("verify", tmp_path / "report")
    assert code == 0, out + err
    assert "not possible" in out  # its coins are those of another scheme's key
    said += out + err
    code, out, err = run(
        *("check", place / "stranger.jsonl", "--index", index, "--placebo-keys", "50", "--json"),
        *scheme(place, "public.json", *secret),
    )
    verdict = json.loads(out)
    assert code in (0, 3), err
    assert verdict["conclusion"] == {0: "no evidence", 3: "inconclusive"}[code]
    assert verdict["controls_passed"]
    assert verdict["log10_p"] > -3
    assert "no control slot" in verdict["caveat"]
    said += out + err
    written = "".join(
        path.read_text() for path in (*index.glob("*.json"), tmp_path / "report" / "verdict.json")
    )
    assert str(KEY) not in said + written


def test_library_and_command_give_the_same_bytes(run, place, tmp_path):
    index, secret = tmp_path / "index", ("--scheme-key-file", place / "key")
    options = scheme(place, "public.json", *secret)
    code, _, err = run("index", "build", place / "served.jsonl", "-o", index, *options, *SIZE)
    assert code == 0, err
    more = ("--innocent", place / "stranger.jsonl", "--placebo-keys", "50", "--json")
    code, out, err = run("check", place / "student.jsonl", "--index", index, *options, *more)
    mark = pv.read_foreign_mark(
        "hf-lefthash",
        place / "public.json",
        place / "tokenizer.json",
        key_file=place / "key",
        vocabulary_size=WORDS,
    )
    pv.build_index(place / "served.jsonl", tmp_path / "again", mark)
    with pv.open_case(mark, tmp_path / "again") as case:
        verdict = case.check(
            place / "student.jsonl", innocents=place / "stranger.jsonl", placebo_keys=50
        )
    assert code == verdict.exit_code, err
    assert json.dumps(json.loads(out)) == json.dumps(verdict.to_json())
    verdict.save(tmp_path / "bundle", pairs=False)
    assert pv.verify(tmp_path / "bundle", unsigned=True).passed


def test_detect_finds_the_marked_text_only(run, place):
    for name, expected in (("marked.txt", 1), ("plain.txt", 0)):
        code, out, err = run("detect", place / name, *scheme(place, "config.json", *SIZE))
        assert code == expected, err
        assert "Caveat: " in out
        assert str(KEY) not in out + err
    code, out, _ = run(
        "detect", place / "marked.txt", "--json", *scheme(place, "config.json", *SIZE)
    )
    assert json.loads(out)["texts"][0]["marked"]
    assert "one token seeds" in json.loads(out)["texts"][0]["caveat"]


def test_the_key_may_come_from_a_command(run, place):
    command = ("--scheme-key-cmd", f"cat {place / 'key'}")
    code, _, err = run(
        "detect", place / "marked.txt", *scheme(place, "public.json", *SIZE, *command)
    )
    assert code == 1, err
    code, _, err = run(
        *("detect", place / "marked.txt"),
        *scheme(place, "public.json", *SIZE, "--scheme-key-cmd", "false"),
    )
    assert (code, err.count("\n")) == (74, 1)


def test_a_configuration_with_a_key_that_others_can_read_is_refused(run, place, tmp_path):
    exposed = private(tmp_path / "config.json", json.dumps(CONFIG))
    exposed.chmod(0o644)
    code, _, err = run("detect", place / "plain.txt", *scheme(place, exposed, *SIZE))
    assert (code, err.count("\n")) == (77, 1)
    assert str(KEY) not in err
    key = private(tmp_path / "key", str(KEY))
    key.chmod(0o640)
    more = (*SIZE, "--scheme-key-file", key)
    assert run("detect", place / "plain.txt", *scheme(place, "public.json", *more))[0] == 77


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({**CONFIG, "device": "cuda:0"}, 78),
        ({**CONFIG, "hashing_key": -3}, 2),
        ({**CONFIG, "greenlist_ration": 0.5}, 2),
        ({**CONFIG, "vocab_size": WORDS + 1}, 78),
        ([CONFIG], 65),
        ("{", 65),
    ],
    ids=["gpu", "key", "typo", "size", "list", "broken"],
)
def test_a_configuration_that_cannot_be_used_says_so_in_one_line(
    run, place, tmp_path, config, code
):
    text = config if isinstance(config, str) else json.dumps(config)
    path = private(tmp_path / "config.json", text)
    found, out, err = run("detect", place / "plain.txt", *scheme(place, path, *SIZE))
    assert (found, err.count("\n"), out) == (code, 1, ""), err
    assert str(KEY) not in err


def test_a_key_that_is_no_number_is_not_quoted(run, place, tmp_path):
    for content in ("hunter2", '{"a": 1}', "[1, 2.5]", "true", "[]"):
        key = private(tmp_path / "key", content)
        code, _, err = run(
            *("detect", place / "plain.txt"),
            *scheme(place, "public.json", *SIZE, "--scheme-key-file", key),
        )
        assert code == 65
        assert "hunter2" not in err
    other = private(tmp_path / "key", "17")
    more = (*SIZE, "--scheme-key-file", other)
    code, _, err = run("detect", place / "plain.txt", *scheme(place, "config.json", *more))
    assert code == 78  # two keys that differ
    assert str(KEY) not in err


def test_wrong_combinations_of_options_are_usage_errors(run, place, tmp_path):
    text, keys = place / "plain.txt", ("--keys", tmp_path)
    for words in (
        ("detect", text),
        ("detect", text, *keys, *scheme(place)),
        ("detect", text, *keys, *SIZE),
        ("detect", text, "--scheme", "hf-lefthash", "--scheme-config", place / "config.json"),
        ("detect", text, *scheme(place)),  # the size of the vocabulary is missing
        ("detect", text, "--scheme", "sbw", *scheme(place)[2:]),
    ):
        code, out, err = run(*words)
        assert (code, err.count("\n"), out) == (2, 1, ""), (words, err)


def test_an_index_of_another_key_and_a_scheme_without_a_test_are_refused(run, place, tmp_path):
    other = private(tmp_path / "other.json", json.dumps({**CONFIG, "hashing_key": 5}))
    code, _, err = run(
        *("check", place / "student.jsonl", "--index", place / "index"), *scheme(place, other)
    )
    assert (code, err.count("\n")) == (78, 1)
    config = {"secret_key": 5, "watermark_type": "synthid"}
    seal = private(tmp_path / "seal.json", json.dumps(config))
    code, _, err = run(
        *("detect", place / "plain.txt", "--scheme", "textseal-synthid"),
        *("--scheme-config", seal, "--tokenizer", place / "tokenizer.json"),
    )
    assert (code, err.count("\n")) == (78, 1)
    assert "valid test" in err


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(run, place, tmp_path):
    save_tokenizer(tmp_path / "tokenizer.json")
    code, _, err = run(
        "detect", place / "plain.txt", *scheme(place, "config.json", "--vocabulary-size", "100")
    )
    assert (code, err.count("\n")) == (78, 1)


def test_a_suspects_tokenizer_that_was_saved_again_is_the_marks(place, tmp_path):
    from provenance.errors import ConfigurationMismatchError
    from provenance.marks.foreign.reading import read_foreign_mark

    own = place / "tokenizer.json"
    mark = read_foreign_mark("hf-lefthash", place / "config.json", own, vocabulary_size=WORDS)
    document = json.loads(own.read_text())
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**document, "padding": None, "post_processor": None}, indent=4))
    mark.public.check_tokenizer(path)
    document["model"]["vocab"].pop("w1")
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationMismatchError):
        mark.public.check_tokenizer(path)


# --- detect: counts, pools, blank and short texts ------------------------------------------------


def lines(path, texts):
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    return path


def test_detect_prints_n_and_s_that_the_originals_detector_counts_too(run, place, tmp_path):
    """transformers' own detector, told to count every n-gram once, sees the same n and S."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    text = (place / "marked.txt").read_text()
    ids = Tokenizer.from_file(str(place / "tokenizer.json")).encode(text).ids
    model = SimpleNamespace(bos_token_id=WORDS, is_encoder_decoder=False, vocab_size=WORDS)
    config = {**CONFIG, "context_width": 1}
    detector = transformers.WatermarkDetector(model, "cpu", config, ignore_repeated_ngrams=True)
    theirs = detector(torch.tensor([ids]), return_dict=True)
    command = ("detect", place / "marked.txt", *scheme(place, "config.json", *SIZE))
    code, out, _ = run(*command, "--json")
    best = json.loads(out)["texts"][0]["strongest"]
    assert code == 1
    # pairs after token 0 are the same under every key: the one thing that is counted otherwise
    dead = {(a, b) for a, b in itertools.pairwise(ids) if a == 0}
    assert best["coins"] + len(dead) == int(theirs.num_tokens_scored[0])
    assert abs(best["score"] - int(theirs.num_green_tokens[0])) <= len(dead)
    assert best["original_score"] is None
    out = run(*command)[1]
    assert f" {best['coins']} " in out
    assert f" {best['score']} " in out
    assert "p corrected for 1 key, all windows; alpha 0.0001 over 1 text." in out


def test_a_gumbel_scheme_shows_the_originals_sum_and_not_our_steps(run, place, tmp_path):
    config = private(tmp_path / "vllm.json", json.dumps({"key": KEY, "context_width": 4}))
    options = ("--scheme", "vllm-gumbel", "--scheme-config", config)
    options += ("--tokenizer", place / "tokenizer.json")
    code, out, _ = run("detect", place / "plain.txt", *options, "--json")
    best = json.loads(out)["texts"][0]["strongest"]
    assert code == 0
    made = make_foreign("vllm-gumbel", {"key": KEY, "context_width": 4})
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    ids = np.array(tokenizer.encode((place / "plain.txt").read_text()).ids, dtype=np.uint32)
    contexts, tokens = padded_windows(made, ids)
    first = np.unique(np.c_[contexts, tokens], axis=0, return_index=True)[1]
    wanted = -np.log1p(-made.uniforms(contexts[first], tokens[first]).astype(float)).sum()
    assert best["coins"] == first.size
    assert best["original_score"] == pytest.approx(wanted)
    assert best["score"] / 4 < wanted < (best["score"] + first.size) / 4
    assert f"{wanted:.3f}" in run("detect", place / "plain.txt", *options)[1]


def test_texts_too_short_alone_are_found_in_a_pool_where_nothing_counts_twice(run, place, tmp_path):
    words = (place / "marked.txt").read_text().split()
    texts = [" ".join(words[i : i + 5]) for i in range(0, 200, 5)]
    path = lines(tmp_path / "short.jsonl", texts)
    options = scheme(place, "config.json", *SIZE)
    code, out, _ = run("detect", path, *options)
    assert code == 3
    assert out.count("too short to say") == len(texts)
    code, out, _ = run("detect", path, "--pool", *options, "--json")
    found = json.loads(out)
    assert code == 1
    assert found["pooled"]["marked"]
    assert found["pooled"]["log10_p"] < -20
    assert set(found["texts"][0]) == {"origin", "tokens", "coins", "score", "original_score"}
    pooled = found["pooled"]["strongest"]
    assert pooled["coins"] <= sum(text["coins"] for text in found["texts"])
    # the same texts again, under other names or in another order, add nothing
    again = lines(tmp_path / "again.jsonl", [*texts[::-1], *texts])
    _, out, _ = run("detect", again, "--pool", *options, "--json")
    twice = json.loads(out)["pooled"]["strongest"]
    assert (twice["coins"], twice["score"]) == (pooled["coins"], pooled["score"])
    code, out, _ = run("detect", path, "--pool", *options)
    assert code == 1
    assert f"all {len(texts)} together" in out
    assert "alpha 0.0001 over one test" in out


def test_an_innocent_pool_is_not_accused(run, place, tmp_path):
    words = (place / "plain.txt").read_text().split()
    path = lines(tmp_path / "p.jsonl", [" ".join(words[i : i + 12]) for i in range(0, 480, 12)])
    code, out, _ = run("detect", path, "--pool", *scheme(place, "config.json", *SIZE))
    assert code == 0
    assert "no mark found" in out


def test_blank_texts_are_left_out_and_cost_no_level(run, place, tmp_path):
    options = scheme(place, "config.json", *SIZE, "--json")
    marked = (place / "marked.txt").read_text()
    alone = json.loads(run("detect", lines(tmp_path / "a.jsonl", [marked]), *options)[1])
    path = lines(tmp_path / "b.jsonl", ["", " \n\t", marked, "\u00a0", ""])
    code, out, _ = run("detect", path, *options)
    found = json.loads(out)
    assert code == 1
    assert found["blank"] == 4
    assert [{**text, "origin": ""} for text in found["texts"]] == [
        {**text, "origin": ""} for text in alone["texts"]
    ]
    out = run("detect", path, *options[:-1])[1]
    assert "4 blank texts left out." in out
    assert "for 0 keys" not in out
    for content in ("", "\n \n"):
        blank = tmp_path / "blank.txt"
        blank.write_text(content)
        code, out, err = run("detect", blank, *options)
        assert (code, out, err.count("\n")) == (65, "", 1)
        assert "not blank" in err


def test_a_text_shorter_than_a_window_is_counted_as_a_key_that_was_tried(run, place, tmp_path):
    text = tmp_path / "word.txt"
    text.write_text((place / "marked.txt").read_text().split()[0])
    code, out, _ = run("detect", text, *scheme(place, "config.json", *SIZE))
    assert code == 3
    assert "p corrected for 1 key," in out
    assert "too short to say" in out


# --- configurations: comments, the hash of 2025, tables from a GPU -------------------------------


def test_a_configuration_with_comments_is_read_and_its_errors_name_the_line(run, place, tmp_path):
    commented = json.dumps(CONFIG, indent=1).replace("{", "{ // transformers, as served\n", 1)
    path = private(tmp_path / "config.json", f"# ours\n{commented} /* end */\n")
    assert run("detect", place / "marked.txt", *scheme(place, path, *SIZE))[0] == 1
    path.write_text(f"# ours\n{commented[:-1]}\n, }}")
    code, _, err = run("detect", place / "marked.txt", *scheme(place, path, *SIZE))
    assert (code, err.count("\n")) == (65, 1)
    assert "line 9" in err
    assert str(KEY) not in err


SYNTHID_KEYS = [(i * 7919 + 5) % 60000 for i in range(30)]


@pytest.fixture(scope="module")
def tournament(tmp_path_factory):
    """Text drawn by the original's tournament from the g-values of 2025, and an innocent's."""
    folder = tmp_path_factory.mktemp("synthid")
    save_tokenizer(folder / "tokenizer.json")
    config = {"ngram_len": 3, "keys": SYNTHID_KEYS, "context_history_size": 1024}
    made = make_foreign("synthid-text-2025", config)
    teacher, rng = Teacher.draw(0), np.random.default_rng(4)
    ids = teacher.sample(rng, 20, 2)
    for _ in range(58):
        probabilities = teacher.dense(ids[:, -2], ids[:, -1]).astype(np.float64)
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        every = np.tile(np.arange(WORDS, dtype=np.uint32), len(ids))
        contexts = np.repeat(ids[:, -2:], WORDS, axis=0)
        bits = made.g_values(np.ascontiguousarray(contexts), every)
        for layer in bits.reshape(len(ids), WORDS, -1).transpose(2, 0, 1):
            won = (layer * probabilities).sum(axis=1, keepdims=True)
            probabilities = (probabilities * (1 + layer - won)).clip(min=0)
        drawn = [rng.choice(WORDS, p=row / row.sum()) for row in probabilities]
        ids = np.c_[ids, np.array(drawn, dtype=np.uint32)]
    (folder / "marked.txt").write_text(decode(ids.ravel()))
    (folder / "plain.txt").write_text(decode(teacher.sample(rng, 20, 60).ravel()))
    private(folder / "config.json", json.dumps(config))
    table = {**config, "sampling_table_size": 65536, "sampling_table_seed": 0}
    private(folder / "table.json", json.dumps(table))
    return folder


def test_text_of_synthid_text_as_of_2025_is_found_and_only_under_its_own_hash(run, tournament):
    def found(name, config, text):
        code, out, err = run(
            *("detect", tournament / text, "--scheme", name, "--json"),
            *("--scheme-config", tournament / config),
            *("--tokenizer", tournament / "tokenizer.json"),
        )
        return code, json.loads(out)["texts"][0] if out else err

    code, text = found("synthid-text-2025", "config.json", "marked.txt")
    assert code == 1
    assert text["log10_p"] < -20
    assert "placebo keys' z" in text["caveat"]
    assert found("synthid-text-2025", "config.json", "plain.txt")[0] == 0
    # transformers' hash on this text finds nothing: so it must not be taken for it
    assert found("hf-synthid", "table.json", "marked.txt")[0] == 0
    code, err = found("hf-synthid", "config.json", "marked.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "synthid-text-2025" in err
    code, err = found("synthid-text-2025", "table.json", "marked.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "hf-synthid" in err


def test_a_table_that_a_gpu_drew_is_given_with_the_configuration(run, place, tmp_path):
    """Another table than the CPU's: found with it, not without it, refused where it is unsaid."""
    bits = np.random.default_rng(7).integers(0, 2, 65536).tolist()
    config = {"ngram_len": 3, "keys": SYNTHID_KEYS, "sampling_table_size": 65536, "device": "cuda"}
    given = {**config, "sampling_table": bits}
    made = make_foreign("hf-synthid", given)
    teacher = Teacher.draw(0)
    served = serve(teacher, made, np.random.default_rng(2), 10, 60)
    text = tmp_path / "gpu.txt"
    text.write_text(decode(served.ravel()))
    options = ("--tokenizer", place / "tokenizer.json", "--scheme", "hf-synthid", "--scheme-config")
    path = private(tmp_path / "given.json", json.dumps(given))
    code, _, err = run("detect", text, *options, path)
    assert code == 1, err
    path = private(tmp_path / "bare.json", json.dumps(config))
    code, _, err = run("detect", text, *options, path)
    assert (code, err.count("\n")) == (78, 1)
    assert "sampling_table" in err
    cpu = {**config, "device": "cpu", "sampling_table_seed": 0}
    path = private(tmp_path / "cpu.json", json.dumps(cpu))
    assert run("detect", text, *options, path)[0] == 0


@pytest.mark.parametrize(
    ("name", "config", "code", "said"),
    [
        ("markllm-kgw", {"algorithm_name": "SWEET", "hash_key": KEY}, 2, "markllm-ewd"),
        ("markllm-kgw", {"algorithm_name": "SIR"}, 78, "trained network"),
        ("markllm-exp", {"algorithm_name": "Unbiased", "key": KEY}, 78, "drawn at random"),
        ("markllm-sweet", {"algorithm_name": "SWEET"}, 2, "Use markllm-ewd"),
        ("radioactive-greenlist", {"seed": KEY}, 2, "gamma and ngram"),
        ("vllm-gumbel", {"algorithm": "sbw", "key": KEY}, 2, "vllm-sbw"),
        ("textseal-gumbel", {"watermark_type": "textseal"}, 2, "textseal-dual-key"),
    ],
)
def test_configurations_of_another_scheme_are_led_to_it(
    run, place, tmp_path, name, config, code, said
):
    path = private(tmp_path / "config.json", json.dumps(config))
    found, out, err = run(
        *("detect", place / "plain.txt", "--scheme", name, "--scheme-config", path),
        *("--tokenizer", place / "tokenizer.json", *SIZE),
    )
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert said in err
    assert str(KEY) not in err


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sglang-gumbel", {"key": "499602d3", "context_window": 4}),
        ("sglang-gumbel", {"key_b": "499602d3", "context_window": 4}),
        ("textseal-dual-key", {"secret_key_b": KEY, "watermark_type": "textseal"}),
        ("unigram", {"watermark_key": KEY, "fraction": 0.5}),
    ],
)
def test_every_field_that_holds_a_key_makes_the_file_private(run, place, tmp_path, name, config):
    path = private(tmp_path / "config.json", json.dumps(config))
    path.chmod(0o644)
    code, _, err = run(
        *("detect", place / "plain.txt", "--scheme", name, "--scheme-config", path),
        *("--tokenizer", place / "tokenizer.json", *SIZE),
    )
    assert (code, err.count("\n")) == (77, 1)
    assert str(KEY) not in err
    assert "499602d3" not in err


def test_what_differs_from_the_index_is_named(run, place, tmp_path):
    changed = {
        "gamma": ("config", {**CONFIG, "greenlist_ratio": 0.5}, SIZE),
        "key": ("key", {**CONFIG, "hashing_key": 5}, SIZE),
        "vocabulary_size": ("size", CONFIG, ("--vocabulary-size", str(WORDS + 1))),
    }
    for said, (name, config, size) in changed.items():
        path = private(tmp_path / f"{name}.json", json.dumps(config))
        code, _, err = run(
            *("check", place / "student.jsonl", "--index", place / "index"),
            *scheme(place, path, *size),
        )
        assert (code, err.count("\n")) == (78, 1)
        assert said in err.split("its ")[1].split(" is ")[0]
        assert "keyring's is" not in err
