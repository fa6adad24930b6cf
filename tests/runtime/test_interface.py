from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.interface import differences, interface_of, lost_defaults
from tests.builders.graphs import Dims, model, value
from tests.builders.models import scores


def relu(
    name: str = "x",
    shape: Dims = ("N", 2),
    dtype: int = TensorProto.FLOAT,
    out: str = "y",
    out_shape: Dims | None = ("N", 2),
) -> bytes:
    node = helper.make_node("Relu", [name], [out])
    return bytes(
        model([node], [value(name, shape, dtype)], [value(out, out_shape, dtype)]).SerializeToString()
    )


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (relu(), ()),
        (relu(name="z"), ("input 'x' is missing", "input 'z' is new")),
        (relu(out="z"), ("output 'y' is missing", "output 'z' is new")),
        (
            relu(dtype=TensorProto.FLOAT16),
            ("input 'x' is float16 instead of float", "output 'y' is float16 instead of float"),
        ),
        (relu(shape=(1, 2)), ("input 'x' has shape [1, 2] instead of [N, 2]",)),
        (relu(shape=("M", 2)), ("input 'x' has shape [M, 2] instead of [N, 2]",)),
        (relu(shape=(None, 2)), ("input 'x' has shape [?, 2] instead of [N, 2]",)),
        (relu(out_shape=None), ("output 'y' has shape unknown instead of [N, 2]",)),
    ],
)
def test_differences_are_named(new: bytes, expected: tuple[str, ...]) -> None:
    assert differences(interface_of(relu()), interface_of(new)) == expected


def test_a_shape_may_become_known() -> None:
    assert differences(interface_of(relu(out_shape=None)), interface_of(relu())) == ()


def test_order() -> None:
    def add(*names: str) -> bytes:
        node = helper.make_node("Add", ["a", "b"], ["y"])
        return bytes(
            model([node], [value(name, [2]) for name in names], [value("y", [2])]).SerializeToString()
        )

    found = differences(interface_of(add("a", "b")), interface_of(add("b", "a")))
    assert found == ("inputs are ordered b, a instead of a, b",)


@pytest.mark.parametrize(("ir_version", "lost"), [(3, ()), (8, ("w",))])
def test_weights_among_the_inputs(ir_version: int, lost: tuple[str, ...]) -> None:
    """Before IR 4 they had to be there and could not be fed; since then each is an optional input."""
    with_weight = scores(np.eye(3))
    with_weight.ir_version = ir_version
    with_weight.graph.input.append(value("w", [3, 3]))
    before, after = (
        interface_of(with_weight.SerializeToString()),
        interface_of(scores(np.eye(3)).SerializeToString()),
    )
    assert differences(before, after) == ()
    assert lost_defaults(before, after) == lost


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        interface_of(tmp_path / "missing.onnx")
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.ModelProto(producer_name="x" * 100).SerializeToString()[:20])
    with pytest.raises(ModelError, match="not an ONNX model"):
        interface_of(path)


def test_a_type_that_was_left_out_may_be_there() -> None:
    whole, bare = scores(np.eye(3)), scores(np.eye(3))
    for port in bare.graph.output:
        port.ClearField("type")
    odd = scores(np.eye(3))
    odd.graph.output[0].type.tensor_type.elem_type = 999
    undefined = scores(np.eye(3))
    undefined.graph.output[0].type.tensor_type.elem_type = 0
    one, two, three, four = (interface_of(m.SerializeToString()) for m in (whole, bare, odd, undefined))
    assert differences(two, one) == differences(four, one) == ()
    assert "type 999" in differences(three, one)[0]
