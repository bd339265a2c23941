"""What the mark costs in quality: SmolLM2-135M-Instruct, marked against unmarked.

    OMP_NUM_THREADS=1 python -m benchmarks.serving.quality [--prompts N] [--copies N] [--work DIR]

Every arm answers the same prompts: open requests, questions with one right word, and functions that
are executed. The model runs in bfloat16 where the processor multiplies it, for all arms. The unit
is the prompt: the mean over its copies (for distinct-n: over the text of all its copies). Reported
are differences of an arm to `unmarked`, paired by prompt, with 95 % intervals (Student's t), and
equivalence by two one-sided tests at 5 %: the 90 % interval lies inside the margin, which is fixed
below. Resumable: an arm's answers to a piece of prompts are a file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch.nn.utils.rnn import pad_sequence

from benchmarks.serving.tasks import FUNCTIONS, QUESTIONS, Task
from benchmarks.smollm import decode
from benchmarks.smollm.convert import PACKAGE, make_served_model
from benchmarks.smollm.model import (
    END,
    SERVED_MODEL,
    VOCABULARY,
    load_model,
    load_tokenizer,
    precision,
)
from benchmarks.smollm.prompts import prompts_for
from benchmarks.smollm.serve import marked_draw, plain_draw
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.storage.files import write_atomically, write_json

WORK = Path(__file__).with_name("work")
RESULT = Path(__file__).parents[1] / "results" / "quality.json"
UNMARKED = "unmarked"
ARMS: dict[str, tuple[str, dict[str, Any], float] | None] = {
    UNMARKED: None,
    "gumbel share .2 (default)": ("gumbel", {}, 0.2),
    "gumbel share 1": ("gumbel", {}, 1.0),
    "green delta 2": ("green", {"delta": 2.0}, 1.0),
    "tournament 4 layers": ("tournament", {"layers": 4}, 1.0),
}
MARGINS = {
    "nll": 0.1,
    "tokens": 10.0,
    "repeated_4grams": 0.03,
    "distinct_1": 0.03,
    "distinct_2": 0.03,
    "distinct_3": 0.03,
    "right_answers": 0.1,
    "working_functions": 0.1,
}
"""Largest difference that counts as none; nats a token, tokens, shares."""
PIECE = 20
NLL_COPIES = 8
"""So many responses to a prompt are read for their likelihood."""
ANSWER_TOKENS = 64
SEED = 21


def load(work: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    model = load_model(work / SERVED_MODEL, getattr(torch, precision()))
    return model, load_tokenizer(work / SERVED_MODEL)


def answer(work: Path, arm: str, tasks: Sequence[Task], copies: int, tokens: int) -> list[Any]:
    """For each task the ids of its responses; pieces that exist are read."""
    found: list[Any] = []
    model = tokenizer = None
    for number, start in enumerate(range(0, len(tasks), PIECE)):
        name = f"{list(ARMS).index(arm)}-{len(tasks)}-{copies}-{tokens}-{number:03d}.json"
        path = work / "quality" / name
        piece = tasks[start : start + PIECE]
        if not path.exists():
            if model is None:
                model, tokenizer = load(work)
            started = time.perf_counter()
            ids = _sample(work, arm, model, tokenizer, piece, copies, tokens, number)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps(ids).encode())
            print(f"{arm} {name}: {time.perf_counter() - started:.0f} s", flush=True)
        found += json.loads(path.read_text())
    return found


def _sample(
    work: Path,
    arm: str,
    model: Any,
    tokenizer: Any,
    piece: Sequence[Task],
    copies: int,
    tokens: int,
    number: int,
) -> list[list[list[int]]]:
    generator = np.random.default_rng([SEED, list(ARMS).index(arm), number, copies])
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": task.text}], add_generation_prompt=True, return_dict=False
        )
        for task in piece
    ]
    draw, mark = plain_draw(generator), ARMS[arm]
    if mark is not None:
        folder = work / "quality-keys" / arm.replace(" ", "-")
        if not (folder / "keyring.json").exists():
            scheme, parameters, share = mark
            create_keyring(
                folder,
                work / SERVED_MODEL / "tokenizer.json",
                VOCABULARY,
                SchemeSpecification(scheme, parameters),
                Schedule.from_shares({"global": share}),
            )
        draw = marked_draw(Watermark.load(folder, generator), [{}] * (len(piece) * copies))
    responses = decode.generate(model, ids, copies, tokens, draw)
    rows = [response.token_ids for response in responses]
    return [rows[i : i + copies] for i in range(0, len(rows), copies)]


@torch.inference_mode()
def measure_nll(model: Any, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> float:
    """Mean NLL a token under the unmarked model, temperature 1, all of the vocabulary."""
    rows = [torch.tensor([*prompt, *response]) for response in responses if response]
    if not rows:
        return float("nan")
    ids = pad_sequence(rows, batch_first=True, padding_value=END)
    logits = model(ids).logits[:, len(prompt) - 1 : -1].float()
    picked = logits.log_softmax(-1).gather(2, ids[:, len(prompt) :, None])[..., 0]
    lengths = torch.tensor([len(row) - len(prompt) for row in rows])
    inside = torch.arange(picked.shape[1]) < lengths[:, None]
    return float(-picked[inside].sum() / lengths.sum())


def measure_ngrams(responses: Sequence[Sequence[int]], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the responses together."""
    grams = [tuple(r[i : i + n]) for r in responses for i in range(len(r) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def measure(
    tasks: Sequence[Task], answers: Sequence[Any], model: Any, tokenizer: Any
) -> dict[str, NDArray[np.float64]]:
    """One number a prompt and measure; NaN where a measure does not apply."""
    rows: dict[str, list[float]] = {name: [] for name in MARGINS}
    for task, responses in zip(tasks, answers, strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": task.text}], add_generation_prompt=True, return_dict=False
        )
        is_open = not (task.word or task.test)
        repeats = [1 - measure_ngrams([r], 4) for r in responses if len(r) > 8]
        right = (
            float("nan")
            if is_open
            else float(np.mean([task.judge(tokenizer.decode(r)) for r in responses]))
        )
        rows["nll"].append(measure_nll(model, prompt, responses[:NLL_COPIES]))
        rows["tokens"].append(float(np.mean([len(r) for r in responses])))
        rows["repeated_4grams"].append(float(np.mean(repeats)) if repeats else float("nan"))
        for n in (1, 2, 3):
            rows[f"distinct_{n}"].append(measure_ngrams(responses, n) if is_open else float("nan"))
        rows["right_answers"].append(right if task.word else float("nan"))
        rows["working_functions"].append(right if task.test else float("nan"))
    return {name: np.array(values) for name, values in rows.items()}


def compare(arm: NDArray[np.float64], base: NDArray[np.float64], margin: float) -> dict[str, Any]:
    """Paired difference with its interval, and whether it is equivalent to none."""
    difference = (arm - base)[np.isfinite(arm) & np.isfinite(base)]
    n, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1) / np.sqrt(n))
    wide, narrow = stats.t.ppf(0.975, n - 1) * error, stats.t.ppf(0.95, n - 1) * error
    return {
        "prompts": n,
        "mean": round(float(np.nanmean(arm)), 4),
        "difference": round(mean, 4),
        "interval_95": [round(mean - wide, 4), round(mean + wide, 4)],
        "margin": margin,
        "equivalent": bool(-margin < mean - narrow and mean + narrow < margin),
    }


def main() -> None:
    """Sample, measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--prompts", type=int, default=96, help="open requests")
    parser.add_argument("--copies", type=int, default=8, help="responses to an open request")
    parser.add_argument("--tokens", type=int, default=96, help="of a response to it, at most")
    parser.add_argument("--answers", type=int, default=24, help="to a question or function")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_served_model(arguments.work)
    requests = [Task(prompt.text) for prompt in prompts_for("ask")[: arguments.prompts]]
    tasks = [*QUESTIONS, *FUNCTIONS]
    answers = {
        arm: answer(arguments.work, arm, requests, arguments.copies, arguments.tokens)
        + answer(arguments.work, arm, tasks, arguments.answers, ANSWER_TOKENS)
        for arm in ARMS
    }
    tasks = [*requests, *tasks]
    model, tokenizer = load(arguments.work)
    measured = {arm: measure(tasks, found, model, tokenizer) for arm, found in answers.items()}
    base = measured[UNMARKED]
    write_json(
        arguments.output,
        {
            "command": "OMP_NUM_THREADS=1 python -m benchmarks.serving.quality "
            f"--prompts {arguments.prompts} --copies {arguments.copies} "
            f"--tokens {arguments.tokens} --answers {arguments.answers}",
            "precision": precision(),
            "model": f"SmolLM2-135M-Instruct ({PACKAGE}), temperature 1, top-k {decode.TOP_K}",
            "size": {
                "open_requests": arguments.prompts,
                "questions": len(QUESTIONS),
                "functions": len(FUNCTIONS),
                "copies": arguments.copies,
                "at_most_tokens": arguments.tokens,
                "answers": arguments.answers,
                "at_most_tokens_of_an_answer": ANSWER_TOKENS,
                "tokens": {
                    arm: sum(len(r) for task in found for r in task)
                    for arm, found in answers.items()
                },
            },
            "unmarked": {name: round(float(np.nanmean(v)), 4) for name, v in base.items()},
            "arms": {
                arm: {
                    name: compare(found[name], base[name], margin)
                    for name, margin in MARGINS.items()
                }
                for arm, found in measured.items()
                if arm != UNMARKED
            },
        },
    )


if __name__ == "__main__":
    main()
