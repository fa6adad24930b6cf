"""The bench of searches: what it measures is there."""

from __future__ import annotations

from importlib import import_module

import pytest

from bench.search_speed import STAGES


@pytest.mark.parametrize(("module", "name"), STAGES.values(), ids=STAGES)
def test_stages_are_functions_of_the_tool(module: str, name: str) -> None:
    assert callable(getattr(import_module(module), name))
