"""The page in a real browser: nothing runs, nothing is fetched, nothing is cut, and it prints."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

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
    assert 2 <= len(boxes) <= 8
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
