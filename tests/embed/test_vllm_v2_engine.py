"""The V2 processor in vLLM's real V2 runner, its kernels run by Triton's interpreter on the CPU.

No top-k and top-p here: the interpreter cannot run vLLM's kernel for them.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if find_spec("vllm") is None or find_spec("triton") is None:
    pytest.skip("vLLM is not installed: docs/serving.md says how", allow_module_level=True)

from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.marks.detection import detect_mark  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402
from tests.embed.vllm_v2_engine import LABELS, TEMPERATURE, TOKENS, write_stub  # noqa: E402
from tests.world.vllm_lab import ROOT, make_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizer_path):
    folder = tmp_path_factory.mktemp("v2")
    shares = {"global": 0.3, "week": 0.6}
    ring = make_keyring(folder / "keys", tokenizer_path, shares=shares, values={"week": ["a", "b"]})
    make_model(folder / "model", tokenizer_path, ring.public.vocabulary_size)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{write_stub(folder / 'stub')}",
        "PROVENANCE_KEYRING": str(folder / "keys"),
        "TRITON_INTERPRET": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.embed.vllm_v2_engine", str(folder)]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout=500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, log.read_text(errors="replace")[-3000:]
    return folder, json.loads((folder / "responses.json").read_text())


def test_each_label_is_found_under_its_own_key(served):
    folder, result = served
    assert result["v2"]
    ring = Watermark.load(folder / "keys").keyring
    powers = []
    for ids in result["responses"]:
        assert len(ids) == TOKENS
        found = detect_mark(np.array(ids, dtype=np.uint32), ring).keys
        powers.append({key.name: key.log10_p for key in found})
    first, second, only_global, plain = powers
    assert first["week=a"] < -10
    assert second["week=b"] < -10
    assert only_global["global"] < -2
    nulls = [first["week=b"], second["week=a"], *plain.values()]
    nulls += [only_global["week=a"], only_global["week=b"]]
    assert min(nulls) > -6


def test_marked_tokens_are_those_that_the_watermark_draws(served):
    """Replayed with transformers; rounding may turn a near-tie."""
    from transformers import AutoModelForCausalLM

    folder, result = served
    watermark = Watermark.load(folder / "keys")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    marked = equal = 0
    for i, asked in enumerate(LABELS):
        if asked is None:
            continue
        labels = dict(item.split("=") for item in asked)
        prompt, ids = result["prompts"][i], np.array(result["responses"][i], dtype=np.uint32)
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0]
        final = (logits[len(prompt) - 1 : -1] / TEMPERATURE).double().softmax(dim=1).numpy()
        candidates = np.arange(final.shape[1], dtype=np.uint32)
        for place in np.flatnonzero(watermark.marked_positions(labels, ids, prompt)):
            p, contexts = final[place], watermark.read_prompt(prompt)
            draw = watermark.draw(labels, ids[:place], candidates, p, contexts)
            marked += 1
            equal += draw.token == ids[place]
    assert marked > 80
    assert equal >= marked - 2
