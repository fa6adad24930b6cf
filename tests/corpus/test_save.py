"""Every model of the corpus, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxdecomp.graph import save as save_module
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.graph.traversal import places, slots
from onnxdecomp.layers.shapes import infer_shapes
from tests.builders import running
from tests.corpus.case import Case, each


def interface(path: Path) -> list[tuple[str, str, list[object]]]:
    session = running.session(path, optimize=False)
    return [(v.name, v.type, list(v.shape)) for v in (*session.get_inputs(), *session.get_outputs())]


def structure(model: ir.Model) -> list[object]:
    found: list[object] = [model.ir_version, dict(model.opset_imports), dict(model.metadata_props)]
    for place in places(model):
        graph = place.graph
        found += [place.path, [v.name for v in graph.inputs], [v.name for v in graph.outputs]]
        found += [(n.name, n.domain, n.op_type, [v and v.name for v in n.inputs]) for n in graph]
    return found


@each()
def test_load_save_load(case: Case, tmp_path: Path) -> None:
    model = load(case.original)
    for external in (False, True):
        saved = save(model, tmp_path / "saved.onnx", external=external, overwrite=True)
        again = load(saved)
        assert structure(again) == structure(model)
        for new, old in zip(slots(again), slots(model), strict=True):
            assert new.tensor.dtype == old.tensor.dtype
            np.testing.assert_array_equal(new.tensor.numpy(), old.tensor.numpy())
    assert interface(saved) == interface(case.original)


@each()
def test_inferred_shapes_do_no_harm(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all shapes written into the file, the interface is the same and most values have a shape."""
    monkeypatch.setattr(save_module, "as_declared", lambda model: None)
    model = load(case.original)
    infer_shapes(model)
    values = [v for node in model.graph for v in node.outputs if v.name]
    # winml_candy has old operators of ONNX Runtime that ONNX knows nothing of.
    if case.name != "winml_candy":
        assert sum(v.shape is not None for v in values) > 0.8 * len(values)
    saved = save(model, tmp_path / "saved.onnx", external=False, overwrite=True)
    assert interface(saved) == interface(case.original)
