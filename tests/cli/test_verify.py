"""`onnxdecomp verify` on the command line: a limit that nothing was held to is not kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.builders.commands import command
from tests.builders.feeds import samples
from tests.builders.graphs import model, node, saved

Capsys = pytest.CaptureFixture[str]


def chosen(path: Path, bias: float) -> Path:
    """A model whose output has a column for each number that is above a threshold."""
    nodes = [node("Add", "x b", "shifted"), node("Relu", "shifted", "kept"), node("NonZero", "kept", "y")]
    found = helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])
    return saved(model(nodes, {"x": ["N", 8]}, [found], {"b": np.full((1,), bias, np.float32)}), path)


def test_a_limit_that_could_not_be_judged_fails(tmp_path: Path, capsys: Capsys) -> None:
    old, new = (chosen(tmp_path / f"{name}.onnx", bias) for name, bias in (("old", 0.0), ("new", 0.5)))
    numbers = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    limit = ("--data", samples(tmp_path / "data.npz", x=numbers), "--max-error", "0.05")
    found = command(capsys, "verify", old, new, *limit[:2])
    assert found.code == 0
    assert "SKIPPED" in found.out
    held = command(capsys, "verify", old, new, *limit)
    assert held.code == 1
    assert "--max-error 0.05 was not judged: no output can be compared" in held.err
    assert command(capsys, "verify", old, old, *limit).code == 0
