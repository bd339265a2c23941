"""The experiments: what is spoken, how it is served, and the cells in which z is collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from tests.world.innocents.language import Language, draw_language, mix_languages, scale_ends
from tests.world.innocents.suspects import (
    Quoter,
    Reader,
    Source,
    Student,
    Text,
    expect_with,
    expect_with_ngrams,
    observe_text,
)
from tests.world.innocents.traffic import Traffic, serve
from tests.world.innocents.weighing import Weighting

SHARE = 0.3


@dataclass(frozen=True)
class Cell:
    """One kind of check: a suspect with its reference, a rule, and how n(c) is counted.

    kind : "sound" must pass the gate; "fault" is a double that it must fail; "told" is measured
        and told, but not judged (a guilty suspect, a fault that this size cannot show)
    """

    source: str
    weighting: Weighting
    recipe: str = "reached"
    kind: str = "sound"

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.source} | {self.weighting.name} | {self.recipe}"


@dataclass(frozen=True)
class Experiment:
    """A world: `sources` are made when it is run."""

    name: str
    language: Language
    traffic: Traffic
    sources: Callable[[], Mapping[str, Source]]
    cells: Sequence[Cell]
    keys: int
    share: float = SHARE
    notes: Mapping[str, object] = field(default_factory=dict)


PLAIN = ("presence", "log-sqrt")
REFERENCES = ("k-grams", "right model", "wrong model")


def text_sources(
    language: Language, outputs: Traffic, *, as_text: bool = False
) -> Mapping[str, Source]:
    """A suspect that is like the served model, without and with references."""
    positions, own = observe_text(language, outputs, 11, as_text=as_text)
    other, _ = observe_text(language, outputs, 12, as_text=as_text)
    wrong = draw_language(
        99, language.words, language.width, candidates=language.candidates.shape[1]
    )
    del positions
    found = {
        "none": own,
        "k-grams": expect_with_ngrams(other, own, language),
        "right model": expect_with(language, own, language),
        "wrong model": expect_with(wrong, own, language),
    }
    return {f"text, {name}": Text.of(one, language) for name, one in found.items()}


def text_cells(
    recipe: str = "reached", kind: str = "sound", references: Sequence[str] = REFERENCES
) -> list[Cell]:
    """Every rule on text."""
    return [
        *(Cell("text, none", Weighting(rule), recipe, kind) for rule in PLAIN),
        *(Cell(f"text, {name}", Weighting("residual"), recipe, kind) for name in references),
    ]


def controls(recipe: str, kind: str, ends: bool = True) -> list[Cell]:
    """The two controls of selection."""
    found = [Cell("text, none", Weighting("unserved", low=True), recipe, kind)]
    if ends:
        found.append(Cell("text, right model", Weighting("ends", low=True), recipe, kind))
    return found


def saturating_cells(recipe: str, kind: str) -> list[Cell]:
    """Bounded rules, for the decision on weights."""
    names = ("sqrt, served at all", "log-sqrt to 3", "log-sqrt to 15")
    capped = Cell("text, right model", Weighting("residual, n to 1"), recipe, kind)
    return [*(Cell("text, none", Weighting(name), recipe, kind) for name in names), capped]


def _short(width: int, words: int, requests: int, keys: int, name: str) -> Experiment:
    language = draw_language(3, words, width)
    cells = [*text_cells(), *controls("reached", "sound")]
    cells += text_cells("end dropped, then marked", "fault", ("k-grams", "right model"))
    cells += controls("end dropped, then marked", "told")
    for recipe in ("end dropped", "marked decided late"):
        cells += text_cells(recipe, "told", ("right model",))
        cells += controls(recipe, "told")
    traffic = Traffic(requests)
    return Experiment(name, language, traffic, lambda: text_sources(language, traffic), cells, keys)


def short() -> Experiment:
    """Answers of 9 words, k = 2."""
    return _short(2, 200, 10_000, 6400, "short answers")


def short_k1() -> Experiment:
    """Answers of 5 words, k = 1."""
    return _short(1, 24_000, 30_000, 700, "short answers, k = 1")


def few_coins() -> Experiment:
    """The same with so few coins that another effect is seen beside none of selection.

    z is S over a standard deviation that is itself a function of the log: where the coin of an end
    is high, fewer contexts are reached after it, and the weights are smaller. That moves the mean
    of z by the order of 1 / sqrt(coins) (docs/method.md, section 3), here by .01, which so many
    keys show. Told, not judged: the two cells in which the end token weighs.
    """
    found = _short(1, 8000, 10_000, 2400, "short answers, k = 1, few coins")
    ends = ("text, right model | residual | reached", "text, right model | ends | reached")
    cells = [replace(c, kind="told") if c.name in ends else c for c in found.cells]
    return replace(found, cells=cells)


def long() -> Experiment:
    """Long answers, some cut by length."""
    language = draw_language(4, 200, ends=0.03)
    traffic = Traffic(3000, 100)
    cells = [*text_cells(), *controls("reached", "sound")]
    cells += text_cells("end dropped, then marked", "fault", ("right model",))
    cells += [
        *controls("end dropped, then marked", "told"),
        Cell("text, none", Weighting("log-sqrt"), "every occurrence", "told"),
        Cell("text, none", Weighting("pair counts"), "reached", "fault"),
    ]
    return Experiment(
        "long answers", language, traffic, lambda: text_sources(language, traffic), cells, 1500
    )


def large() -> Experiment:
    """Over 50,000 coins a check."""
    language = draw_language(5, 480)
    traffic = Traffic(100_000)
    cells = text_cells(references=("right model",))
    cells += text_cells("end dropped, then marked", "fault", ("right model",))
    return Experiment(
        "50,000 coins", language, traffic, lambda: text_sources(language, traffic), cells, 1010
    )


def retries() -> Experiment:
    """A request is tried again until the response is good enough, up to twenty times."""
    language = draw_language(6, 200)
    traffic = Traffic(4000, attempts=20, until=1.3, rare=True)
    outputs = Traffic(10_000)
    cells = text_cells("by request", "sound", ("k-grams", "right model"))
    cells += [*controls("by request", "sound"), *saturating_cells("by request", "told")]
    cells += [*text_cells("reached", "told", ("right model",)), *controls("reached", "told")]
    cells += saturating_cells("reached", "told")
    cells += _selected("last attempt only", "moderated")
    return Experiment(
        "retries", language, traffic, lambda: text_sources(language, outputs), cells, 700
    )


def _selected(*recipes: str) -> list[Cell]:
    """What selection after generation does to every rule and to the controls."""
    found = []
    for recipe in recipes:
        found += (
            text_cells(recipe, "fault", ())[:1] + text_cells(recipe, "told", ("right model",))[1:]
        )
        found += [*saturating_cells(recipe, "told"), *controls(recipe, "told")]
    return found


def retries_likely() -> Experiment:
    """The other taste: answers of probable words are accepted."""
    language = draw_language(6, 200)
    traffic = Traffic(4000, attempts=20, until=-1.0)
    outputs = Traffic(10_000)
    cells = text_cells("by request", "sound", ("right model",))
    cells += [*text_cells("reached", "told", ("right model",)), *controls("reached", "told")]
    cells += _selected("last attempt only")[1:]
    return Experiment(
        "retries, the other taste",
        language,
        traffic,
        lambda: text_sources(language, outputs),
        cells,
        400,
    )


def recurring() -> Experiment:
    """Retries to few prompts that recur: the same context begins many responses."""
    language = draw_language(6, 200)
    traffic = Traffic(4000, attempts=20, until=1.3, rare=True, prompts=400)
    outputs = Traffic(10_000)
    cells = text_cells("by request", "sound", ("right model",))
    cells += [*text_cells("reached", "told", ("right model",)), *controls("reached", "told")]
    cells += saturating_cells("reached", "told")
    return Experiment(
        "retries, recurring prompts",
        language,
        traffic,
        lambda: text_sources(language, outputs),
        cells,
        400,
    )


def best_of_four() -> Experiment:
    """Four candidates a request."""
    language = draw_language(7, 200)
    traffic = Traffic(4000, attempts=4, until=np.inf, rare=True)
    outputs = Traffic(10_000)
    cells = text_cells(references=("k-grams", "right model"))
    cells += [*controls("reached", "sound"), *_selected("best only")]
    return Experiment(
        "best of 4", language, traffic, lambda: text_sources(language, outputs), cells, 900
    )


def turns() -> Experiment:
    """Conversations: the user goes on after poor responses, and quotes."""
    language = draw_language(8, 200)
    traffic = Traffic(4000, turns=5, going_on=-1.0)
    outputs = Traffic(10_000)
    cells = text_cells("by request", "sound", ("k-grams", "right model"))
    cells += text_cells("unprompted", "sound", ("k-grams", "right model"))
    cells += [*controls("by request", "sound"), *controls("unprompted", "sound")]
    cells += text_cells("reached", "told", ())
    cells.append(Cell("text, right model", Weighting("residual"), "reached", "fault"))
    cells += [*saturating_cells("reached", "told"), *controls("reached", "told")]
    return Experiment(
        "several turns", language, traffic, lambda: text_sources(language, outputs), cells, 800
    )


def pasted() -> Experiment:
    """Responses begin with passages of other conversations, which users like and paste."""
    language = draw_language(9, 200)
    traffic = Traffic(10_000, pasting=0.3, liked=True)
    outputs = Traffic(10_000)
    cells = text_cells("unprompted", "sound", ("right model",))
    cells += text_cells("reached", "told", ("right model",))
    cells += [*saturating_cells("reached", "told"), *controls("reached", "told")]
    return Experiment(
        "pasted passages", language, traffic, lambda: text_sources(language, outputs), cells, 500
    )


def quoted() -> Experiment:
    """Suspects that are shown marked passages in other case and lines, and quote them."""
    language = draw_language(10, 120)
    traffic, outputs = Traffic(5000), Traffic(1000)

    def sources() -> Mapping[str, Source]:
        return {
            f"{name}, {reference}": Quoter(language, outputs, by_text=by_text, right=right)
            for name, by_text in (("quotes", True), ("quotes, ids only", False))
            for reference, right in (("none", False), ("right model", True))
        }

    cells = []
    for name, kind in (("quotes", "sound"), ("quotes, ids only", "fault")):
        cells += [Cell(f"{name}, none", Weighting(rule), "reached", kind) for rule in PLAIN]
        cells.append(Cell(f"{name}, right model", Weighting("residual"), "reached", kind))
    return Experiment("quoted prompts", language, traffic, sources, cells, 700)


def retokenised() -> Experiment:
    """Outputs come as text, and words merge; the log holds ids, or (the double) text too."""
    language = draw_language(12, 120, ends=0.0, merging=0.1)
    traffic = Traffic(10_000, 12)
    cells = [*text_cells(), *controls("reached", "sound", ends=False)]
    cells += text_cells("text-only log", "fault", ("right model",))
    cells += controls("text-only log", "told", ends=False)
    cells += text_cells("text-only log, fixed windows", "sound", ("right model",))
    return Experiment(
        "re-tokenised text",
        language,
        traffic,
        lambda: text_sources(language, traffic, as_text=True),
        cells,
        1300,
    )


def _reading(width: int, words: int, name: str, keys: int) -> Experiment:
    served = draw_language(13, words, width)
    stranger, wrong = draw_language(14, words, width), draw_language(15, words, width)
    related = mix_languages(served, stranger, 0.4)
    traffic = Traffic(3000)
    references = {"none": None, "right model": served, "wrong model": wrong}
    verbose = scale_ends(mix_languages(served, stranger, 0.1), 0.5)
    suspects = {"related": (related, 0.0), "copier": (related, 0.5), "stranger": (stranger, 0.0)}
    if width == 1:  # a last word that stood before is a context that stood before: no bets
        del suspects["copier"]

    def sources() -> Mapping[str, Source]:
        unmarked = serve(served, Traffic(3000), None, 0, 21)
        found: dict[str, Source] = {}
        for of, reference in references.items():
            for who, (suspect, copying) in suspects.items():
                found[f"reads log, {who}, {of}"] = Reader(suspect, reference, copying=copying)
            found[f"reads unmarked, {of}"] = Reader(related, reference, unmarked=unmarked)
            found[f"reads log, verbose, {of}"] = Reader(verbose, reference)
            found[f"reads log short, {of}"] = Reader(related, reference, whole=False)
            found[f"reads log short, verbose, {of}"] = Reader(verbose, reference, whole=False)
        return found

    read = ["unmarked", "log, verbose", *(f"log, {who}" for who in suspects)]
    cells = [
        Cell(f"reads {what}, {of}", Weighting("residual")) for of in references for what in read
    ]
    cells += [Cell("reads log, related, right model", Weighting("ends", low=True))]
    short = "reads log short"
    cells += [Cell(f"{short}, {of}", Weighting("residual"), kind="told") for of in references]
    cells += [
        Cell(f"{short}, verbose, {of}", Weighting("residual"), kind=kind)
        for of, kind in (("none", "told"), ("right model", "fault"), ("wrong model", "fault"))
    ]
    cells.append(Cell(f"{short}, right model", Weighting("ends", low=True), kind="told"))
    return Experiment(name, served, traffic, sources, cells, keys)


def reading() -> Experiment:
    """Models that read the marked log, and unmarked text, k = 2."""
    return _reading(2, 100, "reading", 450)


def reading_k1() -> Experiment:
    """The same, k = 1."""
    return _reading(1, 4000, "reading, k = 1", 600)


def listed() -> Experiment:
    """Logprobs of the twenty best tokens over a suspect's own outputs."""
    language = draw_language(16, 100, candidates=24)
    wrong = draw_language(17, 100, candidates=24)
    related = mix_languages(language, wrong, 0.3)
    traffic = Traffic(4000)

    def sources() -> Mapping[str, Source]:
        _, own = observe_text(related, traffic, 22)
        return {
            f"top-20, {name}": Text.listed(own, related, reference)
            for name, reference in (
                ("none", None), ("right model", language), ("wrong model", wrong)
            )
        }  # fmt: skip

    cells = [
        Cell(f"top-20, {name}", Weighting("residual"))
        for name in ("none", "right model", "wrong model")
    ]
    return Experiment("logprobs", language, traffic, sources, cells, 800)


def guilty() -> Experiment:
    """Students of the log: what the rules and the controls say of them."""
    language = draw_language(18, 200)
    traffic, outputs = Traffic(10_000), Traffic(10_000)

    def sources() -> Mapping[str, Source]:
        ended = Student(language, outputs, right=True, whole=True)
        return {"text with ends, strong student": ended} | {
            f"text, {name}": Student(language, outputs, prior=prior, right=right)
            for name, prior, right in (
                ("none", 300.0, False), ("right model", 300.0, True), ("strong student", 3.0, True)
            )
        }  # fmt: skip

    cells = [*text_cells(kind="told", references=("right model",))]
    cells += [*saturating_cells("reached", "told"), *controls("reached", "told")]
    cells += controls("end dropped, then marked", "told")
    cells += text_cells("end dropped, then marked", "told", ("right model",))
    strong = [Cell("text, strong student", Weighting(rule), kind="told") for rule in PLAIN]
    strong += [
        Cell(f"{source}, strong student", Weighting(name, low=True), kind="told")
        for source in ("text", "text with ends")
        for name in ("unserved", "ends")
    ]
    return Experiment("guilty students", language, traffic, sources, [*cells, *strong], 300)


EXPERIMENTS: Mapping[str, Callable[[], Experiment]] = {
    function.__name__: cache(function)
    for function in (
        short, large, short_k1, few_coins, long, retokenised, quoted, retries, retries_likely,
        recurring, best_of_four, turns, pasted, reading, reading_k1, listed, guilty,
    )
}  # fmt: skip
