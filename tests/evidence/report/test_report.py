"""The page itself: self-contained, deterministic, accessible in its structure, safe."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from provenance.check.filing import Filing
from provenance.check.suspects import judge_suspects, read_suspect
from provenance.check.verdict import Verdict
from provenance.evidence.report.heading import Heading
from provenance.evidence.report.page import PALETTE, render_report
from provenance.evidence.report.several import render_suspects
from provenance.storage.files import write_json
from tests.evidence.report.hostile import OWNED, PAYLOADS, poison, poison_plan

KINDS = (
    "evidence", "none", "invalid", "untested", "little", "reserved", "twins", "planned"
)  # fmt: skip
VOID = {"meta", "br", "hr", "img", "input", "link", "base"}


class Page(HTMLParser):
    """Tags with their attributes, whether they nest, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def pages(cases):
    return {kind: render_report(*cases[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_self_contained_small_and_has_no_script(pages, kind):
    text = pages[kind]
    assert len(text.encode()) < 200_000
    for tag, attributes in Page(text).tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "action", "data", "srcset"}:
                assert str(value).startswith("#")
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink"}
    assert not re.search(r"url\((?!#)|@import", text)


@pytest.mark.parametrize("kind", KINDS)
def test_headings_tables_and_pictures_are_marked_up_for_those_who_listen(pages, kind):
    page = Page(pages[kind])
    assert page.tags[0] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for tag, attributes in page.tags:
        if tag == "th":
            assert attributes.get("scope") in {"col", "row"}
        if tag == "svg":
            hidden = attributes.get("aria-hidden") == "true"
            assert hidden or attributes.get("role") == "img"
    identifiers = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert [name for name, times in identifiers.items() if times > 1] == []
    for _, attributes in page.tags:
        label = attributes.get("aria-labelledby")
        assert label is None or label in identifiers


def test_every_picture_has_an_alternative_text_with_its_numbers(cases, pages):
    verdict, trajectory, _ = cases["evidence"]
    titles = re.findall(r"<title id=\"[\w-]+\">([^<]+)</title>", pages["evidence"])
    assert len(titles) == 2
    assert f"{trajectory.points[-1].tokens:,} tokens" in titles[0]
    assert f"The true key is at {verdict.hypotheses[0].tail.z:.1f}" in titles[1]


def test_the_same_verdict_gives_the_same_bytes_in_any_process(cases):
    code = (
        "import sys, json, hashlib\n"
        "from provenance.check.verdict import Verdict\n"
        "from provenance.evidence.report.page import render_report\n"
        "for case in json.load(sys.stdin):\n"
        "    page = render_report(Verdict.from_json(case))\n"
        "    print(hashlib.sha256(page.encode()).hexdigest())"
    )
    kinds = ("evidence", "none")
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([cases[kind][0].to_json() for kind in kinds]),
        capture_output=True,
        text=True,
        check=True,
    )
    pages = [render_report(cases[kind][0]) for kind in kinds]
    expected = [hashlib.sha256(page.encode()).hexdigest() for page in pages]
    assert done.stdout.split() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_made_from_the_file_is_the_page_made_from_the_verdict(cases, pages, kind):
    """verdict.json sorts its fields; whoever recomputes the page reads it from there."""
    verdict, *rest = cases[kind]
    document = json.loads(json.dumps(verdict.to_json(), sort_keys=True))
    assert render_report(Verdict.from_json(document), *rest) == pages[kind]


@pytest.mark.parametrize(
    ("kind", "said", "unsaid"),
    [
        (
            "evidence",
            ["Evidence found", "at least these", "fewer than 1 of 1 billion",
             "among 80 placebo keys",
             "How the evidence grew", "Which part of the service", "Exploratory check",
             "quotation, echo", "provenance verify DIR", "Every control must look like chance"],
            ["What the check could have found", "A second line", "FAILED", "Caveat"],
        ),
        (
            "none",
            ["No evidence found", "What the check could have found", "probability 0.9",
             "No innocent model was checked"],
            ["Which part of the service", "Evidence found", "FAILED"],
        ),
        (
            "untested",
            ["No answer: nothing could be tested", "neither for nor against",
             "of which 0 count; 9 left out because their context",
             "225 left out because they stand in"],
            ["p at most", "How strong", "Which part", "What the check could have found",
             "none of the"],
        ),
        (
            "little",
            ["No answer: too little data", "neither for nor against", "coins of the global key",
             "What the check could have found", "The numbers, which decide nothing",
             "cannot say", "must not be read as “no evidence found”"],
            ["Which part of the service", "Evidence found", "No evidence found", "FAILED",
             "How strong the result is"],
        ),
        (
            "twins",
            ["second line only", "251 of 300 pairs", "For the keys alone"],
            ["Which part of the service"],
        ),
        (
            "planned",
            ["Planned check", "fast-7b of Example Corp.", "abab", "2026-11-20T10:00:00Z"],
            ["Exploratory", "exploratory"],
        ),
    ],
)  # fmt: skip
def test_what_each_conclusion_says_and_does_not_say(pages, kind, said, unsaid):
    text = Page(pages[kind]).text
    for words in said:
        assert words in text, words
    for words in unsaid:
        assert words not in text, words
    assert "built-in" not in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("kind", "title"),
    [("invalid", "Inconclusive: a control failed"), ("reserved", "Inconclusive")],
)
def test_a_check_that_may_not_accuse_shows_no_number_as_evidence(cases, pages, kind, title):
    text = Page(pages[kind]).text
    verdict, _, _ = cases[kind]
    assert verdict.log10_p < -30
    assert title in text
    assert ("FAILED" in text) == (kind == "invalid")
    reason = verdict.reasons[0].replace("<b>", "").replace("</b>", "")
    assert reason.split("<")[0] in text.replace("<b>", "").replace("</b>", "")
    for words in (
        "p at most",
        "Evidence found",
        "true key:",
        "The true",
        "10−",
        "of 10",
        "such checks",
        "grew",
    ):
        assert words not in text, words
    z = verdict.hypotheses[0].tail.z
    assert f"{z:.1f}" not in pages[kind]


def test_a_caveat_of_a_foreign_scheme_is_shown_at_the_top(cases):
    verdict, _, _ = cases["evidence"]
    text = Page(render_report(replace(verdict, caveat="Keys of this scheme are weak."))).text
    assert 0 < text.index("Keys of this scheme are weak.") < text.index("1. How the question")


def test_many_keys_files_and_values_are_cut_and_the_page_stays_small(cases):
    verdict = json.loads(json.dumps(cases["evidence"][0].to_json()))
    row, share = verdict["hypotheses"][1], verdict["shares"][0]
    names = [f"value-{i}" for i in range(5_000)]
    verdict["hypotheses"] += [{**row, "value": name} for name in names]
    verdict["shares"] = [{**share, "value": name} for name in names]
    verdict["attributed"][row["slot"]] = names
    verdict["inputs"]["outputs"]["sha256"] = {f"{name}.jsonl": "0" * 64 for name in names}
    verdict["controls"] += [
        {"name": f"innocent {name}", "passed": True, "log10_p": 0.0, "detail": "", "placebo_z": []}
        for name in names
    ]
    verdict["controls"][0]["placebo_z"] *= 1_000
    page = render_report(Verdict.from_json(verdict), cases["evidence"][1])
    assert len(page.encode()) < 200_000
    text = Page(page).text
    for words in ("more keys in verdict.json", "more files in", "more values in", "more controls"):
        assert words in text


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_strings_stay_text(cases, kind):
    verdict, trajectory, _ = cases[kind]
    for start in (0, 5, 11):
        page = render_report(poison(verdict, start), trajectory, poison_plan(start))
        page.encode("utf-8")
        assert len(page) < 200_000
        names = {tag for tag, _ in Page(page).tags}
        assert not names & {"script", "img", "iframe", "link", "base", "object"}
        assert "1337" not in page
        assert not set(page) & set("\x00\x1b\u202e\u2066\u2067")
        assert sum(tag == "meta" for tag, _ in Page(page).tags) == 4
    assert OWNED in page or kind == "untested"


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_of_contrast():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("ink", ["ink", "soft", "accent", "second"])
@pytest.mark.parametrize("ground", ["paper", "panel"])
def test_every_colour_of_text_has_enough_contrast(ink, ground):
    assert contrast(PALETTE[ink], PALETTE[ground]) >= 4.5


def test_twins_alone_are_reported_when_the_keys_scored_nothing(cases):
    twins = cases["twins"][0].twins
    verdict = replace(cases["untested"][0], conclusion="evidence", twins=twins, reasons=())
    text = Page(render_report(verdict)).text
    assert "second line only" in text
    assert "How strong the result is" not in text


# --- what is filed, and several suspects ---------------------------------------------------------


def test_case_suspect_author_and_dates_stand_at_the_top(cases):
    heading = Heading(Filing("2026-17", "", "J. Doe"), "2026-12-01T10:00:00Z", "5f" * 32)
    text = Page(render_report(*cases["planned"], heading)).text
    top = text[: text.index("1. How the question")]
    for words in ("2026-17", "J. Doe", "fast-7b of Example Corp.", "2026-12-01 10:00:00 UTC",
                  "2026-11-19 00:00:00 UTC", "5f" * 32):  # fmt: skip
        assert words in top
    text = Page(render_report(*cases["none"])).text
    assert text[: text.index("1. How the question")].count("not stated") == 4
    assert "no plan" in text


def test_the_page_says_its_words_in_plain_english(cases, pages):
    for kind in KINDS:
        text = Page(pages[kind]).text
        assert "What the words mean" in text
        assert "How the outputs were collected" in text
        for jargon in ("KS p", "followed by", "log10", "e-process"):
            assert jargon not in text, (kind, jargon)
    assert "random keys lean by" in Page(pages["evidence"]).text
    assert "in 95 of 100 checks" in Page(pages["evidence"]).text
    assert re.search(r"any share from \d+ % to \d+ % would fit", Page(pages["evidence"]).text)


def test_the_ledger_of_a_collection_is_told(cases):
    verdict = cases["evidence"][0]
    fact = {
        "head": "ab" * 32, "base_url": "https://api.example/v1", "model": "suspect-7",
        "created": "2026-11-30T08:00:00Z", "models": {"suspect-7-0613": 9}, "wanted": 12,
        "answered": 9, "without_text": 1, "errors": 0, "unanswered": 2,
    }  # fmt: skip
    seen = verdict.inputs["outputs"]
    source = {**seen["source"], "collected": {"outputs.jsonl": fact}}
    inputs = {**verdict.inputs, "outputs": {**seen, "source": source}}
    text = Page(render_report(replace(verdict, inputs=inputs))).text
    assert "asked of https://api.example/v1 for the model suspect-7, from 2026-11-30 08:00" in text
    assert "Of 12 answers that were wanted 9 came with text, 1 without, 0 were errors and 2" in text
    assert "ab" * 32 in text
    assert "handed to the check as they are" in Page(render_report(verdict)).text


def test_several_suspects_stand_side_by_side(family_page):
    page = Page(family_page)
    assert len(family_page.encode()) < 100_000
    assert "Evidence against one suspect of 3" in page.text
    assert "Which of these models" in page.text
    first = page.text[page.text.index("1. All suspects") : page.text.index("2. Side by side")]
    assert re.search(r"evidence yes .* none no .* little cannot say", first)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", family_page, re.DOTALL)
    row = [re.sub(r"<[^>]+>", "", cell) for cell in cells[cells.index("own check") :][:4]]
    assert row[1:] == ["Evidence found", "No evidence found", "No answer: too little data"]
    assert "No evidence found" not in first
    assert "Suspects that wrote the same" not in page.text  # no pairs: nothing is known of it
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "link")]


def test_names_of_suspects_stay_text(cases, tmp_path):
    places = []
    for i, name in enumerate(('a"><script>x</script>', "</style><b>", "b")):
        kind = ("evidence", "none", "little")[i]
        place = tmp_path / name.replace("/", "\N{DIVISION SLASH}")
        place.mkdir()
        write_json(place / "verdict.json", cases[kind][0].to_json())
        places.append(place)
    family = judge_suspects([read_suspect(place) for place in places])
    page = render_suspects(family, places, Filing(PAYLOADS[0], "", PAYLOADS[2]), "")
    assert not {tag for tag, _ in Page(page).tags} & {"script", "img", "b"}
    assert page.count("</style>") == 1
