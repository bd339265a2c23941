"""A served log in real words, tiny real models that read it, and slow ways to say the same."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from provenance.coins.contexts import pack
from provenance.served.writer import LogWriter
from provenance.suspect.passes import Reading
from provenance.suspect.tokenizers.vocabularies import token_bytes
from tests.suspect.slow_quotations import slow_before, slow_both

WORDS = ["def", "keyring", "return", "path", "(", "self", "\n", "import", "naïve", "key", "漢字"]
LEAST = 0.002


def write_log(path, tokenizer, seed, responses=24, words=20):
    """Prompts before every second response, every third unmarked, some as text, some too short."""
    rng = np.random.default_rng(seed)
    with LogWriter(path) as log:
        for i in range(responses):
            count = 0 if i == 7 else 1 if i == 8 else words
            said = [str(word) for word in rng.choice(WORDS, count)]
            ids = tokenizer.encode(" ".join(said)).ids[: 1 if i == 8 else None]
            # a prompt that holds contexts of its own response
            asked = [str(word) for word in rng.choice(WORDS, 4)]
            prompt = tokenizer.encode(" ".join(asked + said[3:8])).ids
            log.write(
                f"r{i}",
                labels={"week": f"2026-W1{7 + i % 3}", "capability": "code", "cohort": "a"},
                marked=i % 3 != 2,
                token_ids=None if i % 5 == 4 else ids,
                text=tokenizer.decode(ids) if i % 5 == 4 else None,
                prompt_token_ids=prompt if i % 2 else None,
            )
    return path


@dataclass
class Document:
    prompt: list[int]
    ids: list[int]
    marked: bool
    quoted: list[bool]

    def positions(self, width):
        """Places that count: unprompted ones that do not quote the prompt in another form."""
        return [(place, c) for place, c in self.windows(width) if not self.quoted[place]]

    def windows(self, width):
        """The first of each context, and not one of the prompt."""
        seen = {tuple(self.prompt[i : i + width]) for i in range(len(self.prompt) - width + 1)}
        for place in range(width, len(self.ids)):
            context = tuple(self.ids[place - width : place])
            if context not in seen:
                seen.add(context)
                yield place, context


def spell(tokenizer, ids):
    """The bytes of each token."""
    strings = token_bytes(tokenizer)
    return [strings[i] or b"\xff" for i in ids]


def quote(tokenizer, prompt, ids, width=2, *, drawn):
    """Which places quote the prompt; `drawn`: the suspect drew the ids, else it reads them."""
    pieces = spell(tokenizer, ids)
    shown = [b"".join(spell(tokenizer, prompt)).decode("utf-8", "surrogateescape")] * bool(prompt)
    if not drawn:
        return slow_before(pieces, shown, width)
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    lengths = [len(c.encode("utf-8", "surrogateescape")) for c in text]
    of_byte = [place for place, n in enumerate(lengths) for _ in range(n)]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    offsets = [
        (of_byte[end - len(piece)], of_byte[end - 1] + 1)
        for piece, end in zip(pieces, ends, strict=True)
    ]
    return slow_both(text, offsets, shown, width)


def read_documents(path, tokenizer):
    """The records of a JSONL log, as a model is to read them."""
    for line in Path(path).read_text().splitlines():
        record = json.loads(line)
        ids = record.get("token_ids")
        ids = tokenizer.encode(record["text"]).ids if ids is None else ids
        prompt = record.get("prompt_token_ids", [])
        quoted = quote(tokenizer, prompt, ids, drawn=False)
        yield Document(prompt, ids, record["marked"], quoted)


def slow_served(documents, width):
    """Contexts of the marked responses."""
    return {c for one in documents if one.marked for _, c in one.windows(width)}


def save_llama(folder, tokenizer_path, size, seed, longest=2048, scale=0.4):
    """A random tiny Llama with this tokenizer; a few more logits than tokens."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=size + 16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=longest,
        initializer_range=scale,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(Path(tokenizer_path).read_bytes())
    return folder


def load_llama(folder):
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(folder).eval()


def slow_rows(model, ids, size=None):
    """Probabilities after every id of one document, float64 [n, V]."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(map(int, ids))])).logits[0, :, :size]
        return logits.softmax(-1).double().numpy()


class SlowMasses:
    """Sums over positions, with dictionaries."""

    def __init__(self):
        self.masses, self.visits = defaultdict(float), Counter()

    def add(self, context, probabilities):
        name = int(pack(np.array([context], dtype=np.uint32))[0])
        self.visits[name] += 1
        for token in np.flatnonzero(probabilities > LEAST):
            self.masses[name, int(token)] += float(probabilities[token])


def slow_read(folder, documents, width, size, served):
    """What a model with the served tokenizer says, one document and position at a time."""
    model, found = load_llama(folder), SlowMasses()
    for one in documents:
        places = [(p, c) for p, c in one.positions(width) if c in served]
        if places:
            rows = slow_rows(model, one.prompt + one.ids, size)
            for place, context in places:
                found.add(context, rows[len(one.prompt) + place - 1])
    return found


def slow_foreign_read(folder, tokenizer, served, documents, width, size, wanted):
    """The same for a model with another byte-level tokenizer, byte by byte."""
    model, found, positions = load_llama(folder), SlowMasses(), 0
    own, theirs = token_bytes(served), token_bytes(tokenizer)
    place_of = {spelling: i for i, spelling in reversed(list(enumerate(own))) if spelling}
    kept = 0.0
    for one in documents:
        ids = one.prompt + one.ids
        text = b"".join(own[i] or b"" for i in ids).decode("utf-8", "ignore")
        read = tokenizer.encode(text, add_special_tokens=False).ids
        ends = np.cumsum([len(theirs[i]) for i in read]).tolist()
        begins = np.cumsum([0, *(len(own[i] or b"") for i in ids)]).tolist()
        rows = slow_rows(model, read) if read else None
        for place, context in one.positions(width):
            if context not in wanted:
                continue
            positions += 1
            begin = begins[len(one.prompt) + place]
            if begin not in ends:
                continue
            masses = np.zeros(size)
            for token, mass in enumerate(rows[ends.index(begin)][: len(theirs)]):
                if theirs[token] in place_of:
                    masses[place_of[theirs[token]]] += mass
            kept += masses.sum()
            found.add(context, masses / masses.sum())
    return found, positions, kept


class Markov:
    """A reader whose probabilities depend on the context and the token before it, on nothing else.

    Of the synthetic world of benchmarks/calibration: as good a model of the language as there is,
    and innocent. `peek` adds that much on the token that really stands there in the log: a leak.
    """

    def __init__(self, teacher, peek=0.0, name="markov", shift=0):
        self._teacher, self._peek, self._shift = teacher, peek, shift
        self.description = {"kind": "fake", "name": name, "peek": peek, "shift": shift}
        self.reads_other_tokens = False

    def rows(self, positions):
        """Probabilities at every position, float64 [m, V]."""
        contexts = positions.contexts
        rows = self._teacher.dense(contexts >> 21, contexts & ((1 << 21) - 1))
        before = [
            int(positions.outputs[row][place - 3]) if place > 2 else 0
            for row, place in zip(positions.rows, positions.offsets, strict=True)
        ]
        turned = np.array(before, dtype=np.int64) + self._shift
        sharpness = np.array([0.5, 1.0, 2.0])[turned % 3]
        rows = rows ** sharpness[:, np.newaxis]
        rows *= (1 - self._peek) / rows.sum(axis=1, keepdims=True)
        rows[np.arange(contexts.size), positions.tokens] += self._peek
        return rows

    def read(self, positions, wanted):
        rows = np.where(wanted[:, np.newaxis], self.rows(positions), 0)
        place, token = np.nonzero(rows > LEAST)
        read = float(wanted.sum())
        return Reading(
            contexts=positions.contexts[place],
            tokens=token.astype(np.uint32),
            masses=rows[place, token],
            visited=positions.contexts[wanted],
            tally={"positions": read, "positions_read": read, "mass_kept": read},
        )
