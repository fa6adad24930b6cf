"""Layers whose singular vectors are an estimate are named."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import helper
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.tensor import linalg
from tests.builders.feeds import normal
from tests.builders.graphs import model as make
from tests.builders.graphs import value


@pytest.mark.parametrize(("limit", "named"), [(1 << 14, False), (30, True)])
def test_a_note_names_what_was_sketched(limit: int, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "_MOST", limit)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="large"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="slim"),
    ]
    weights = {"w": normal(48, 64), "v": normal(64, 24)}
    model = ir.from_proto(make(nodes, [value("x", ["N", 48])], [value("y", None)], weights))
    done = Decompose(method="svd", rank="8", must_save="none").call(model)
    assert len(done.rewritten) == 2
    expected = ("so large that their singular vectors come from a randomized SVD: large",)
    assert done.notes == (expected if named else ())
