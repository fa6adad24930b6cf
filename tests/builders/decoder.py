"""A decoder of one layer with a cache: tokens to logits, the head tied to the embedding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxdecomp.core.layer import Array
from tests.builders.graphs import model, node, value

VOCABULARY, WIDTH, HEADS, LONGEST = 300, 16, 2, 32
_DEPTH = WIDTH // HEADS


def decoder(
    *,
    merged: bool = False,
    past: str = "past_key_values.0",
    present: str = "present.0",
    new: int | str = "new",
) -> onnx.ModelProto:
    """input_ids, position_ids [batch, new] and a cache of keys and values to logits [batch, new, V].

    With `merged` the cache is read only where use_cache_branch is true.
    """
    nodes = [
        node("Gather", "table input_ids", "embedded"),
        node("Gather", "positions position_ids", "placed"),
        node("Add", "embedded placed", "x"),
    ]
    for name in ("q", "k", "v"):
        nodes += [
            node("MatMul", f"x w_{name}", f"{name}_flat"),
            node("Reshape", f"{name}_flat split", f"{name}_apart"),
            node("Transpose", f"{name}_apart", f"{name}_new", perm=[0, 2, 1, 3]),
        ]
    if merged:
        nodes.append(node("Squeeze", "use_cache_branch", "switch"))
    for name, kind in (("k", "key"), ("v", "value")):
        joined = node("Concat", f"{past}.{kind} {name}_new", f"{name}_with", axis=2)
        if merged:
            branches = {
                "then_branch": _branch(joined),
                "else_branch": _branch(node("Identity", f"{name}_new", f"{name}_alone")),
            }
            nodes.append(node("If", "switch", f"{present}.{kind}", **branches))
        else:
            joined.output[0] = f"{present}.{kind}"
            nodes.append(joined)
    nodes += [
        node("Shape", f"{present}.key", "sizes"),
        node("Gather", "sizes two", "total"),
        node("Range", "zero total one", "columns"),
        node("Unsqueeze", "position_ids axes", "rows"),
        node("LessOrEqual", "columns rows", "seen"),
        node("Transpose", f"{present}.key", "keys", perm=[0, 1, 3, 2]),
        node("MatMul", "q_new keys", "scores"),
        node("Where", "seen scores least", "masked"),
        node("Softmax", "masked", "shares", axis=-1),
        node("MatMul", f"shares {present}.value", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back join", "together"),
        node("MatMul", "together w_o", "attended"),
        node("Add", "x attended", "y"),
        node("Transpose", "table", "head_weight", perm=[1, 0]),
        node("MatMul", "y head_weight", "logits"),
    ]
    ids = ["batch", new]
    inputs = [value(name, ids, TensorProto.INT64) for name in ("input_ids", "position_ids")]
    inputs += [value(f"{past}.{kind}", ["batch", HEADS, "past", _DEPTH]) for kind in ("key", "value")]
    if merged:
        inputs.append(value("use_cache_branch", [1], TensorProto.BOOL))
    outputs = [value("logits", [*ids, VOCABULARY])]
    outputs += [value(f"{present}.{kind}", ["batch", HEADS, "total", _DEPTH]) for kind in ("key", "value")]
    return model(nodes, inputs, outputs, _weights())


def _branch(only: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph([only], f"{only.name}_branch", [], [value(only.output[0], None)])


def _weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    table, *products = (
        rng.standard_normal((rows, WIDTH)).astype(np.float32) / 2 for rows in (VOCABULARY, *[WIDTH] * 4)
    )
    return {
        "table": table,
        "positions": rng.standard_normal((LONGEST, WIDTH)).astype(np.float32),
        **{f"w_{name}": product for name, product in zip("qkvo", products, strict=True)},
        "split": np.array([0, 0, HEADS, _DEPTH]),
        "join": np.array([0, 0, WIDTH]),
        "axes": np.array([1, 3]),
        "least": np.array(-1e9, np.float32),
        **{name: np.array(number) for number, name in enumerate(("zero", "one", "two"))},
    }
