"""The pages say what the code and the result files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.readme import PAGES, filled
from onnxdecomp.decompositions.registry import names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_sections_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m bench.readme"


def test_every_method_is_listed() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in names())
