"""Layers that mix channels only, one behind the other: their product gives the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.merge_pointwise import merge_pointwise
from onnxdecomp.runtime.session import open_session, run
from tests.builders import graphs


def outputs(model: ir.Model, x: Array) -> Array:
    return run(open_session(ir.to_proto(model).SerializeToString()), {"x": x})[0]


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def convolutions(
    channels: tuple[int, int, int],
    groups: tuple[int, int],
    strides: tuple[int, int],
    biases: tuple[bool, bool],
    d: int = 2,
    **attributes: Any,
) -> ir.Model:
    """x -> 1x1 convolution -> 1x1 convolution -> Relu."""
    nodes, weights, x = [], dict[str, Array](), "x"
    for k in range(2):
        weights[f"w{k}"] = normal(channels[k + 1], channels[k] // groups[k], *[1] * d)
        own = [x, f"w{k}"]
        if biases[k]:
            weights[f"b{k}"] = normal(channels[k + 1])
            own.append(f"b{k}")
        said = {"group": groups[k], "strides": [strides[k]] * d, **attributes}
        nodes.append(helper.make_node("Conv", own, [f"c{k}"], name=f"conv{k}", **said))
        x = f"c{k}"
    nodes.append(helper.make_node("Relu", [x], ["y"], name="relu"))
    proto = graphs.model(nodes, {"x": ["N", channels[0], *[7] * d]}, {"y": None}, weights)
    return ir.from_proto(proto)


@settings(max_examples=25)
@given(
    channels=st.tuples(*[st.sampled_from((4, 8, 12))] * 3),
    groups=st.tuples(*[st.sampled_from((1, 2, 4))] * 2),
    strides=st.tuples(*[st.integers(1, 3)] * 2),
    biases=st.tuples(st.booleans(), st.booleans()),
    d=st.integers(1, 3),
)
def test_the_product_is_the_two(
    channels: tuple[int, int, int],
    groups: tuple[int, int],
    strides: tuple[int, int],
    biases: tuple[bool, bool],
    d: int,
) -> None:
    model = convolutions(channels, groups, strides, biases, d)
    x = normal(2, channels[0], *[7] * d)
    expected = outputs(model, x)
    sizes = [channels[k + 1] * channels[k] // groups[k] for k in range(2)]
    together = channels[0] * channels[2] // int(np.gcd(*groups))
    pays = together <= sum(sizes)
    assert len(merge_pointwise(model)) == pays
    assert [node.op_type for node in model.graph] == ["Conv"] * (2 - pays) + ["Relu"]
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-4, atol=1e-4)
    assert {value.name for value in model.graph.initializers.values()} == {
        value.name
        for node in model.graph
        for value in node.inputs
        if value is not None and value.is_initializer()
    }


def test_products_are_merged_to_the_end() -> None:
    weights = {"w0": normal(8, 6), "w1": normal(6, 7), "w2": normal(7, 3)}
    nodes = [
        helper.make_node("MatMul", [x, f"w{k}"], [y], name=f"m{k}")
        for k, (x, y) in enumerate((("x", "a"), ("a", "b"), ("b", "y")))
    ]
    model = ir.from_proto(graphs.model(nodes, {"x": [2, 5, 8]}, {"y": None}, weights))
    x = normal(2, 5, 8)
    expected = outputs(model, x)
    assert len(merge_pointwise(model)) == 2
    assert [node.name for node in model.graph] == ["m2"]
    np.testing.assert_allclose(outputs(model, x), expected, rtol=1e-4, atol=1e-4)


def test_what_stays_two() -> None:
    """A border without a bias, a value that others see, a weight that others read, and what was not asked."""
    plain = ((8, 8, 8), (1, 1), (1, 1), (True, True))
    assert len(merge_pointwise(convolutions(*plain, pads=[1, 1, 1, 1]))) == 0
    assert len(merge_pointwise(convolutions(*plain), lambda first, second: False)) == 0
    seen = convolutions(*plain)
    seen.graph.outputs.append(seen.graph.node("conv0").outputs[0])
    assert len(merge_pointwise(seen)) == 0
    read = convolutions(*plain)
    read.graph.node("conv1").replace_input_with(1, read.graph.node("conv0").inputs[1])
    assert len(merge_pointwise(read)) == 0
    assert len(merge_pointwise(convolutions(*plain))) == 1


@pytest.mark.parametrize(("exclude", "left"), [((), 3), (("second",), 4)])
def test_chains_one_behind_the_other(tmp_path: Path, exclude: tuple[str, ...], left: int) -> None:
    """The last factor of the first and both factors of the second are one; what was to stay does."""
    weights = {"w0": normal(16, 8, 3, 3), "b0": normal(16), "w1": normal(8, 16, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w1"], ["y"], name="second"),
    ]
    proto = graphs.model(nodes, {"x": ["N", 8, 6, 6]}, {"y": ["N", 8, 6, 6]}, weights)
    asked: dict[str, Any] = {"method": "tucker", "rank": "4", "exclude": exclude, "simplify": "none"}
    new = tmp_path / "new.onnx"
    done = onnxdecomp.compress(proto, new, bench=False, skip_below=0.0, **asked)
    made = onnx.load(new)
    assert len(made.graph.node) == left
    assert made.graph.output[0].name == "y"
    assert any("merged" in note for note in done.notes) == (not exclude)
    assert all(check.rel_error is not None and check.rel_error < 1e-4 for check in done.lowering)
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer]
    totals = done.record["totals"]
    assert totals["params"]["after"] == sum(array.size for array in stored)
    assert totals["macs"]["after"] == 36 * sum(array.size for array in stored if array.ndim == 4)


def test_a_chain_is_not_merged_with_itself(tmp_path: Path) -> None:
    """Full rank was asked for, which is more numbers than the layer has."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    proto = graphs.model(nodes, {"x": ["N", 8]}, {"y": ["N", 6]}, {"w": normal(8, 6)})
    new = tmp_path / "new.onnx"
    onnxdecomp.compress(proto, new, method="svd", rank="6", must_save="none", bench=False, skip_below=0.0)
    assert [node.op_type for node in onnx.load(new).graph.node] == ["MatMul", "MatMul"]
