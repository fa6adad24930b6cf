"""The page in headless Chromium: no error, sorted, filtered, in both themes, on a phone and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from onnxdecomp.report import html
from tests.report.conftest import Record
from tests.report.test_page import hostile

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)

# Before any record is made for the page.
pytestmark = pytest.mark.skipif(
    FOUND is None, reason=f"no Chromium: none of {', '.join(NAMES)} is on the path"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        # Root, as in containers, has no sandbox.
        opened = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield opened
        opened.close()


Open = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a record's page; every message of the console, and every request, is an error in the end."""
    messages: list[str] = []
    contexts = []

    def requested(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            messages.append(url)

    def open_page(record: Record, *, width: int = 1200, scheme: Literal["light", "dark"] = "light") -> Page:
        path = tmp_path / "report.html"
        path.write_text(html(record), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requested(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []


def column(page: Page, index: int, *, visible: bool = False) -> list[str]:
    rows = f"#layers tbody tr{':not([hidden])' if visible else ''}"
    return [text.strip() for text in page.locator(f"{rows} > :nth-child({index})").all_inner_texts()]


def test_every_page_loads_without_a_word(opened: Open, record: Record) -> None:
    page = opened(record)
    assert page.locator("h1").count() >= 1


def test_hostile_names_run_nothing(opened: Open, ranks_record: Record) -> None:
    page = opened(hostile(ranks_record))
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_tables_sort(opened: Open, ranks_record: Record) -> None:
    page = opened(ranks_record)
    before = [layer["macs"]["before"] for layer in ranks_record["layers"]]
    assert before[0] < before[1]
    head = page.locator("#layers thead th", has_text="MACs")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, 1) == ["c2", "c1"]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == ["c1", "c2"]
    page.locator("#layers thead th").first.locator("button").click()
    assert head.get_attribute("aria-sort") is None


def test_tables_filter(opened: Open, ranks_record: Record) -> None:
    page = opened(ranks_record)
    search = page.get_by_label("Filter layers")
    search.fill("C2 tucker")
    assert column(page, 1, visible=True) == ["c2"]
    assert page.locator(".tools output").first.inner_text() == "1 of 2"
    search.fill("nothing like this")
    assert column(page, 1, visible=True) == []
    search.fill("")
    assert len(column(page, 1, visible=True)) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_switch(opened: Open, ranks_record: Record, scheme: str) -> None:
    page = opened(ranks_record, scheme=scheme)

    def brightness() -> float:
        colours = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
        )
        return float(sum(colours)) / 3 / 255

    def line() -> str:
        return str(page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))

    first, drawn = brightness(), line()
    assert (first > 0.5) == (scheme == "light")
    page.locator("#theme").click()
    assert (brightness() > 0.5) == (first < 0.5)
    assert line() != drawn  # the figures' text, too
    page.locator("#theme").click()
    assert brightness() == first


def test_a_phone_needs_no_sideways_scrolling(opened: Open, record: Record) -> None:
    page = opened(record, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_prints_whole_and_light(opened: Open, ranks_record: Record) -> None:
    page = opened(ranks_record, scheme="dark")
    assert page.locator("details:not([open])").count() == 1
    assert page.pdf().startswith(b"%PDF-")
    assert page.locator("details:not([open])").count() == 1  # closed again
    page.emulate_media(media="print")
    ink = page.evaluate("getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number)")
    assert max(ink) < 60
    assert not page.locator("#theme").is_visible()


def test_text_in_figures_can_be_selected(opened: Open, ranks_record: Record) -> None:
    page = opened(ranks_record)
    texts = page.locator("figure svg text")
    assert "times as fast as the original" in texts.all_inner_texts() or texts.count() > 20
    assert page.evaluate(
        "() => { const s = getSelection(), r = document.createRange();"
        " r.selectNodeContents(document.querySelector('figure svg')); s.removeAllRanges(); s.addRange(r);"
        " return s.toString().length }"
    )
