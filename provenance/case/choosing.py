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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
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
from provenance.suspect.expected import Expected, Values, Visits

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
        if self.chosen < self.settings["count"]:
            page.say(
                f"FEWER than the {self.settings['count']:,} that were asked for: the limits leave "
                "no more."
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
    names = _gather(found, files)
    candidates = [found.kept[name] for name in names]
    expected = _value(candidates, texts, public, loaded)
    kept = _select(candidates, expected, count, per_prefix, balance)
    values = expected.mean()
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
        int(expected.answered[kept].sum()),
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


def _gather(found: Candidates, files: Sequence[Path]) -> list[bytes]:
    """Read all prompts; their names, in an order that hangs on nothing but seed and prompts."""
    for file in files:
        found.read(file)
    if not found.kept:
        reasons = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items()) or "empty"
        raise DataError(
            f"{', '.join(map(str, files))}: must hold at least one prompt; got none ({reasons}). "
            "Give a log with prompt_token_ids, or a file of prompts."
        )
    return sorted(found.kept)


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
) -> _Values:
    """Expected evidence of every candidate, from the unmarked text."""
    number = {one.key: place for place, one in enumerate(candidates)}
    shown = (one for record in _read_unmarked(unmarked) for one in record)
    owners = np.array([number.get(key_of(texts), -1) for texts in shown], dtype=np.int64)
    positions = read_positions(unmarked, tokenizer, public)
    expected = Expected(positions, public.vocabulary_size, public.context_width)
    answers = expected.visit_outputs(owners, len(candidates))
    words = expected.visit_texts(tokenise(tokenizer, [one.text for one in candidates], "prompts"))
    return _Values.of(answers, words)


@dataclass(frozen=True)
class _Values:
    """Expected evidence a token of every candidate: by its unmarked answers, else by its words.

    These are two scales: values of words are brought to the mean of those of answers.
    """

    answers: Visits
    words: Visits
    answered: NDArray[np.bool_]
    scale: float

    @property
    def size(self) -> int:
        """Numbers of contexts."""
        return 1 + max(int(one.contexts.max(initial=0)) for one in (self.answers, self.words))

    @classmethod
    def of(cls, answers: Visits, words: Visits) -> _Values:
        answered, mean = answers.counts > 0, words.mean()
        scale = 1.0
        if answered.any() and mean[answered].mean() > 0:
            scale = float(answers.mean()[answered].mean() / mean[answered].mean())
        return cls(answers, words, answered, scale)

    def mean(self) -> Values:
        """Of each candidate by itself: float64 [candidates]."""
        return np.where(self.answered, self.answers.mean(), self.scale * self.words.mean())

    def gain(self, place: int, covered: Values) -> float:
        """What a candidate adds to others that visited each context `covered` times.

        A coin counts once, however often its context comes up: with k prompts it weighs sqrt(k).
        """
        visits = self.answers if self.answered[place] else self.words
        contexts, values = visits.of(place)
        if not contexts.size:
            return 0.0
        new = np.sqrt(covered[contexts] + 1) - np.sqrt(covered[contexts])
        return float((values * new).mean()) * (1.0 if self.answered[place] else self.scale)

    def visit(self, place: int, covered: Values) -> None:
        """Count the contexts of a chosen candidate."""
        visits = self.answers if self.answered[place] else self.words
        covered[np.unique(visits.of(place)[0])] += 1


def _read_unmarked(files: Any) -> Iterator[list[tuple[str, ...]]]:
    """What was shown before each output of a record; DataError for a record that says it is marked.

    Marked text here would choose prompts by the coins: innocents would be accused.
    """
    for origin, record in RecordFiles(files):
        if record.get("marked"):
            raise DataError(
                f"{origin}: must be unmarked text; the record says that it is marked. Make it "
                "with: provenance generate --unmarked"
            )
        yield [one.shown.texts for one in outputs_of(record, origin)]


def _select(
    candidates: list[Candidate],
    expected: _Values,
    count: int,
    per_prefix: int,
    balance: str | None,
) -> NDArray[np.int64]:
    """Places of the chosen: each adds most to those before it, within the limits.

    Candidates are in random order. Gains only fall, so that the first of the heap whose gain still
    holds is the best (Minoux 1978).
    """
    groups = {one.labels.get(balance, "") for one in candidates} - {""} if balance else {""}
    if not groups:
        raise DataError(f"some prompt must have the label {balance}; none has. Leave it out.")
    room = {group: max(count // len(groups), 1) for group in groups}
    begun: Counter[str] = Counter()
    covered = np.zeros(expected.size)
    heap = [(-value, place) for place, value in enumerate(expected.mean().tolist())]
    heapify(heap)
    kept: list[int] = []
    while heap and len(kept) < count:
        _, place = heappop(heap)
        one = candidates[place]
        group, prefix = one.labels.get(balance, "") if balance else "", one.key[:_PREFIX]
        if not room.get(group) or (per_prefix and begun[prefix] >= per_prefix):
            continue
        gain = expected.gain(place, covered)
        if heap and gain < -heap[0][0]:
            heappush(heap, (-gain, place))
            continue
        room[group] -= 1
        begun[prefix] += 1
        expected.visit(place, covered)
        kept.append(place)
    return np.array(kept, dtype=np.int64)


def _record(one: Candidate, name: bytes) -> dict[str, Any]:
    """The line of a chosen prompt, as `collect` takes it."""
    labels = {"labels": dict(one.labels)} if one.labels else {}
    return {"id": f"p-{name.hex()[:16]}", **one.asked, **labels}
