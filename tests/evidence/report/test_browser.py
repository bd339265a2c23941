"""The page in a real browser: nothing runs, nothing is fetched, nothing is cut, and it prints."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from provenance.check.filing import Filing
from provenance.evidence.report.heading import Heading
from provenance.evidence.report.page import render_report
from tests.evidence.report.browser import CHROMIUM, Browser
from tests.evidence.report.hostile import OWNED, PAYLOADS, poison, poison_plan
from tests.evidence.report.test_report import KINDS, contrast

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a Chromium: apt-get install chromium"
)

COLOURS = """(() => {
  const ground = (node) => {
    for (let e = node; e; e = e.parentElement) {
      const found = getComputedStyle(e).backgroundColor;
      if (found !== 'rgba(0, 0, 0, 0)') return found;
    }
    return 'rgb(255, 255, 255)';
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const pairs = new Set();
  while (walk.nextNode()) {
    const text = walk.currentNode, element = text.parentElement;
    if (!text.data.trim() || element.closest('title, style')) continue;
    const style = getComputedStyle(element);
    const ink = element.closest('svg') ? style.fill : style.color;
    pairs.add(ink + '|' + ground(element));
  }
  return [...pairs];
})()"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def write(folder: Path, page: str) -> Path:
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def hex_colour(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_asks_for_nothing_and_complains_of_nothing(browser, cases, tmp_path, kind):
    path = write(tmp_path, render_report(*cases[kind]))
    browser.open(path)
    assert browser.requests == [path.as_uri()]
    assert browser.complaints == []
    picture = Image.open(io.BytesIO(browser.screenshot()))
    assert picture.size[0] == 1000
    assert picture.size[1] > 1000
    assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    assert OWNED not in browser.ask("document.title")


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_nothing_sticks_out_of_the_page_at_any_width(browser, cases, tmp_path, width):
    """Wide tables and pictures scroll inside their own box."""
    for kind in ("evidence", "none"):
        browser.open(write(tmp_path, render_report(*cases[kind])), width)
        assert browser.ask("document.documentElement.scrollWidth") <= width


DECIDING = """(() => {
  const wanted = ['key', 'found', 'adjusted p', 'control', 'result', 'value', 'own key', 'share',
    'limits', 'suspect', 'accused'];
  return [...document.querySelectorAll('thead th')].filter(e => wanted.includes(e.textContent))
    .map(e => [e.textContent, e.getBoundingClientRect().right]);
})()"""


@pytest.mark.parametrize("width", [360, 390])
def test_the_columns_that_decide_are_seen_on_a_phone_without_scrolling(
    browser, cases, family_page, tmp_path, width
):
    for page in (render_report(*cases["evidence"]), render_report(*cases["little"]), family_page):
        browser.open(write(tmp_path, page), width)
        found = browser.ask(DECIDING)
        assert len(found) >= 4
        assert [row for row in found if row[1] > width] == []
        lines = "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect())"
        assert max(browser.ask(f"{lines}.map(r => r.right)"), default=0) <= width
        assert browser.ask("document.documentElement.scrollWidth") <= width


def test_case_author_dates_and_hash_stand_on_every_printed_page(browser, cases, tmp_path):
    """Also where somebody wants to end the style with the number of the case."""
    read = shutil.which("pdftotext")
    if read is None:
        pytest.skip("needs pdftotext: apt-get install poppler-utils")
    hostile = 'x"; } </style><script>document.title="OWNED"</script>'
    for number in ("2026/17-A", hostile):
        heading = Heading(
            Filing(number, "", "J. Doe, Trust & Safety"), "2026-12-01T10:00:00Z", "5f" * 32
        )
        page = render_report(*cases["planned"], heading)
        browser.open(write(tmp_path, page))
        assert browser.complaints == []
        assert browser.ask("document.title") != OWNED
        (tmp_path / "report.pdf").write_bytes(browser.print_pdf())
        done = subprocess.run(
            [read, "-layout", tmp_path / "report.pdf", "-"],
            capture_output=True,
            text=True,
            check=True,
        )
        sheets = done.stdout.split("\f")[:-1]
        assert len(sheets) >= 4
        for i, sheet in enumerate(sheets, start=1):
            text = " ".join(sheet.split())
            assert f"Case {number}"[:50] in text
            assert "fast-7b of Example Corp." in text
            assert "J. Doe, Trust & Safety | 2026-12-01" in text
            assert f"Bundle {'5f' * 32}" in text
            assert re.search(rf"{i} ?/ ?{len(sheets)}$", text)


def test_every_text_that_is_drawn_has_a_contrast_of_at_least_four_and_a_half(
    browser, cases, tmp_path
):
    for kind in KINDS:
        browser.open(write(tmp_path, render_report(*cases[kind])))
        pairs = browser.ask(COLOURS)
        assert len(pairs) >= 3
        for pair in pairs:
            ink, ground = map(hex_colour, pair.split("|"))
            assert contrast(ink, ground) >= 4.5, pair


@pytest.mark.parametrize("start", [0, 6, 12])
@pytest.mark.parametrize("policy", [True, False], ids=["policy", "no policy"])
def test_hostile_strings_run_nothing_and_fetch_nothing(browser, cases, tmp_path, start, policy):
    """Also without the content security policy: escaping alone must hold."""
    for kind in ("planned", "none"):
        verdict, trajectory, _ = cases[kind]
        page = render_report(poison(verdict, start), trajectory, poison_plan(start))
        if not policy:
            page, removed = re.subn(r"<meta http-equiv[^>]*>", "", page)
            assert removed == 1
        path = write(tmp_path, page)
        browser.open(path, 390)
        assert "trained on marked responses?" in browser.ask("document.title")
        assert browser.ask("document.title") != OWNED
        assert browser.requests == [path.as_uri()]
        assert browser.complaints == []
        active = (
            "document.querySelectorAll('script, img, iframe, object, embed, link, base').length"
        )
        assert browser.ask(active) == 0
        handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        assert browser.ask(f"{handlers}.filter(name => name.startsWith('on'))") == []
        assert browser.ask("document.documentElement.scrollWidth") <= 390


def test_the_browser_would_notice_a_page_that_does_run_something(browser, tmp_path):
    """The test above can fail: the same strings, not escaped."""
    path = write(tmp_path, f"<!DOCTYPE html><title>x</title><p>{PAYLOADS[1]}{PAYLOADS[4]}")
    browser.open(path)
    browser.ask("new Promise(done => setTimeout(done, 200))")
    assert len(browser.requests) > 1
    assert browser.complaints != []


def test_the_page_prints_on_a4_with_page_numbers(browser, cases, tmp_path):
    browser.open(write(tmp_path, render_report(*cases["evidence"])))
    content = browser.print_pdf()
    assert content.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert 2 <= len(boxes) <= 10
    for width, height in boxes:
        assert abs(float(width) - 595) < 1.5
        assert abs(float(height) - 842) < 1.5


def test_the_documented_command_makes_a_pdf(cases, tmp_path):
    write(tmp_path, render_report(*cases["none"]))
    text = (Path(__file__).parents[3] / "docs/report.md").read_text()
    (command,) = re.findall(r"^```sh\n(chromium [^\n]+)\n```", text, re.MULTILINE)
    words = [str(CHROMIUM), *shlex.split(command)[1:], f"--user-data-dir={tmp_path}/profile"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
