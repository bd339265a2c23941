"""vLLM's OpenAI-compatible server on this machine's CPU, with a tiny random model.

Starts it once (half a minute and more), with so little room for its cache that requests are
preempted, and with prompts prefilled in chunks. Needs vLLM; the Makefile's bench-serving-vllm
records a run.
"""

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: docs/serving.md says how", allow_module_level=True)

from provenance.embed.sink import ResponseSink  # noqa: E402
from provenance.embed.vllm.responses import read_responses, request_fields  # noqa: E402
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.keys.keyring import add_value  # noqa: E402
from provenance.marks.detection import detect_mark  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402
from tests.world.vllm_lab import make_model, run_server  # noqa: E402

WEEKS = [f"2026-W{number}" for number in range(17, 25)]
PROMPT = "def make_keyring(folder: Path, tokenizer_path: Path) -> UnlockedKeyring:"
SAMPLING = {"temperature": 0.9, "top_k": 60, "top_p": 0.98, "ignore_eos": True}
TOKENS = 200
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_path):
    folder = tmp_path_factory.mktemp("vllm")
    shares = {"global": 0.2, "week": 0.6}
    make_keyring(folder / "keys", tokenizer_path, shares=shares, values={"week": WEEKS})
    return folder


@pytest.fixture(scope="module")
def watermark(folder):
    return Watermark.load(folder / "keys")


@pytest.fixture(scope="module")
def model_folder(folder, tokenizer_path, watermark):
    size = watermark.keyring.public.vocabulary_size
    return make_model(folder / "model", tokenizer_path, size)


@pytest.fixture(scope="module")
def server(folder, model_folder):
    options = ["--num-gpu-blocks-override", "12", "--max-num-batched-tokens", "32"]
    with run_server(
        model_folder, folder / "keys", folder / "server.log", options=options
    ) as running:
        yield running


def _complete(server, labels, *, stream=True, path="/v1/completions", **more):
    """Status, and the responses as the log gets them."""
    fields = {} if labels is None else request_fields(labels)
    asked = {"prompt": PROMPT} if path == "/v1/completions" else {}
    body = {"return_token_ids": True, "max_tokens": TOKENS, **asked, **SAMPLING, **fields, **more}
    status, chunks = server.post(path, body, stream)
    return status, read_responses(body, chunks), chunks


def _powers(watermark, ids):
    """log10 p of each key on one response, before the correction for the number of keys."""
    return {key.name: key.log10_p for key in detect_mark(ids, watermark.keyring).keys}


def _check_week(watermark, response, week):
    powers = _powers(watermark, response.token_ids)
    assert response.labels == {"week": week}
    assert response.marked is None
    assert len(response.token_ids) == TOKENS
    assert powers[f"week={week}"] < -10
    others = [powers[f"week={other}"] for other in WEEKS if other != week]
    assert min(others) > -5  # 7 true nulls: below 1e-4 by chance


def test_two_labels_are_detected_each_under_its_own_key(server, watermark):
    for week in WEEKS[:2]:
        status, (response,), chunks = _complete(server, {"week": week})
        assert status == 200
        assert len(chunks) > 1
        _check_week(watermark, response, week)


def test_many_labels_at_once_with_preemption_and_chunked_prefill(server, watermark):
    """48 requests of 8 weeks in one engine that has room for a few of them."""
    weeks = WEEKS * 6
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda week: _complete(server, {"week": week}), weeks))
    for week, (status, (response,), _) in zip(weeks, done, strict=True):
        assert status == 200
        _check_week(watermark, response, week)
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
    (preemptions,) = re.findall(r"^vllm:num_preemptions_total\{.*\} (\S+)$", metrics, re.M)
    assert float(preemptions) > 0


def test_marked_tokens_are_those_that_the_watermark_draws_from_the_models_probabilities(
    server, watermark, model_folder
):
    """Every marked token replayed with transformers; rounding may turn a near-tie."""
    from transformers import AutoModelForCausalLM

    from tests.embed.vllm_fake import apply_top_k_top_p

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    labels = {"week": WEEKS[0]}
    _, (response,), _ = _complete(server, labels, n=1)
    prompt, ids = response.prompt_token_ids, response.token_ids
    both = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64)).unsqueeze(0)
    with torch.inference_mode():
        logits = model(both).logits[0, len(prompt) - 1 : -1]
    rows = len(ids)
    final = apply_top_k_top_p(
        logits / SAMPLING["temperature"],
        torch.full((rows,), SAMPLING["top_k"]),
        torch.full((rows,), SAMPLING["top_p"]),
    )
    probabilities = final.double().softmax(dim=1).numpy()
    marked = np.flatnonzero(watermark.marked_positions(labels, ids, prompt))
    contexts = watermark.read_prompt(prompt)
    assert len(marked) > 50
    equal = 0
    for i in marked:
        candidates = np.flatnonzero(probabilities[i]).astype(np.uint32)
        p = probabilities[i, candidates]
        drawn = watermark.draw(labels, ids[:i], candidates, p, contexts)
        assert drawn.key is not None
        equal += drawn.token == ids[i]
    assert equal >= len(marked) - 2


@pytest.mark.parametrize(
    "labels", [["week=1999-W01"], ["wek=2026-W17"], ["week"], "week=2026-W17", ["week=a", "week=b"]]
)
def test_a_bad_label_is_http_400(server, labels):
    body = {"prompt": PROMPT, "max_tokens": 4, "vllm_xargs": {"provenance_labels": labels}}
    status, (answer,) = server.post("/v1/completions", body, stream=False)
    assert status == 400
    assert "label" in answer["error"]["message"]
    # a stream has sent its status before vLLM looks: the error is its first and only event
    status, (event,) = server.post("/v1/completions", body, stream=True)
    assert (status, event["error"]["code"]) == (200, 400)


def test_a_misspelt_field_and_greedy_decoding_are_http_400(server):
    body = {"prompt": PROMPT, "max_tokens": 4}
    wrong = {**body, "vllm_xargs": {"provenance_label": ["week=2026-W17"]}}
    assert server.post("/v1/completions", wrong, stream=False)[0] == 400
    greedy = {**body, "temperature": 0, **request_fields({})}
    assert server.post("/v1/completions", greedy, stream=False)[0] == 400
    assert server.post("/v1/completions", {**body, "temperature": 0}, stream=False)[0] == 200


def test_what_does_not_ask_is_not_marked(server, watermark):
    _, (plain,), _ = _complete(server, None)
    assert plain.marked is False
    assert detect_mark(plain.token_ids, watermark.keyring).log10_p > -4
    _, (only,), _ = _complete(server, {})
    powers = _powers(watermark, only.token_ids)
    assert powers["global"] < -4
    assert min(powers[f"week={week}"] for week in WEEKS) > -5


def test_several_choices_chat_and_seeds(server, watermark):
    week = WEEKS[3]
    _, responses, _ = _complete(server, {"week": week}, n=3, stream=False)
    assert len({response.request_id for response in responses}) == 3
    assert len({tuple(response.token_ids) for response in responses}) == 3
    for response in responses:
        _check_week(watermark, response, week)
    messages = [{"role": "user", "content": PROMPT}]
    for stream in (False, True):
        _, (response,), _ = _complete(
            server, {"week": week}, path="/v1/chat/completions", messages=messages, stream=stream
        )
        _check_week(watermark, response, week)
        assert response.prompt_token_ids is not None
    seeded = [_complete(server, {"week": week}, seed=7)[1][0] for _ in range(2)]
    assert seeded[0].token_ids.tolist() == seeded[1].token_ids.tolist()
    _check_week(watermark, seeded[0], week)


def test_limits_of_the_request_hold_and_logprobs_do_not_show_the_mark(server, watermark):
    allowed = list(range(40, 80))
    _, (response,), chunks = _complete(
        server, {"week": WEEKS[0]}, stream=False, allowed_token_ids=allowed, logprobs=1
    )
    assert set(response.token_ids.tolist()) <= set(allowed)
    shown = np.array(chunks[0]["choices"][0]["logprobs"]["token_logprobs"])
    assert (shown < 0).all()
    assert shown.min() > -50
    labels, prompt = {"week": WEEKS[0]}, response.prompt_token_ids
    marked = watermark.marked_positions(labels, response.token_ids, prompt)
    assert marked.any()
    grammar = {"structured_outputs": {"regex": "[ab]{30}"}, "ignore_eos": False}
    _, (worded,), _ = _complete(server, {"week": WEEKS[0]}, **grammar)
    assert re.fullmatch("[ab]{30}", worded.text)
    assert worded.marked is None


def test_the_end_token_belongs_to_the_response(server):
    _, responses, chunks = _complete(
        server, {}, stream=False, n=8, ignore_eos=False, logit_bias={"1": 6.0}, max_tokens=100
    )
    ended = [c for c in chunks[0]["choices"] if c["finish_reason"] == "stop"]
    assert ended
    assert all(choice["token_ids"][-1] == 1 for choice in ended)
    for response in responses:
        assert (response.token_ids == 1).sum() == (response.finish == "end")
        assert response.finish == "length" or response.token_ids[-1] == 1


def test_beams_are_not_called_drawn(server):
    _, responses, _ = _complete(
        server, {"week": WEEKS[0]}, stream=False, use_beam_search=True, n=2, max_tokens=20,
        temperature=0.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    assert responses
    assert all(response.marked is False for response in responses)


def test_a_week_added_while_the_server_runs(server, folder):
    assert _complete(server, {"week": "2026-W99"}, stream=False)[0] == 400
    add_value(folder / "keys", "week", "2026-W99")
    status, (response,), _ = _complete(server, {"week": "2026-W99"})
    assert status == 200
    grown = Watermark.load(folder / "keys")
    assert _powers(grown, response.token_ids)["week=2026-W99"] < -10


def test_responses_go_into_a_served_log(server, tmp_path, watermark):
    path = tmp_path / "served.jsonl"
    _, responses, _ = _complete(server, {"week": WEEKS[0]}, n=2, max_tokens=20)
    with ResponseSink(watermark, path) as sink:
        for response in responses:
            sink.write(response)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [len(record["token_ids"]) for record in records] == [20, 20]
    assert all(record["marked"] for record in records)
    assert records[0]["labels"] == {"week": WEEKS[0]}


def test_the_servers_log_shows_no_secret(server, folder, watermark):
    secret = (folder / "keys" / "master.key").read_bytes()
    text = server.log.read_text(errors="replace")
    keys = [watermark.keyring.key("global", ""), watermark.keyring.key("week", WEEKS[0])]
    for value in (secret, *(key.reveal() for key in keys)):
        assert value.hex() not in text
        assert repr(value)[2:-1] not in text


def test_a_server_without_a_keyring_does_not_start(folder, model_folder, tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(RuntimeError, match="did not start"),
        run_server(model_folder, tmp_path / "nothing", log),
    ):
        pass
    assert "nothing/keyring.json" in log.read_text(errors="replace")
