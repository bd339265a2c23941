"""What the V1 processor adds to a step of vLLM's own sampler: same logits, same process, in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.serving.vllm_sampler       needs vLLM; 3 minutes

One thread. Every request has labels for all slots and top-k 50; the shares are the default ones, so
a fifth of the rows is marked. Reported: medians in milliseconds, and the median ratio of the
sampler with the processor to the sampler without. The forward pass of the model is not in it: in a
server its time stands in the denominator too (`benchmarks.serving.vllm_server`).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from provenance.embed.vllm.requests import KEYRING_VARIABLE, LABELS_FIELD
from provenance.embed.vllm.v1 import WatermarkLogitsProcessor
from provenance.keys.keyring import SchemeSpecification, create_keyring
from provenance.keys.schedule import DEFAULT_SHARES, Schedule
from provenance.storage.files import write_json
from tests.world.vllm_lab import ROOT

RESULT = ROOT / "benchmarks" / "results" / "serving-vllm-sampler.json"
LABELS = ["week=w", "capability=c", "cohort=d"]
RESPONSE = 300
ROUNDS = 41


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sizes = [
            _time(Path(name), vocabulary, batch)
            for vocabulary in (32000, 151936)
            for batch in (1, 8, 32)
        ]
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg()[1]}
    result = {"machine": machine, "top_k": 50, "response_tokens": RESPONSE, "sizes": sizes}
    write_json(RESULT, result)
    print(RESULT.read_text())


def _time(folder: Path, vocabulary: int, batch: int) -> dict[str, Any]:
    generator = np.random.default_rng(batch)
    outputs = generator.integers(0, vocabulary, (batch, RESPONSE)).tolist()
    processor = _make_processor(folder / f"{vocabulary}-{batch}", vocabulary)
    parameters = SamplingParams(top_k=50, extra_args={LABELS_FIELD: LABELS})
    added = [(i, parameters, [], outputs[i]) for i in range(batch)]
    processor.update_state(BatchUpdate(batch, [], added, []))
    logits = torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    with_ours, without = _metadata(batch, outputs, [processor]), _metadata(batch, outputs, [])
    sampler, seconds = Sampler(), {"without": [], "with": []}
    for number in range(ROUNDS + 3):
        for name, metadata in (("without", without), ("with", with_ours)):
            copy = logits.clone()
            start = time.perf_counter()
            sampler(copy, metadata)
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
        for output in outputs:
            output.append(int(generator.integers(0, vocabulary)))
    ratios = np.array(seconds["with"]) / np.array(seconds["without"])
    return {
        "vocabulary": vocabulary,
        "batch": batch,
        "sampler_ms": round(1000 * statistics.median(seconds["without"]), 3),
        "with_processor_ms": round(1000 * statistics.median(seconds["with"]), 3),
        "ratio": round(float(np.median(ratios)), 3),
    }


def _make_processor(folder: Path, vocabulary: int) -> WatermarkLogitsProcessor:
    values = {"week": ["w"], "capability": ["c"], "cohort": ["d"]}
    tokenizer = ROOT / "fixtures" / "keys" / "tokenizer.json"
    schedule = Schedule.from_shares(DEFAULT_SHARES, values)
    create_keyring(folder, tokenizer, vocabulary, SchemeSpecification("gumbel"), schedule)
    os.environ[KEYRING_VARIABLE] = str(folder)
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            get_vocab_size=lambda: vocabulary,
            logprobs_mode="raw_logprobs",
            seed=0,
            max_model_len=4096,
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )
    return WatermarkLogitsProcessor(config, torch.device("cpu"), False)


def _metadata(batch: int, outputs: list[list[int]], processors: list[Any]) -> SamplingMetadata:
    ones = torch.ones(batch)
    return SamplingMetadata(
        temperature=ones,
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=torch.full((batch,), 50, dtype=torch.int32),
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=ones * 0,
        presence_penalties=ones * 0,
        repetition_penalties=ones,
        output_token_ids=outputs,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(processors),
    )


if __name__ == "__main__":
    main()
