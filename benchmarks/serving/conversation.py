"""What the mark costs within a conversation: an answer, another attempt, and its continuation.

    OMP_NUM_THREADS=1 python -m benchmarks.serving.conversation [--prompts N] [--work DIR]

SmolLM2-135M-Instruct answers a request, is asked for another answer, and then to go on; each turn
sees all before it. Arms: unmarked; the default mark, which does not mark what stands in the prompt;
and the mark of keyrings of before, which did. The unit is the conversation. Reported are paired
differences to unmarked with 95 % intervals (Student's t), and equivalence by two one-sided tests at
5 % within the margin. `same_token`: of the contexts of the second and third turn that the turns
before had reached, the share after which the same token follows as there: a second attempt that
repeats the first. Resumable: the conversations of an arm are files.
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

from benchmarks.serving.quality import SEED, WORK, compare, load, measure_ngrams, measure_nll
from benchmarks.smollm import decode
from benchmarks.smollm.convert import PACKAGE, make_served_model
from benchmarks.smollm.model import SERVED_MODEL, VOCABULARY, precision
from benchmarks.smollm.prompts import prompts_for
from benchmarks.smollm.serve import marked_draw, plain_draw
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.storage.files import write_atomically, write_json

RESULT = Path(__file__).parents[1] / "results" / "conversation.json"
UNMARKED = "unmarked"
ARMS: dict[str, bool | None] = {
    UNMARKED: None,
    "default": True,
    "contexts of prompts marked": False,
}
"""Whether the keyring of an arm reads the prompt; None: no mark."""
SHARE = 0.2
ASKED = ("Please answer that again, in another way.", "Please go on.")
MARGINS = {
    "same_token": 0.05,
    "distinct_1": 0.03,
    "distinct_2": 0.03,
    "distinct_3": 0.03,
    "nll": 0.1,
    "tokens": 10.0,
}
"""Largest difference that counts as none; shares, nats a token, tokens a turn."""
PIECE = 20
K = 2

Turn = dict[str, Any]
Conversation = list[Turn]


def hold(work: Path, arm: str, requests: Sequence[str], tokens: int) -> list[Conversation]:
    """The conversations of an arm; pieces that exist are read."""
    found: list[Conversation] = []
    model = tokenizer = None
    for number, start in enumerate(range(0, len(requests), PIECE)):
        name = f"{list(ARMS).index(arm)}-{len(requests)}-{tokens}-{number:03d}.json"
        path = work / "conversation" / name
        if not path.exists():
            if model is None:
                model, tokenizer = load(work)
            started = time.perf_counter()
            piece = requests[start : start + PIECE]
            held = _hold_piece(work, arm, model, tokenizer, piece, tokens, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(held).encode())
            print(f"{arm} {name}: {time.perf_counter() - started:.0f} s", flush=True)
        found += json.loads(path.read_text())
    return found


def _hold_piece(
    work: Path, arm: str, model: Any, tokenizer: Any, piece: Sequence[str], tokens: int, number: int
) -> list[Conversation]:
    generator = np.random.default_rng([SEED, list(ARMS).index(arm), number, 3])
    said = [[{"role": "user", "content": text}] for text in piece]
    held: list[Conversation] = [[] for _ in piece]
    for question in (*ASKED, None):
        prompts = [
            tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False)
            for m in said
        ]
        draw = _make_draw(work, arm, prompts, generator)
        responses = decode.generate(model, prompts, 1, tokens, draw)
        for messages, turns, prompt, response in zip(said, held, prompts, responses, strict=True):
            turns.append({"prompt": prompt, "ids": response.token_ids})
            text = tokenizer.decode(response.token_ids, skip_special_tokens=True)
            messages += [{"role": "assistant", "content": text}]
            messages += [{"role": "user", "content": question}] if question else []
    return held


def _make_draw(
    work: Path, arm: str, prompts: Sequence[Sequence[int]], generator: np.random.Generator
) -> decode.Draw:
    reads_prompt = ARMS[arm]
    if reads_prompt is None:
        return plain_draw(generator)
    folder = work / "conversation-keys" / arm.replace(" ", "-")
    if not (folder / "keyring.json").exists():
        create_keyring(
            folder,
            work / SERVED_MODEL / "tokenizer.json",
            VOCABULARY,
            SchemeSpecification("gumbel"),
            Schedule.from_shares({"global": SHARE}),
            reads_prompt=reads_prompt,
        )
    watermark = Watermark.load(folder, generator)
    contexts = [watermark.read_prompt(ids) for ids in prompts]
    return marked_draw(watermark, [{}] * len(prompts), contexts)


def measure(conversations: Sequence[Conversation], model: Any) -> dict[str, NDArray[np.float64]]:
    """One number a conversation and measure."""
    rows: dict[str, list[float]] = {name: [] for name in MARGINS}
    for turns in conversations:
        answers = [turn["ids"] for turn in turns]
        rows["same_token"].append(measure_repeats(answers))
        for n in (1, 2, 3):
            rows[f"distinct_{n}"].append(measure_ngrams(answers, n))
        likely = [measure_nll(model, turn["prompt"], [turn["ids"]]) for turn in turns]
        rows["nll"].append(float(np.nanmean(likely)))
        rows["tokens"].append(float(np.mean([len(ids) for ids in answers])))
    return {name: np.array(values) for name, values in rows.items()}


def measure_repeats(answers: Sequence[Sequence[int]]) -> float:
    """Share of contexts that an earlier turn had reached after which the same token follows.

    Of a context that occurs several times in a turn the first; NaN if there is none.

    >>> measure_repeats([[1, 2, 3, 4], [1, 2, 3, 9]])
    0.5
    """
    known: dict[tuple[int, ...], int] = {}
    same = met = 0
    for ids in answers:
        own: dict[tuple[int, ...], int] = {}
        for i in range(len(ids) - K):
            own.setdefault(tuple(ids[i : i + K]), ids[i + K])
        for context in own.keys() & known.keys():
            met += 1
            same += own[context] == known[context]
        known = {**own, **known}
    return same / met if met else float("nan")


def main() -> None:
    """Sample, measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=96, help="of a turn, at most")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    make_served_model(chosen.work)
    requests = [prompt.text for prompt in prompts_for("ask")[: chosen.prompts]]
    held = {arm: hold(chosen.work, arm, requests, chosen.tokens) for arm in ARMS}
    model, _ = load(chosen.work)
    measured = {arm: measure(found, model) for arm, found in held.items()}
    base = measured[UNMARKED]
    result = {
        "command": "OMP_NUM_THREADS=1 python -m benchmarks.serving.conversation "
        f"--prompts {chosen.prompts} --tokens {chosen.tokens}",
        "precision": precision(),
        "model": f"SmolLM2-135M-Instruct ({PACKAGE}), temperature 1, top-k {decode.TOP_K}",
        "turns": ["a request", *ASKED],
        "share": SHARE,
        "unmarked": {name: round(float(np.nanmean(v)), 4) for name, v in base.items()},
        "arms": {
            arm: {n: compare(found[n], base[n], margin) for n, margin in MARGINS.items()}
            for arm, found in measured.items()
            if arm != UNMARKED
        },
    }
    write_json(chosen.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
