"""Do chosen prompts hold more evidence than others, at equal tokens?

    python -m benchmarks.prompts [--work DIR] [--output benchmarks/results/prompts.json]

The log, its index and the unmarked text are those of fixtures/. Small suspects are trained here
from the fixtures alone (base: the unmarked text; students: the base model, fine-tuned on marked
responses of the log, all or a third of what they see), so that they can be asked anything. Finished
parts stay in the work folder, which is never committed.

Every way of asking gets the same number of tokens of answers: prompts chosen by
`provenance.choose_prompts`, prompts of the log and others at random, and the suspect's own choice
(it writes from nothing). z of the global key, several times with other seeds.

SmolLM2 (`make bench-smollm`): `rank_smollm` chooses among the prompts of its log, on its work
folder; its students are then asked the chosen prompts and as many at random.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import shutil
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

import provenance as pv
from benchmarks.lab import models, sampling
from benchmarks.lab.tokenizer import END_ID
from provenance.check.score import score, weigh_observations
from provenance.keys.schedule import GLOBAL_KEY
from provenance.marks.own import make_scheme
from provenance.served.index import Index
from provenance.suspect.access.outputs import observe, read_positions
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import add_expectations
from tests.world.innocents.choosing import WAYS, run_keys

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
WORK = Path(__file__).parent / "lab/work/prompts"
UNMARKED = (
    "innocents/unmarked-teacher.jsonl.gz",
    "suspects/student-unmarked.jsonl.gz",
    "suspects/base.jsonl.gz",
)
HIDDEN, LAYERS, STEPS, TOKENS_PER_STEP = 96, 2, 1200, 1024
RATES = {"base": 4e-3, "student": 2e-3}
SEEDS = {"base": 21, "mix": 22, "students": 23, "sampling": 24}
STUDENTS = {"student-all": 1.0, "student-third": 1 / 3}
"""Share of marked responses among what each was fine-tuned on."""

COUNT, REPEATS, BATCH, LOG_PROMPTS = 160, 3, 80, 2304
"""Prompts of every way of asking, how often each is asked, and how many of the log are read."""

Documents = list[list[int]]


def load_tokenizer() -> Tokenizer:
    """The tokenizer of the fixtures."""
    return Tokenizer.from_file(str(FIXTURES / "keys/tokenizer.json"))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a compressed file of outputs."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_unmarked(tokenizer: Tokenizer) -> Documents:
    """Prompt and output of all unmarked text of the fixtures, as token ids."""
    records = [one for name in UNMARKED for one in read_records(FIXTURES / name)]
    texts = [record["prompt"] + record["output"] for record in records]
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def read_marked() -> Documents:
    """Prompt and response of every record of the log, as token ids."""
    table = pq.read_table(FIXTURES / "served.parquet", columns=["prompt_token_ids", "token_ids"])
    return [row["prompt_token_ids"] + row["token_ids"] for row in table.to_pylist()]


def mix_documents(marked: Documents, unmarked: Documents, share: float) -> Documents:
    """Documents of which this share is marked, as many as there are marked ones if that can be."""
    rng = np.random.default_rng(SEEDS["mix"])
    if share == 1:
        return marked
    size = min(len(marked), int(len(unmarked) / (1 - share)))
    count = round(share * size)
    own = [marked[i] for i in rng.permutation(len(marked))[:count]]
    other = [unmarked[i] for i in rng.permutation(len(unmarked))[: size - count]]
    return [*own, *other]


def train(name: str, start: Path | None, documents: Sequence[Sequence[int]], work: Path) -> Path:
    """A small model, from nothing or from another one, on one thread; kept in the work folder."""
    folder = work / name
    if (folder / "model.safetensors").exists():
        return folder
    kind = "base" if start is None else "student"
    model = (
        models.new_model(SEEDS["base"], models.lab_config(HIDDEN, LAYERS))
        if start is None
        else models.load_model(start)
    )
    model = models.train(
        model,
        models.pack(documents),
        steps=STEPS,
        tokens_per_step=TOKENS_PER_STEP,
        learning_rate=RATES[kind],
        seed=SEEDS["students"],
        threads=1,
        label=name,
    )
    models.save_model(model, folder, load_tokenizer())
    return folder


def train_all(work: Path) -> dict[str, Path]:
    """Base and students, where they are missing."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer()
    unmarked, marked = read_unmarked(tokenizer), read_marked()
    base = train("base", None, unmarked, work)
    found = {"base": base}
    for name, share in STUDENTS.items():
        found[name] = train(name, base, mix_documents(marked, unmarked, share), work)
    return found


def ask(model: Path, prompts: Sequence[str], seed: int, path: Path) -> Path:
    """Answers of a model to prompts as a file of outputs; without prompts: from nothing."""
    torch.set_num_threads(1)
    tokenizer, loaded = load_tokenizer(), models.load_model(model)
    texts, shown = [], list(prompts) or [""] * COUNT
    ids = (
        sampling.encode_prompts(tokenizer, prompts)
        if prompts
        else torch.full((COUNT, 1), END_ID, dtype=torch.long)
    )
    for number, batch in enumerate(ids.split(BATCH)):
        draw = sampling.random_draw(1.0, 1000 * seed + number)
        found = sampling.generate(loaded, batch, sampling.NEW_TOKENS, draw)
        texts += [tokenizer.decode(row) for row in found.tolist()]
    lines = [
        json.dumps({"prompt": prompt, "output": text}) + "\n"
        for prompt, text in zip(shown, texts, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


class Lab:
    """Index, keys, references and prompts of the fixtures, opened once."""

    def __init__(self, work: Path, base: Path) -> None:
        self.work = work
        shutil.copytree(FIXTURES / "keys", work / "keys", dirs_exist_ok=True)
        (work / "keys/master.key").chmod(0o600)
        self.keyring = pv.open_keyring(work / "keys")
        self.log = FIXTURES / "served.parquet"
        if not (work / "index").is_dir():
            pv.build_index(self.log, work / "index", self.keyring)
        self.index = Index.open(work / "index", self.keyring.public)
        self.tokenizer = load_tokenizer()
        self.unmarked = [FIXTURES / name for name in UNMARKED[:2]]
        text = read_positions(self.unmarked, self.tokenizer, self.keyring.public)
        size, width = self.keyring.public.vocabulary_size, self.keyring.public.context_width
        self.ngrams = NgramReference(text, size, width)
        rows = pq.read_table(self.log, columns=["prompt_token_ids"]).column(0).to_pylist()
        self.log_prompts = [self.tokenizer.decode(row) for row in rows[:LOG_PROMPTS]]
        self.own_prompts = [
            record["prompt"] for path in self.unmarked for record in read_records(path)
        ]
        self.answers = work / "unmarked-answers.jsonl"
        if not self.answers.exists():
            ask(base, self.log_prompts, SEEDS["sampling"], self.answers)

    def choose(self, prompts: Path, unmarked: Sequence[Path], name: str) -> list[str]:
        """The prompts that the product chooses."""
        path = self.work / f"{name}.jsonl"
        made = pv.choose_prompts(
            prompts, self.keyring.public, path, unmarked=list(unmarked), count=COUNT
        )
        print(made, flush=True)
        return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]

    def list_ways(self) -> dict[str, list[list[str]]]:
        """Prompts of every way of asking, for every repeat."""
        log = self.work / "log-prompts.jsonl"
        log.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in self.log_prompts))
        own = self.work / "own-prompts.jsonl"
        own.write_text(
            "".join(json.dumps({"prompt": one}) + "\n" for one in dict.fromkeys(self.own_prompts))
        )
        fixed = {
            "log, chosen by unmarked answers": self.choose(log, [self.answers], "log-answers"),
            "log, chosen by their words": self.choose(log, self.unmarked, "log-words"),
            "own prompts, chosen by unmarked answers": self.choose(own, self.unmarked, "own"),
        }
        ways = {name: [prompts] * REPEATS for name, prompts in fixed.items()}
        for name, pool in (("log", self.log_prompts), ("own prompts", self.own_prompts)):
            ways[f"{name}, at random"] = [
                np.random.default_rng(seed)
                .permutation(np.array(pool, dtype=object))[:COUNT]
                .tolist()
                for seed in range(REPEATS)
            ]
        ways["the suspect's own choice"] = [[] for _ in range(REPEATS)]
        return ways

    def test(self, outputs: Path) -> dict[str, float]:
        """z of the global key without a reference and with k-grams, coins and tokens."""
        observations = observe([outputs], self.tokenizer, self.keyring.public)
        found = {"tokens": float(observations.tokens_read)}
        scheme = make_scheme(self.keyring.public.scheme.name)
        for name, seen, rule in (
            ("z", observations, "log-sqrt"),
            (
                "z_ngram",
                add_expectations(observations, self.ngrams.expect(observations)),
                "residual",
            ),
        ):
            weighing = weigh_observations(seen, self.index, self.keyring, rule)
            pairs = weighing.hypotheses[GLOBAL_KEY]
            table = score(pairs, self.keyring.key(*GLOBAL_KEY), scheme)
            found[name], found[f"coins_{rule}"] = table.z, float(table.effective_coins)
        return found


def measure(work: Path) -> list[dict[str, Any]]:
    """A row per suspect and way of asking: means over the repeats."""
    suspects = train_all(work)
    lab = Lab(work, suspects["base"])
    rows, ways = [], lab.list_ways()
    for suspect, model in suspects.items():
        for way, sets in ways.items():
            found = [
                lab.test(ask(model, prompts, SEEDS["sampling"] + 1 + repeat, work / "asked.jsonl"))
                for repeat, prompts in enumerate(sets)
            ]
            row: dict[str, Any] = {"suspect": suspect, "way": way, "repeats": len(found)}
            for name in found[0]:
                values = np.array([one[name] for one in found])
                row[name] = round(float(values.mean()), 3)
                if name.startswith("z"):
                    row[f"{name}_error"] = round(float(values.std(ddof=1) / len(values) ** 0.5), 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def state_gains(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """z of chosen prompts over that of the same pool at random and of the suspect's own choice.

    `tokens_saved`: the square, by how many times fewer tokens would do.
    """
    z = {(row["suspect"], row["way"], name): row[name] for row in rows for name in ("z", "z_ngram")}
    gains = []
    for suspect in STUDENTS:
        for chosen in sorted({row["way"] for row in rows if ", chosen" in row["way"]}):
            pool = chosen.partition(",")[0]
            for other in (f"{pool}, at random", "the suspect's own choice"):
                for name in ("z", "z_ngram"):
                    mine, theirs = z[suspect, chosen, name], z[suspect, other, name]
                    gains.append(
                        {
                            "suspect": suspect,
                            "way": chosen,
                            "against": other,
                            "test": name,
                            "ratio": round(mine / theirs, 3) if theirs > 0 else None,
                            "tokens_saved": round((mine / theirs) ** 2, 2) if theirs > 0 else None,
                        }
                    )
    return gains


def measure_validity(keys: int) -> dict[str, dict[str, float]]:
    """Mean z of innocents in the fast world, by how their prompts were chosen; see `choosing`."""
    found = run_keys(keys)
    return {
        way: {
            "mean_z": round(float(np.mean(z)), 4),
            "standard_error": round(float(np.std(z, ddof=1) / len(z) ** 0.5), 4),
            "sd_z": round(float(np.std(z, ddof=1)), 4),
            "keys": len(z),
            "coins": round(float(np.mean(found["n of coins"]))),
        }
        for way, z in found.items()
        if way in WAYS
    }


def rank_smollm(work: Path, keys: Path, output: Path) -> pv.ChosenPrompts:
    """Which prompts of the SmolLM2 benchmark the product would choose, on its work folder.

    Parameters: its work folder, with `served.parquet` (or a folder of logs) and unmarked responses
    `unmarked.jsonl`; the keyring; where the chosen prompts go. Ask its students these and as many
    at random (`python -m benchmarks.smollm.evaluate` reads files of outputs), then compare z.
    """
    logs = sorted(work.glob("served*.parquet")) + sorted(work.glob("served*.jsonl"))
    return pv.choose_prompts(
        logs, pv.Keyring.load(keys), output, unmarked=work / "unmarked.jsonl", count=COUNT
    )


def main() -> None:
    """Train what is missing, ask, test, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/prompts.json")
    parser.add_argument("--keys", type=int, default=4000, help="of the simulation of innocents")
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows = measure(arguments.work)
    result = {
        "command": "python -m benchmarks.prompts",
        "validity": measure_validity(arguments.keys),
        "prompts_each": COUNT,
        "tokens_a_response": sampling.NEW_TOKENS,
        "gains": state_gains(rows),
        "rows": rows,
        "seeds": SEEDS,
        "suspects": f"Llama-shaped, {HIDDEN} wide, {LAYERS} layers, {STEPS} steps of "
        f"{TOKENS_PER_STEP} tokens each; trained from the fixtures alone",
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {name: metadata.version(name) for name in ("numpy", "torch", "transformers")},
        "seconds_of_this_run": round(time.perf_counter() - started),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["gains"], indent=1))


if __name__ == "__main__":
    main()
