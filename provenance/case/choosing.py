"""Which prompts a suspect is best asked: those whose answers are expected to hold most evidence.

Everything that is looked at was fixed without the coins: the prompts that were served and their
labels, and unmarked text of the served model (`provenance generate --unmarked`). Neither the marked
answers nor the index are read, since where they went hangs on what the coins drew, and prompts that
were chosen by it would make innocents lean towards the coins; no key is opened, and no output of
a suspect is seen. docs/method.md, section 3 has the argument.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.case.candidates import Candidate, Candidates, key_of
from provenance.case.doors import tokenizer_of
from provenance.errors import DataError, UsageError
from provenance.keys.tokenizer import load_tokenizer, tokenise
from provenance.storage.documents import read_fields, take_stated
from provenance.storage.files import (
    Paths,
    as_path,
    as_paths,
    canonical_json,
    sha256_of_files,
    write_atomically,
)
from provenance.storage.printable import Page, Said
from provenance.storage.shapes.reading import RecordFiles
from provenance.suspect.access.outputs import outputs_of, read_positions
from provenance.suspect.expected import Expected, Values

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from provenance.keys.keyring import Keyring

FORMAT: Final = "provenance chosen prompts 1"
_PREFIX: Final = 24
"""Letters and digits by which prompts begin alike."""


@dataclass(frozen=True)
class ChosenPrompts(Said):
    """Which prompts were chosen, and by what.

    Attributes
    ----------
    sha256 : of the file of prompts, which is what `collect` and a plan commit to
    chosen, candidates, records : prompts in the file, distinct prompts to choose from, and records
        that were read for them
    left_out : records that were not taken, by the reason
    by_label : chosen prompts of every value of the label that was to be balanced, or of capability
    value, value_of_all : mean expected evidence a token of the chosen and of all candidates, in
        arbitrary units; their ratio is what can be compared
    answered : chosen prompts of which unmarked answers were known; of the others their own words
        were counted
    settings : count, labels, balance, per_prefix, seed and most
    inputs : SHA-256 of the files of prompts and of unmarked text
    """

    sha256: str
    chosen: int
    candidates: int
    records: int
    left_out: Mapping[str, int]
    by_label: Mapping[str, int]
    value: float
    value_of_all: float
    answered: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: object) -> ChosenPrompts:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        return read_fields(cls, take_stated(document, frozenset({"format"})))

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.say(
            f"{self.chosen:,} prompts chosen of {self.candidates:,} in {self.records:,} records, "
            f"{self.answered:,} of them by unmarked answers, the others by their own words."
        )
        page.say(
            f"Expected evidence a token: {self.value:.3g} (all candidates {self.value_of_all:.3g})."
        )
        columns = [(name, f"{count:,}") for name, count in self.by_label.items()]
        if columns:
            page.table(["label", "prompts"], columns)
        for reason, count in self.left_out.items():
            page.say(f"Left out: {reason} ({count:,} records).")
        page.say(f"sha256 {self.sha256}", wrap=False)
        return str(page)


def choose_prompts(
    prompts: Paths,
    keyring: Any,
    output: Any,
    *,
    unmarked: Paths,
    count: int = 500,
    labels: Mapping[str, str] | None = None,
    balance: str | None = None,
    per_prefix: int = 1,
    seed: int = 0,
    most: int = 100_000,
    tokenizer: Any = None,
) -> ChosenPrompts:
    """Choose the prompts whose answers are expected to hold most evidence, and write them.

    Parameters
    ----------
    prompts : served logs, or files of your own prompts: JSONL as `collect` takes it, or any shape
        of outputs, whose answers are not looked at
    keyring : of the mark; the public half suffices
    output : JSONL for `provenance collect --prompts`; the order is random, so that its first n are
        a sample of all
    unmarked : unmarked outputs of the served model. To the same prompts if possible: a prompt that
        has answers here is judged by them, any other by its own words
    count : how many to choose; fewer if the limits leave fewer
    labels : only prompts whose record has these
    balance : name of a label, of each value of which equally many are chosen
    per_prefix : at most so many that begin with the same 24 letters and digits; 0: no limit
    seed : of the order, of ties, and of the part that is kept of too many candidates
    most : distinct prompts that are looked at, at most
    tokenizer : tokenizer.json of the served model; None: the keyring's copy

    Returns
    -------
    ChosenPrompts; its `sha256` is what a plan commits to.

    Raises
    ------
    UsageError, DataError, StorageError, ConfigurationMismatchError for another tokenizer.

    Notes
    -----
    **The file holds prompts of customers** if they come from the log, and the suspect's operator
    will see what is asked. Give prompts of your own where that must not be.

    Coin-free, and so valid for any suspect (docs/method.md, section 3). Expected evidence a token:
    `provenance.suspect.expected`. Cost: tokenising; memory: the candidates, and 100 bytes a token
    of the unmarked text.
    """
    files, texts = as_paths(prompts, "prompts"), as_paths(unmarked, "unmarked text")
    path = as_path(output, "the chosen prompts")
    _check_settings(files, texts, count, per_prefix, most)
    public: Keyring = getattr(keyring, "public", keyring)
    loaded = load_tokenizer(tokenizer_of(public, tokenizer), public)
    found = Candidates(public, loaded, dict(labels or {}), most, seed)
    for file in files:
        found.read(file)
    names = sorted(found.kept)
    candidates = [found.kept[name] for name in names]
    if not candidates:
        reasons = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items()) or "empty"
        raise DataError(
            f"{', '.join(map(str, files))}: must hold at least one prompt; got none ({reasons}). "
            "Give a log with prompt_token_ids, or a file of prompts."
        )
    values, answered = _value(candidates, texts, public, loaded)
    kept = _select(candidates, values, count, per_prefix, balance)
    order = np.random.default_rng(seed).permutation(kept)
    content = b"".join(
        canonical_json(_record(candidates[i], names[i])) + b"\n" for i in order.tolist()
    )
    write_atomically(path, content, 0o600)
    label = balance or "capability"
    by_label = Counter(candidates[i].labels.get(label, "") for i in kept.tolist())
    return ChosenPrompts(
        hashlib.sha256(content).hexdigest(),
        kept.shape[0],
        len(candidates),
        found.records,
        {reason: n for reason, n in found.left_out.items() if n},
        {f"{label}={value}": by_label[value] for value in sorted(by_label) if value},
        float(values[kept].mean()),
        float(values.mean()),
        int(answered[kept].sum()),
        {
            "count": count,
            "labels": dict(labels or {}),
            "balance": balance,
            "per_prefix": per_prefix,
            "seed": seed,
            "most": most,
        },
        {
            "prompts": sha256_of_files([one for one in files if one.is_file()]),
            "unmarked": sha256_of_files([one for one in texts if one.is_file()]),
        },
    )


def _check_settings(files: Any, texts: Any, count: int, per_prefix: int, most: int) -> None:
    if not files or not texts:
        raise UsageError(
            "prompts and unmarked text must be given; one is missing. Make unmarked text with: "
            "provenance generate --unmarked"
        )
    if count < 1 or per_prefix < 0 or most < count:
        raise UsageError(
            "count must be at least 1, per_prefix at least 0, and the most candidates at least "
            f"count; got {count}, {per_prefix}, {most}. Choose others."
        )


def _value(
    candidates: list[Candidate], unmarked: Any, public: Keyring, tokenizer: Tokenizer
) -> tuple[Values, NDArray[np.bool_]]:
    """Expected evidence a token of every candidate, and whether its unmarked answers are known.

    Values by words and by answers are two scales: the former are brought to the mean of the latter.
    """
    number = {one.key: place for place, one in enumerate(candidates)}
    owners = np.array(
        [
            number.get(key_of(one.shown.texts), -1)
            for origin, record in RecordFiles(unmarked)
            for one in outputs_of(record, origin)
        ],
        dtype=np.int64,
    )
    positions = read_positions(unmarked, tokenizer, public)
    known, size = owners >= 0, len(candidates)
    expected = Expected(positions, public.vocabulary_size, public.context_width)
    sums, counts = expected.value_outputs()
    total = np.bincount(owners[known], sums[known], minlength=size)
    tokens = np.bincount(owners[known], counts[known], minlength=size)
    answered = tokens > 0
    own = total / np.maximum(tokens, 1)
    words = expected.value_texts(tokenise(tokenizer, [one.text for one in candidates], "prompts"))
    if answered.any() and words[answered].mean() > 0:
        words *= own[answered].mean() / words[answered].mean()
    return np.where(answered, own, words), answered


def _select(
    candidates: list[Candidate],
    values: Values,
    count: int,
    per_prefix: int,
    balance: str | None,
) -> NDArray[np.int64]:
    """Places of the chosen: the best first, within the limits; candidates are in random order."""
    order = np.argsort(-values, kind="stable").tolist()
    groups = sorted({one.labels.get(balance, "") for one in candidates} if balance else {""})
    room = {group: -(-count // len(groups)) for group in groups}
    begun: Counter[str] = Counter()
    kept: list[int] = []
    for place in order:
        one = candidates[place]
        group, prefix = one.labels.get(balance, "") if balance else "", one.key[:_PREFIX]
        if not room[group] or (per_prefix and begun[prefix] >= per_prefix):
            continue
        room[group] -= 1
        begun[prefix] += 1
        kept.append(place)
    return np.array(kept[:count] if not balance else kept, dtype=np.int64)


def _record(one: Candidate, name: bytes) -> dict[str, Any]:
    """The line of a chosen prompt, as `collect` takes it."""
    labels = {"labels": dict(one.labels)} if one.labels else {}
    return {"id": f"p-{name.hex()[:16]}", **one.asked, **labels}
