"""Sparse tensors become dense ones when a model is loaded, and it computes what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import onnxdecomp
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.runtime.session import open_session, run
from tests.builders import graphs


def sparse_of(dense: NDArray[Any], name: str, *, coordinates: bool) -> onnx.SparseTensorProto:
    """The numbers that are not 0, with their positions in the tensor or their coordinates."""
    flat = np.flatnonzero(dense)
    indices = np.argwhere(dense) if coordinates else flat
    return helper.make_sparse_tensor(
        numpy_helper.from_array(dense.ravel()[flat], name),
        numpy_helper.from_array(indices.astype(np.int64), f"{name}_at"),
        dense.shape,
    )


def initializer(sparse: onnx.SparseTensorProto, shape: tuple[int, ...], dtype: int) -> onnx.ModelProto:
    """y = x + the tensor."""
    made = graphs.model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": shape}, {"y": shape}, dtype=dtype)
    made.graph.sparse_initializer.append(sparse)
    return made


def constant(sparse: onnx.SparseTensorProto, shape: tuple[int, ...], dtype: int) -> onnx.ModelProto:
    """The same, the tensor in a branch that is taken."""
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=sparse),
        helper.make_node("Add", ["x", "w"], ["sum"]),
    ]
    branch = helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("sum", dtype, shape)])
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    return graphs.model([yes, choice], {"x": shape}, {"y": shape}, dtype=dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from([np.float32, np.float64, np.int64]),
    share=st.floats(0, 1),
    coordinates=st.booleans(),
    built=st.sampled_from([initializer, constant]),
    seed=st.integers(0, 99),
)
def test_the_model_computes_what_onnx_runtime_says(
    folder: Path, shape: Any, dtype: Any, share: float, coordinates: bool, built: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dense = (rng.integers(1, 9, shape) * (rng.random(shape) < share)).astype(dtype)
    x, kind = rng.integers(-9, 9, shape).astype(dtype), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = built(sparse_of(dense, "w", coordinates=coordinates), shape, kind)
    path = graphs.saved(made, folder / "sparse.onnx")
    model = load(path)
    proto = ir.to_proto(model)
    assert b"sparse" not in proto.SerializeToString()
    save(model, folder / "dense.onnx", overwrite=True)
    (found,) = run(open_session(folder / "dense.onnx"), {"x": x})
    np.testing.assert_array_equal(found, x + dense)
    if dense.any():  # ONNX Runtime refuses a sparse tensor that lists nothing
        (original,) = run(open_session(path), {"x": x})
        np.testing.assert_array_equal(found, original)


def test_a_layer_with_sparse_weights_is_compressed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((64, 64)) * (rng.random((64, 64)) < 0.2)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    made = graphs.model([node], {"x": ["N", 64]}, {"y": ["N", 64]})
    made.graph.sparse_initializer.append(sparse_of(weight, "w", coordinates=False))
    path = graphs.saved(made, tmp_path / "m.onnx")
    done = onnxdecomp.compress(
        path, tmp_path / "new.onnx", rank="16", method="svd", simplify="none", bench=False
    )
    assert [choice.method for choice in done.plan.choices] == ["svd"]
    assert done.verification is not None
    assert done.verification.status == "passed"


@pytest.mark.parametrize(
    ("values", "indices", "shape", "said"),
    [
        ([1.0, 2.0], [0], (4,), "as many indices"),
        ([1.0], [-1], (4,), "of 0 and more"),
        ([1.0], [4], (4,), "damaged"),
        ([1.0], [[2, 0]], (2, 2), "damaged"),
        ([1.0], [[0, 0]], (2, -2), "damaged"),
        ([1.0], [0], (1 << 20, 1 << 20), "larger than"),
    ],
)
def test_damaged_ones_are_one_line(
    tmp_path: Path, values: Any, indices: Any, shape: tuple[int, ...], said: str
) -> None:
    made = initializer(sparse_of(np.ones(1, np.float32), "w", coordinates=False), (4,), 1)
    (sparse,) = made.graph.sparse_initializer
    sparse.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64)))
    sparse.dims[:] = shape
    path = graphs.saved(made, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=said) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
