"""The pages say what the code and the result files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.pages import ROOT, filled, pages
from onnxdecomp.decompositions.registry import names

PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_sections_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m bench.pages"


def test_every_method_is_listed() -> None:
    text = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_are_there(page: Path) -> None:
    """Links between pages are looked at where the site is built, pictures are not."""
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'!\[[^\]]*\]\(([^)\s#]+)|(?:src|srcset)="([^"#]+)', text)
    missing = [found for pair in pictures if not (page.parent / (found := pair[0] or pair[1])).is_file()]
    assert missing == []
