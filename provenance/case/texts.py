"""Texts in files, tested for the mark itself: one by one, or all together."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from provenance.case.doors import as_open_mark, tokenizer_of
from provenance.check.findings import Concluded, Conclusion
from provenance.errors import DataError, UsageError
from provenance.keys.tokenizer import load_tokenizer, tokenise_long
from provenance.marks.detection import Detection, detect_mark, detect_pooled
from provenance.storage.printable import Page, Said
from provenance.storage.shapes.reading import RecordFiles
from provenance.storage.shapes.requests import ReadAs
from provenance.storage.shapes.tally import say_reading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from provenance.marks import Mark

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Text:
    """One text: where it stood, its ids, uint32 [n], and the characters of each, uint32 [n, 2]."""

    origin: str
    ids: NDArray[np.uint32]
    spans: NDArray[np.uint32]


@dataclass(frozen=True)
class DetectedTexts(Concluded, Said):
    """What was found in several texts.

    Attributes
    ----------
    texts, found : each text that is not blank, and what was found in it
    pooled : all of them together, if that was asked for; then the single texts are only counted
    alpha : over all texts
    blank : number of texts that are blank: no test, and no share of alpha
    reading : in which shape files were read and what was left out; empty if all was plain
    """

    texts: tuple[Text, ...]
    found: tuple[Detection, ...]
    pooled: Detection | None
    alpha: float
    blank: int
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conclusion(self) -> Conclusion:
        """Over all texts: nothing is said of one without a coin, nor if all are too short."""
        decided = self.found if self.pooled is None else (self.pooled,)
        if any(result.marked for result in decided):
            return "evidence"
        untested = not all(result.tested for result in decided)
        too_short = all(result.too_short for result in decided)
        return "inconclusive" if untested or too_short else "no evidence"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; where texts are pooled, their counts without a test of their own."""
        entries = [
            {"origin": text.origin, **(result.to_json() if self.pooled is None else _count(result))}
            for text, result in zip(self.texts, self.found, strict=True)
        ]
        read = {"reading": dict(self.reading)} if self.reading else {}
        together = {} if self.pooled is None else {"pooled": self.pooled.to_json()}
        return {
            "conclusion": self.conclusion,
            "texts": entries,
            "blank": self.blank,
            **together,
            **read,
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page, single = Page(width), self.pooled is None
        rows = [
            [
                text.origin,
                str(result.tokens),
                *_say_counts(result),
                *(_say_outcome(text, result) if single else ["", "counted", "-"]),
            ]
            for text, result in zip(self.texts, self.found, strict=True)
        ]
        if self.pooled is not None:
            row = [f"all {len(rows)} together", str(self.pooled.tokens), *_say_counts(self.pooled)]
            rows.append([*row, *_say_outcome(None, self.pooled)])
        page.table(["text", "tokens", "n", "S", "log10 p", "result", "strongest"], rows)
        looks, of = (", all windows", _say_number(len(self.texts), "text")) if single else ("", "")
        tried = _say_number(len(self.found[0].keys), "key")
        page.say(f"p corrected for {tried}{looks}; alpha {self.alpha:g} over {of or 'one test'}.")
        page.say("n: scored units, each once; S: sum of their scores, for the strongest key.")
        if single and (untested := sum(not result.tested for result in self.found)):
            page.say(f"{untested} of {len(self.found)} texts have no coin to score: not tested.")
        if self.blank:
            page.say(f"{_say_number(self.blank, 'blank text')} left out.")
        for sentence in say_reading(self.reading):
            page.say(sentence)
        if caveat := self.found[0].caveat:
            page.say(f"Caveat: {caveat}.")
        return str(page)


def detect(text: Any, keyring: Any, *, tokenizer: Any = None, alpha: float = 1e-4) -> Detection:
    """Is this text marked?

    Parameters
    ----------
    text : a str; or token ids of the served tokenizer, a list or an array of integers
    keyring : unlocked, another mark, or a keyring's folder
    tokenizer : tokenizer.json of the served model; None: the keyring's copy
    alpha : level over all keys and windows, in (0, .05]

    Returns
    -------
    Detection; see its `marked`, `log10_p` and `strongest`.

    Raises UsageError. Cost: one coin a token and key of its slot, a few exact tails a text.
    """
    mark = as_open_mark(keyring)
    _check_level(alpha)
    if not isinstance(text, str):
        return detect_mark(text, mark, alpha)
    loaded = load_tokenizer(tokenizer_of(mark.public, tokenizer), mark.public)
    return detect_mark(_encode("text", text, loaded).ids, mark, alpha)


def detect_texts(
    files: Sequence[str],
    keyring: Any,
    *,
    tokenizer: Any = None,
    alpha: float = 1e-4,
    pool: bool = False,
    read_as: Any = None,
) -> DetectedTexts:
    """Test the texts of files: any shape of outputs, records with a `text`, or plain text.

    Parameters: names of files, `-` for standard input; the rest as of `detect`; whether all texts
    are one test, each coin once; how files are read, see `read_outputs`: a dict of its options.
    Raises UsageError, DataError, StorageError. Cost: as `detect`.
    """
    mark: Mark = as_open_mark(keyring)
    _check_level(alpha)
    loaded = load_tokenizer(tokenizer_of(mark.public, tokenizer), mark.public)
    reading = replace(ReadAs.of(read_as), any_text=True)
    texts, blank, left_out = _read_all(files, loaded, reading)
    # decided by the texts, before any coin: blank ones are no test and cost no level
    level = alpha if pool else alpha / len(texts)
    found = tuple(detect_mark(text.ids, mark, level) for text in texts)
    pooled = detect_pooled([text.ids for text in texts], mark, alpha) if pool else None
    return DetectedTexts(tuple(texts), found, pooled, alpha, blank, left_out)


def _check_level(alpha: float) -> None:
    if not 0 < alpha <= 0.05:
        raise UsageError(f"alpha must be in (0, 0.05]; got {alpha}. Use 1e-4.")


def _encode(origin: str, text: str, tokenizer: Tokenizer) -> Text:
    return Text(origin, *tokenise_long(tokenizer, text, origin))


def _read_all(
    names: Sequence[str], tokenizer: Tokenizer, reading: ReadAs
) -> tuple[list[Text], int, dict[str, Any]]:
    """Every text that is not blank, the number of blank ones, and what `RecordFiles` says."""
    files = [name for name in map(str, names) if name != STANDARD_INPUT]
    records = RecordFiles(files, reading)
    read, blank = [], 0
    for origin, text in _read_texts(list(map(str, names)), records):
        if text.strip():
            read.append(_encode(origin, text, tokenizer))
        else:
            blank += 1
    blank += sum(file.tally.left_out.pop("empty", 0) for file in records.files)
    if not read:
        raise DataError(
            f"{', '.join(map(str, names))}: must hold at least one text that is not blank; got "
            f"{blank or 'none'}{' blank' if blank else ''}{records.say_empty()}. Name the files "
            "that hold the text."
        )
    return read, blank, records.describe()


def _read_texts(names: Sequence[str], records: RecordFiles) -> Iterator[tuple[str, str]]:
    if STANDARD_INPUT in names:
        try:
            yield STANDARD_INPUT, sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError("-: must be UTF-8 text; it is not. Convert it first.") from error
    for origin, record in records:
        texts = record.get("outputs", [record.get("text", record.get("output"))])
        for text in texts if isinstance(texts, list) else [texts]:
            if not isinstance(text, str):
                raise DataError(
                    f"{origin}: must have text or output (a string); it has none. "
                    "Write one object a line, with the text in one of them."
                )
            yield origin, text


def _count(result: Detection) -> dict[str, Any]:
    best = result.strongest
    counts = {
        "coins": best.coins if best else 0,
        "score": best.score if best else 0,
        "original_score": best.original_score if best else None,
    }
    return {"tokens": result.tokens, **counts}


def _say_counts(result: Detection) -> list[str]:
    """n and S of the strongest key; S as the original adds it up where that is not ours."""
    best = result.strongest
    if best is None:
        return ["0", "0"]
    natural = best.original_score
    return [str(best.coins), str(best.score) if natural is None else f"{natural:.3f}"]


def _say_outcome(text: Text | None, result: Detection) -> list[str]:
    """log10 p, what it says, and where the strongest span lies."""
    best, where = result.strongest, "-"
    if result.marked and best is not None:
        where = best.name
        if text is not None:
            spans = text.spans[best.start : best.end]
            where = f"{best.name}, characters {spans[0][0]}..{spans[-1][1]}"
        said = "MARKED"
    else:
        said = "too short to say" if result.too_short else "no mark found"
    return [f"{result.log10_p:.2f}", said, where]


def _say_number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
