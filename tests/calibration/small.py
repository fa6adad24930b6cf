"""Small networks for the tests of calibration, and inputs for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxdecomp.calibration.activations import open_taps
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.layers.adapter import Site
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from tests.runtime.small import model as make
from tests.runtime.small import value


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def loaded(proto: onnx.ModelProto) -> ir.Model:
    """As a model is before its layers are looked for: with the shapes of its activations."""
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def site_of(model: ir.Model, name: str = "layer") -> Site:
    return next(site for site in find(model)[0] if site.layer.name == name)


def calibration(feeds: Sequence[Mapping[str, Array]], **more: Any) -> Calibration:
    """Of all rows that the feeds have, unless told otherwise."""
    stackable = bool(more.pop("stackable", True))
    settings = {"batch": 4, "rows": 10**7, "threads": 1, **more}
    return Calibration(
        Feeds(tuple(dict(feed) for feed in feeds), "the test", stackable=stackable), **settings
    )


def values(model: ir.Model, names: Sequence[str], feeds: Sequence[Mapping[str, Array]]) -> list[Array]:
    """What the model computes for the feeds, one batch."""
    feed = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    taps = open_taps(model, names, threads=1)
    found = dict(zip(taps.names, taps.run(feed), strict=True))
    return [found[name] for name in names]


def conv(name: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [y], name=name, **attributes)


def residual(damaged: str = "", seed: int = 0) -> onnx.ModelProto:
    """y = relu(second(relu(first(s))) + s) with s = relu(stem(x)); one layer's weight may be damaged."""
    sizes = {"stem": (4, 3, 3, 3), "first": (6, 2, 3, 3), "second": (4, 6, 3, 3)}
    weights: dict[str, Array] = {}
    for index, (name, shape) in enumerate(sizes.items()):
        weights[f"{name}.w"] = normal(*shape, seed=seed + index) / np.float32(3)
        weights[f"{name}.b"] = normal(shape[0], seed=seed + index)
    if damaged:
        weights[f"{damaged}.w"] = weights[f"{damaged}.w"] + normal(*sizes[damaged], seed=9) / np.float32(5)
    nodes = [
        conv("stem", "x", "a", pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Relu", ["a"], ["s"]),
        conv("first", "s", "h", pads=[1, 1, 1, 1], group=2),
        helper.make_node("Relu", ["h"], ["r"]),
        conv("second", "r", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "s"], ["t"], name="sum"),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    return make(nodes, [value("x", ["N", 3, 8, 5])], [value("y", None)], weights)


def images(count: int = 10) -> list[dict[str, Array]]:
    return [{"x": normal(1, 3, 8, 5, seed=index)} for index in range(count)]


def network(nodes: list[onnx.NodeProto], weights: dict[str, Array], *outputs: str) -> ir.Model:
    """From x [N, 4, 6, 6] to outputs of that shape."""
    shape: list[int | str | None] = ["N", 4, 6, 6]
    return loaded(make(nodes, [value("x", shape)], [value(y, shape) for y in outputs], weights))


PLAIN = {"w": normal(5, 7), "c": normal(7)}
MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")


def matmul_model(nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: Sequence[Any]) -> ir.Model:
    """From x of that shape to y."""
    return loaded(make(nodes, [value("x", shape)], [value("y", None)], weights))


def gemm(operands: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Gemm", operands, ["y"], name="layer", **attributes)


def gru() -> ir.Model:
    """In both directions, over x [steps, N, 5]."""
    node = helper.make_node(
        "GRU", ["x", "w", "r", "b"], ["y"], name="layer", hidden_size=3, direction="bidirectional"
    )
    weights = {"w": normal(2, 9, 5), "r": normal(2, 9, 3), "b": normal(2, 18)}
    return matmul_model([node], weights, ["steps", "N", 5])
