"""The llama.cpp adapter: against a stand-in of `llama_cpp.Llama` always, against the real one where
llama-cpp-python and a model file (PROVENANCE_TEST_GGUF, with its tokenizer.json beside it or in
PROVENANCE_TEST_TOKENIZER) are there."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from provenance.embed import conformance
from provenance.embed.llama_cpp import LlamaCppWatermark, Sampling
from provenance.embed.sink import ResponseSink
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.worker import export_worker
from tests.embed.toy import ToyAdapter

OPTIONS = {"temperature": 0.8, "top_k": 50, "top_p": 0.98, "min_p": 0.001}


class StandIn:
    """What the adapter uses of `llama_cpp.Llama`, with the model of a table."""

    draft_model = None

    def __init__(self, table, end):
        self.logits = np.log(np.maximum(table, 1e-30)).astype(np.float32)
        self.end = end

    def token_eos(self):
        return self.end

    def generate(self, tokens, *, top_k, top_p, min_p, typical_p, temp, repeat_penalty,
                 logits_processor):  # fmt: skip
        assert (top_k, top_p, min_p, typical_p, temp, repeat_penalty) == (0, 1, 0, 1, 1, 1)
        ids = list(tokens)
        while True:
            # a strided view, as llama-cpp-python passes it
            data = np.zeros(self.logits.shape[1], dtype=[("id", np.intc), ("logit", np.single)])
            data["logit"] = self.logits[ids[-1]]
            for processor in logits_processor:
                data["logit"][:] = processor(np.array(ids, dtype=np.intc), data["logit"])
            ids.append(int(data["logit"].argmax()))
            yield ids[-1]


class OnStandIn(ToyAdapter):
    def __init__(self, tokenizer, vocabulary_size):
        super().__init__(tokenizer, vocabulary_size)
        self.llama = StandIn(self.table, self.end_token)

    def generate(self, keys, requests, seed):
        marked = LlamaCppWatermark(Watermark.load(keys, np.random.default_rng(seed)))
        options = {**OPTIONS, "max_tokens": self.new_tokens}
        return [
            marked.respond(self.llama, request.prompt, request.labels, options)
            for request in requests
        ]

    def probabilities(self, prompt, response):
        logits = self.llama.logits[[prompt[-1], *response]]
        scores = np.stack([Sampling.from_options(OPTIONS).apply(row) for row in logits])
        return np.exp(scores.astype(np.float64))


def test_conformance_on_a_stand_in(tokenizer_path, keyring, tmp_path):
    adapter = OnStandIn(tokenizer_path, keyring.public.vocabulary_size)
    report = conformance.check(adapter, tmp_path)
    assert report.passed, str(report)


def test_a_response_is_what_was_generated_and_says_how_it_ended(tokenizer_path, keyring):
    llama, finishes = OnStandIn(tokenizer_path, keyring.public.vocabulary_size).llama, set()
    for seed in range(6):
        one, two = (
            LlamaCppWatermark(Watermark(keyring, np.random.default_rng(seed))) for _ in range(2)
        )
        response = one.respond(llama, [5, 6], {"cohort": "a"}, {"max_tokens": 30})
        ids = list(two.generate(llama, [5, 6], {"cohort": "a"}, {"max_tokens": 30}))
        assert response.token_ids.tolist() == ids
        assert (response.labels, response.prompt_token_ids.tolist()) == ({"cohort": "a"}, [5, 6])
        assert response.finish == ("end" if ids[-1] == llama.end else "length")
        finishes.add(response.finish)
    assert finishes == {"end", "length"}


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"temperature": 1e-4}])
def test_the_log_says_where_coins_had_a_choice(tokenizer_path, keyring, tmp_path, options):
    llama = OnStandIn(tokenizer_path, keyring.public.vocabulary_size).llama
    marked = LlamaCppWatermark(Watermark(keyring, np.random.default_rng(1)))
    given = {"max_tokens": 40, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options}
    with ResponseSink(marked.watermark, tmp_path / "a.jsonl") as sink:
        response = marked.respond(llama, [5, 6], {"cohort": "a"}, given, sink=sink)
    rule = marked.watermark.marked_positions({"cohort": "a"}, response.token_ids, [5, 6])
    assert rule.any()
    if options:
        assert not response.drawn.any()
    else:
        assert response.drawn.tolist() == rule.tolist()
    (record,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(record)["token_ids"] == response.token_ids.tolist()
    assert json.loads(record)["marked"] == (not options)


def test_a_workers_file_marks_like_the_keyring(tokenizer_path, keyring, tmp_path):
    llama = OnStandIn(tokenizer_path, keyring.public.vocabulary_size).llama
    file, expires = tmp_path / "worker.key", datetime.now(UTC) + timedelta(days=1)
    export_worker(keyring, ["cohort=a"], expires=expires, file=file)
    one, two = (
        LlamaCppWatermark(mark)
        for mark in (
            Watermark(keyring, np.random.default_rng(1)),
            Watermark.load(file, np.random.default_rng(1)),
        )
    )
    served = [m.respond(llama, [5, 6], {"cohort": "a"}).token_ids.tolist() for m in (one, two)]
    assert served[0] == served[1]
    with pytest.raises(ConfigurationMismatchError, match="export-worker"):
        two.respond(llama, [5, 6], {"cohort": "b"})


def test_sampling_cuts_in_the_order_of_llama_cpp():
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], dtype=np.float32))
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}

    def kept(**options):
        scores = Sampling(**{**neutral, **options}).apply(logits)
        return np.flatnonzero(np.isfinite(scores)).tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=0.65) == [0, 1]
    assert kept(top_p=0.75) == [0, 1, 2]
    assert kept(min_p=0.3) == [0, 1, 2]
    assert kept(top_k=3, top_p=0.8) == [0, 1]  # of three: .47, .82
    assert kept(temperature=0.1, min_p=0.3) == [0, 1, 2]  # temperature last: it cuts nothing
    scores = Sampling(**{**neutral, "temperature": 0.5}).apply(logits)
    np.testing.assert_allclose(scores, logits / 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": value} for value in (0.0, -1.0, float("nan"))),
        *({name: 1} for name in ("repeat_penalty", "mirostat_mode", "grammar", "logit_bias")),
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"top_k": -1},
    ],
    ids=str,
)
def test_what_the_adapter_does_not_apply_is_refused_at_the_call(keyring, options):
    marked = LlamaCppWatermark(Watermark(keyring))
    with pytest.raises(UsageError):
        marked.generate(StandIn(np.ones((4, 4)), 1), [1], {}, options)


def test_draft_models_empty_prompts_and_labels_without_a_key_are_refused(keyring):
    marked, llama = LlamaCppWatermark(Watermark(keyring)), StandIn(np.ones((4, 4)), 1)
    with pytest.raises(UsageError):
        marked.generate(llama, [], {})
    with pytest.raises(ConfigurationMismatchError):
        marked.generate(llama, [1], {"week": "1999-W01"})
    llama.draft_model = object()
    with pytest.raises(UsageError, match="draft"):
        marked.generate(llama, [1], {})


class OnLlamaCpp:
    """A real GGUF through the real llama.cpp."""

    new_tokens = 32
    prompts = tuple(
        text.encode()
        for text in (
            "The history of the printing press begins",
            "A good breakfast",
            "My favourite animal is the",
            "List: apples, pears,",
        )
    )

    def __init__(self, gguf: Path, tokenizer: Path):
        llama_cpp = pytest.importorskip("llama_cpp")
        self.llama = llama_cpp.Llama(
            str(gguf), n_ctx=256, n_threads=1, logits_all=True, verbose=False
        )
        self.tokenizer = tokenizer
        self.vocabulary_size = self.llama.n_vocab()
        self.prompts = tuple(tuple(self.llama.tokenize(text)) for text in self.prompts)
        # a token that ends some per cent of all steps: the comma
        (self.end_token,) = self.llama.tokenize(b",", add_bos=False)

    def generate(self, keys, requests, seed):
        marked = LlamaCppWatermark(Watermark.load(keys, np.random.default_rng(seed)))
        options = {**OPTIONS, "max_tokens": self.new_tokens}
        responses = []
        for request in requests:
            self.llama.reset()  # no prefix of the last prompt: it would be read in other batches
            drawn = marked.respond(
                self.llama, request.prompt, request.labels, options, [self.end_token]
            )
            responses.append(drawn)
        return responses

    def probabilities(self, prompt, response):
        # token by token, as it was generated: the kernels for a quantised model give other last
        # digits for a batch, enough to turn one draw in forty
        self.llama.reset()
        self.llama.eval(list(prompt))
        for token in response.tolist():
            self.llama.eval([token])
        logits = self.llama.scores[len(prompt) - 1 : len(prompt) + len(response)]
        scores = np.stack([Sampling.from_options(OPTIONS).apply(row) for row in logits])
        return np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))


@pytest.mark.slow
@pytest.mark.skipif("PROVENANCE_TEST_GGUF" not in os.environ, reason="needs a GGUF model file")
def test_conformance_on_llama_cpp(tmp_path):
    gguf = Path(os.environ["PROVENANCE_TEST_GGUF"])
    named = os.environ.get("PROVENANCE_TEST_TOKENIZER")
    tokenizer = Path(named) if named else gguf.with_name("tokenizer.json")
    report = conformance.check(OnLlamaCpp(gguf, tokenizer), tmp_path)
    assert report.passed, str(report)
