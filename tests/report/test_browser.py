"""A page of `aristos report` in a headless Chromium without a network: it draws, complains of nothing, asks nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser, program
from result_files import layer, put, timeline, write

from aristos.report.page import page
from aristos.results import Table

pytest.importorskip("plotly")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="no Chromium on PATH: apt install chromium"),
]
BAD = '</script><script>window.ran=1</script><img src="http://example.org/x" onerror="window.ran=1"><b>b</b>'
DRAWN = "document.querySelectorAll('[data-figure] .main-svg').length"
PLOTS = "document.querySelectorAll('[data-figure]').length"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A page of two runs, of a file with hostile texts and of a timeline, in a browser."""
    folder = tmp_path_factory.mktemp("page")
    files = [
        write(folder / "first.h5", "first", layer(), put()),
        write(folder / "second.h5", "second", layer(1.2, 3, busy=True), put(1.0, 4)),
        timeline(folder / "call.json"),
    ]
    hostile = Table("bad", attributes={"dtype": BAD}).dim("way", [BAD, "b"], long_name=BAD).dim("iteration", range(8))
    hostile.add("took", ("way", "iteration"), np.ones((2, 8)), "s", BAD)
    files.append(write(folder / "hostile.h5", "hostile", hostile, layer(), command=BAD, cpu=BAD))
    target = folder / "report.html"
    target.write_text(page(files), encoding="utf-8")
    assert target.stat().st_size < 6_000_000
    with browser(folder) as found:
        yield found, target


@pytest.fixture(params=[(1280, False), (390, False), (1280, True)], ids=["desktop", "phone", "dark"])
def shown(opened, request) -> tuple[Browser, Path]:
    """The page at one width, loaded again."""
    found, target = opened
    width, dark = request.param
    found.size(width, 850, dark=dark)
    found.events.clear()
    found.open(target)
    return found, target


def test_a_page_draws_its_plots_and_asks_nobody(shown):
    found, target = shown
    assert found.complaints() == []
    assert found.requests() == [target.as_uri()]
    assert found.value(PLOTS) >= 8
    assert found.value(DRAWN) >= 2 * found.value(PLOTS)  # the plot and what lies above it
    assert found.value("document.querySelectorAll('.points path').length") > 100
    assert found.value("document.querySelectorAll('table caption').length") > 8
    assert found.value("window.ran === undefined")
    assert found.value("document.images.length") == 0
    assert found.value("document.body.innerText.includes('<script>window.ran=1')")
    # nothing is wider than the window but what scrolls in its own box
    assert found.value("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_script_in_the_page_that_is_not_its_own_does_not_run(shown):
    found, _ = shown
    found.value(
        "void document.body.appendChild(Object.assign(document.createElement('script'), {text: 'window.ran=2'}))"
    )
    assert found.value("window.ran === undefined")
    assert found.value("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"


def test_a_page_is_used_by_keyboard(shown):
    found, _ = shown
    found.press("Tab")
    assert found.value("document.activeElement.className") == "skip"
    assert found.value("document.activeElement.getBoundingClientRect().left >= 0")  # visible once it is focused
    found.press("Enter")
    assert found.value("document.activeElement.id") == "main"
    reached = set()
    for _ in range(40):
        found.press("Tab")
        reached.add(found.value("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"SUMMARY.", "DIV.scroll"} <= reached
    closed = found.value("document.querySelectorAll('details:not([open])').length")
    found.value("void document.querySelector('summary').focus()")
    found.press("Enter")
    assert found.value("document.querySelectorAll('details:not([open])').length") == closed - 1


def test_a_plot_is_zoomed_by_keyboard(opened):
    found, target = opened
    found.size(1280, 850)
    found.open(target)
    span = "(() => { const [a, b] = document.querySelector('[data-figure]')._fullLayout.xaxis.range; return b - a; })()"
    before = found.value(span)
    for _ in range(20):
        found.press("Tab")
        if found.value("document.activeElement.getAttribute('aria-label')") == "Zoom in":
            break
    assert found.value("getComputedStyle(document.activeElement.closest('.modebar')).opacity") == "1"
    assert found.value("document.activeElement.closest('[role=img]') === null")  # a picture has no buttons
    found.press("Enter")
    assert found.value(f"new Promise((done) => setTimeout(() => done({span}), 500))") < 0.9 * before


def test_text_has_enough_contrast(shown):
    """WCAG 2 AA: 4.5 to 1."""
    found, _ = shown
    ratios = found.value(
        """(() => {
          const canvas = document.createElement("canvas").getContext("2d");
          const light = (colour) => {
            canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            const part = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((each) => each / 255);
            const [r, g, b] = part.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const style = getComputedStyle(document.documentElement);
          const of = (name) => light(style.getPropertyValue(`--${name}`).trim());
          return ["text", "faint", "link", "good", "bad"].flatMap((name) => ["paper", "shade"].map((ground) => {
            const [high, low] = [of(name), of(ground)].sort((a, b) => b - a);
            return (high + 0.05) / (low + 0.05);
          }));
        })()"""
    )
    assert min(ratios) >= 4.5


def test_a_page_prints_everything(shown, tmp_path):
    found, _ = shown
    found.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    found.value("void window.dispatchEvent(new Event('beforeprint'))")
    assert found.value("document.querySelectorAll('details:not([open])').length") == 0
    found.value("void window.dispatchEvent(new Event('afterprint'))")
    assert found.value("document.querySelectorAll('details[open]').length") == 0
    assert found.complaints() == []
