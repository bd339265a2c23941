"""The conformance check of every adapter, through a real vLLM engine (V1 runner, CPU)."""

from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: docs/serving.md says how", allow_module_level=True)
conformance = pytest.importorskip("provenance.embed.conformance")

from provenance.embed.vllm.requests import KEYRING_VARIABLE  # noqa: E402
from provenance.embed.vllm.responses import request_fields  # noqa: E402
from tests.embed.vllm_fake import apply_top_k_top_p  # noqa: E402
from tests.world.vllm_lab import make_model  # noqa: E402

END = 1
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "logit_bias": {END: 4.0}}
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own


class VllmAdapter:
    """One engine for all calls with a keyring; `seed` becomes the seed of each request."""

    prompts = ([5, 6, 7], [9], [20, 21, 22, 23, 24, 25], [30, 31], [40, 41, 42, 43])
    new_tokens = 32
    end_token = END

    def __init__(self, model, tokenizer, vocabulary_size, monkeypatch):
        from transformers import AutoModelForCausalLM

        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self._folder = model
        self._model = AutoModelForCausalLM.from_pretrained(model).eval()
        self._monkeypatch = monkeypatch
        self._engine = self._keys = None

    def _start(self, keys):
        from vllm import LLM

        for name, value in {
            KEYRING_VARIABLE: str(keys),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }.items():
            self._monkeypatch.setenv(name, value)
        return LLM(
            model=str(self._folder),
            dtype="float32",
            max_model_len=256,
            max_num_seqs=16,
            enforce_eager=True,
            logits_processors=["provenance.embed.vllm.v1:WatermarkLogitsProcessor"],
        )

    def stop(self):
        """End the engine's processes: they outlive the test otherwise."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()

    def generate(self, keys, requests, seed):
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        if keys != self._keys:
            self.stop()
            self._keys, self._engine = keys, self._start(keys)
        parameters = [
            SamplingParams(
                max_tokens=self.new_tokens,
                seed=1000 * seed + i,
                extra_args=request_fields(request.labels)["vllm_xargs"],
                **SAMPLING,
            )
            for i, request in enumerate(requests)
        ]
        prompts = [TokensPrompt(prompt_token_ids=list(request.prompt)) for request in requests]
        done = self._engine.generate(prompts, parameters, use_tqdm=False)
        return [np.array(one.outputs[0].token_ids, dtype=np.uint32) for one in done]

    def probabilities(self, prompt, response):
        ids = torch.tensor([[*prompt, *response.tolist()]])
        with torch.no_grad():
            logits = self._model(ids).logits[0, len(prompt) - 1 :].clone()
        logits[:, END] += SAMPLING["logit_bias"][END]
        rows = logits.shape[0]
        final = apply_top_k_top_p(
            logits / SAMPLING["temperature"],
            torch.full((rows,), SAMPLING["top_k"]),
            torch.full((rows,), SAMPLING["top_p"]),
        )
        return final.double().softmax(dim=1).numpy()


def test_vllm_keeps_all_the_rules(tmp_path, tokenizer_path, monkeypatch):
    size = 400
    model = make_model(tmp_path / "model", tokenizer_path, size)
    adapter = VllmAdapter(model, tokenizer_path, size, monkeypatch)
    try:
        report = conformance.check(adapter, tmp_path / "check")
    finally:
        adapter.stop()
    assert report.passed, str(report)
