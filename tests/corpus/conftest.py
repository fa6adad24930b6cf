"""The models of the corpus as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.case import Case


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The model that the test's parameter names; one for all tests of a module that follow each other."""
    return Case(str(request.param), corpus, tmp_path_factory.mktemp("model"))
