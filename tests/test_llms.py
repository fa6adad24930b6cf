"""docs/llms.txt, the map of the site for language models."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_every_page_that_it_names_is_there() -> None:
    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    pages = re.findall(r"\]\(([^)]+)\)", text)
    assert len(pages) > 20
    assert [page for page in pages if not (ROOT / "docs" / page).is_file()] == []
