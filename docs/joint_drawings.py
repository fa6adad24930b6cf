"""Drawings of what methods for several layers do: a small graph, and what the method makes of it.

docs/methods.py writes them. The graphs are real: the method is carried out on them, at half of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from xml.sax.saxutils import escape

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnxdecomp_passes.decompose import Decompose

SHARE = "0.5"
TOLD = f"Above a small graph, below what the method has made of it at {SHARE} of the full ranks or units."
STYLE = (
    "text{font:13px sans-serif;fill:#1f2937}.small{font-size:11px;fill:#6b7280}"
    "rect{fill:#eef2ff;stroke:#6366f1}.plain{fill:none;stroke:#9ca3af}path{stroke:#9ca3af;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.small{fill:#9ca3af}.step{fill:#1e1b4b}}"
)
_BOX, _GAP, _TALL, _ROW = 92, 22, 44, 58


def drawing(method: str) -> str:
    """The graph of a method before it and after it, as SVG."""
    before = ir.from_proto(_GRAPHS[method]())
    made = Decompose(method=method, rank=SHARE, must_save="none", skip_below=0.0)
    taken = made(ir.from_proto(_GRAPHS[method]()))
    parts, y, width = [], 34.0, 0.0
    for title, model in (("before", before), ("after", taken.model)):
        drawn, right, below = _graph(model.graph, y)
        parts += [f'<text class="small" x="12" y="{y - 14:.0f}">{title}</text>', *drawn]
        y, width = below + 42, max(width, right)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 12:.0f} {y - 34:.0f}" role="img">'
    title = f"<title>A graph before and after {escape(method)}</title>"
    return "\n".join([head, f"{title}<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


def _graph(graph: ir.Graph, top: float) -> tuple[list[str], float, float]:
    """Boxes and lines, the right end and the lower one; a node stands behind all that it reads."""
    depth: dict[ir.Node, int] = {}
    rows: dict[int, list[ir.Node]] = {}
    for node in graph:
        made = [value.producer() for value in node.inputs if value is not None]
        depth[node] = 1 + max((depth[one] for one in made if one in depth), default=-1)
        rows.setdefault(depth[node], []).append(node)
    most = max(map(len, rows.values()))

    def place(node: ir.Node) -> tuple[float, float]:
        own = rows[depth[node]]
        y = top + (most - len(own)) * _ROW / 2 + own.index(node) * _ROW
        return 12.0 + depth[node] * (_BOX + _GAP), y

    parts = []
    for node in graph:
        x, y = place(node)
        for value in node.inputs:
            source = None if value is None else value.producer()
            if source is not None and source in depth:
                left, height = place(source)
                parts.append(
                    f'<path d="M{left + _BOX:.0f},{height + _TALL / 2:.0f} L{x:.0f},{y + _TALL / 2:.0f}"/>'
                )
        parts.append(_box(node, x, y))
    right = max(place(node)[0] for node in graph) + _BOX
    return parts, right, top + most * _ROW - (_ROW - _TALL)


def _box(node: ir.Node, x: float, y: float) -> str:
    known = [value.const_value for value in node.inputs if value is not None]
    shapes = [tuple(array.shape.numpy()) for array in known if array is not None and array.size > _FEW]
    size = ", ".join("x".join(map(str, shape)) for shape in shapes)
    style = "step" if size else "plain"
    return (
        f'<rect class="{style}" x="{x:.0f}" y="{y:.0f}" width="{_BOX}" height="{_TALL}" rx="6"/>'
        f'<text x="{x + 8:.0f}" y="{y + 18:.0f}">{escape(node.op_type)}</text>'
        f'<text class="small" x="{x + 8:.0f}" y="{y + 35:.0f}">{size}</text>'
    )


_FEW = 16
"""Constants of so many numbers say a shape or a scale."""


def _two_convolutions() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    return _model(nodes, [1, 32, 14, 14], [1, 32, 14, 14], {"w1": [64, 32, 3, 3], "w2": [32, 64, 3, 3]})


def _siblings() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=name) for name in ("q", "k", "v")]
    nodes.append(helper.make_node("Sum", ["y_q", "y_k", "y_v"], ["y"], name="sum"))
    return _model(nodes, [1, 16, 64], [1, 16, 64], {name: [64, 64] for name in ("q", "k", "v")})


def _attention() -> onnx.ModelProto:
    nodes = []
    for name, axes in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", ["x", f"w_{name}"], [f"{name}_all"], name=name),
            helper.make_node("Reshape", [f"{name}_all", "heads"], [f"{name}_split"], name=f"{name}_split"),
            helper.make_node("Transpose", [f"{name}_split"], [f"{name}_head"], name=f"{name}_t", perm=axes),
        ]
    nodes += [
        helper.make_node("MatMul", ["q_head", "k_head"], ["scores"], name="scores"),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"], name="scale_it"),
        helper.make_node("Softmax", ["scaled"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v_head"], ["mixed"], name="mix"),
        helper.make_node("Transpose", ["mixed"], ["together"], name="back", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["together", "flat"], ["joined"], name="join"),
        helper.make_node("MatMul", ["joined", "w_o"], ["y"], name="o"),
    ]
    shapes = {f"w_{name}": [64, 64] for name in ("q", "k", "v", "o")}
    known = {"heads": np.array([0, 0, 4, 16]), "flat": np.array([0, 0, -1]), "scale": np.float32(0.25)}
    return _model(nodes, [1, 8, 64], [1, 8, 64], shapes, known)


_GRAPHS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "width": _two_convolutions,
    "attention": _attention,
    "shared": _siblings,
}


METHODS = tuple(_GRAPHS)
"""Those that have a drawing here."""


def _model(
    nodes: Sequence[onnx.NodeProto],
    taken: Sequence[int],
    given: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    known: Mapping[str, object] | None = None,
) -> onnx.ModelProto:
    draw = np.random.default_rng(0)
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    constants = {**arrays, **{name: np.asarray(value) for name, value in (known or {}).items()}}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(taken))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, list(given))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
