"""A model to run commands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.models import network


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, alone in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return network(tmp_path / "net.onnx")
