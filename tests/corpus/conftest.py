"""The models of the corpus as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.case import Case


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The model that the test's parameter names; one for all tests, which pytest puts in an order for it."""
    return Case(str(request.param), corpus, tmp_path_factory.mktemp("model"))
