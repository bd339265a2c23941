"""A real vLLM engine with the V2 runner on a CPU: run by test_vllm_v2_engine.py in a process.

    python -m tests.embed.vllm_v2_engine FOLDER        writes FOLDER/responses.json

The V2 runner needs Triton. PyPI's Triton has no CPU back end, but its interpreter runs the kernels
in Python: `write_stub` makes a sitecustomize.py that lets vLLM believe in a CPU back end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STUB = """
import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from types import SimpleNamespace

    import triton.backends

    class Driver:
        @staticmethod
        def is_active():
            return True

        def get_current_target(self):
            return SimpleNamespace(backend="cpu", arch=0, warp_size=1)

        def get_current_device(self):
            return 0

    triton.backends.backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
"""
PROMPTS = ["def make_keyring(", "class Schedule:", "import os", "return folder"]
LABELS = [["week=a"], ["week=b"], [], None]
TEMPERATURE = 0.9
TOKENS = 120


def write_stub(folder: Path) -> Path:
    """A folder for PYTHONPATH."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(STUB)
    return folder


def main(folder: Path) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder / "model"),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        enforce_eager=True,
        logits_processors=["provenance.embed.vllm.v2:WatermarkLogitsProcessor"],
    )
    parameters = [
        SamplingParams(
            temperature=TEMPERATURE,
            max_tokens=TOKENS,
            ignore_eos=True,
            extra_args=None if labels is None else {"provenance_labels": labels},
        )
        for labels in LABELS
    ]
    done = llm.generate(PROMPTS, parameters)
    result = {
        "v2": bool(llm.llm_engine.vllm_config.use_v2_model_runner),
        "prompts": [list(one.prompt_token_ids) for one in done],
        "responses": [list(one.outputs[0].token_ids) for one in done],
    }
    (folder / "responses.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # the workers of an interpreted engine do not end by themselves
