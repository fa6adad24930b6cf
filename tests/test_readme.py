"""The README says what the code and the result files say."""

from __future__ import annotations

from bench.readme import README, filled
from onnxdecomp.methods import names


def test_generated_sections_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python -m bench.readme"


def test_every_method_is_listed() -> None:
    text = README.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in names())
