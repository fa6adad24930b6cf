"""What the literature does to linear layers one by one: two factors by an SVD, in three metrics.

All take the rank that keeps a given share of a layer's parameters, the same share in every layer, and nothing
is fitted afterwards. With x a layer's inputs and y = x W, the SVD is of T W, and T's inverse goes into the
first factor:

- "SVD": T is the identity.
- "ASVD" (Yuan et al. 2023, arXiv 2312.05821): T is diagonal, the root of each input's mean absolute value.
  The paper's search for a rank in each layer is left out.
- "SVD-LLM" (Wang et al. 2024, arXiv 2403.07378): T is the transposed Cholesky factor of the inputs' second
  moments, so what is truncated is the error of the outputs. Its form W: the update of the second factor on
  the compressed prefix, form U, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import scipy.linalg
from onnx import helper, numpy_helper

from onnxdecomp.core.layer import Array
from onnxdecomp.tensor.linalg import two_factors

Kind: TypeAlias = Literal["SVD", "ASVD", "SVD-LLM"]
KINDS: tuple[Kind, ...] = ("SVD-LLM", "ASVD", "SVD")

_ALPHA = 0.5
"""ASVD's exponent of the mean absolute values."""

_RIDGE = 1e-6
"""Of the mean of the second moments, on their diagonal: a Cholesky factor needs all of them positive."""

_BATCH = 32


def baseline(kind: Kind, source: Path, target: Path, calib: Mapping[str, Array], kept: float) -> None:
    """Write the model with all its products by constant matrices in two factors each.

    Args:
        kind: The metric.
        source, target: Files.
        calib: Inputs, samples on the first axis; an attention mask among them says which positions count.
        kept: The share of the parameters of each matrix that is kept.
    """
    model = onnx.load(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and len(weights[node.input[1]].dims) == 2
    ]
    names = list(dict.fromkeys(node.input[0] for node in layers))
    known = {} if kind == "SVD" else _seen(model, names, calib)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node not in layers:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        rank = int(kept * weight.size / sum(weight.shape))
        for place, factor in enumerate(factors(kind, weight, known.get(node.input[0]), rank)):
            name = f"{node.input[1]}.{place}"
            model.graph.initializer.append(numpy_helper.from_array(factor.astype(np.float32), name))
            ends = (node.input[0], f"{node.output[0]}.0"), (f"{node.output[0]}.0", node.output[0])
            x, y = ends[place]
            nodes.append(helper.make_node("MatMul", [x, name], [y], name=f"{node.name}.{place}"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    onnx.save(model, target)


def factors(kind: Kind, weight: Array, seen: tuple[Array, Array] | None, rank: int) -> tuple[Array, Array]:
    """[inputs, rank] and [rank, outputs], whose product stands for a weight [inputs, outputs].

    Args:
        kind: The metric.
        weight: As above.
        seen: The inputs' second moments [inputs, inputs] and mean absolute values [inputs]; None for "SVD".
        rank: Of the product.
    """
    turn = np.eye(len(weight))
    if kind != "SVD":
        assert seen is not None
        moments, sizes = seen
        if kind == "ASVD":
            turn = np.diag(np.maximum(sizes, 1e-6 * sizes.max()) ** _ALPHA)
        else:
            turn = np.linalg.cholesky(moments + _RIDGE * np.trace(moments) / len(moments) * turn).T
    first, second = two_factors(turn @ weight, rank)
    return scipy.linalg.solve_triangular(turn, first), second


def _seen(
    model: onnx.ModelProto, names: list[str], calib: Mapping[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """Second moments and mean absolute values of activations, over positions that no mask leaves out."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(observed.SerializeToString(), options)
    found: dict[str, Any] = {}
    count = len(next(iter(calib.values())))
    for start in range(0, count, _BATCH):
        feed = {name: array[start : start + _BATCH] for name, array in calib.items()}
        mask = feed.get("attention_mask")
        for name, values in zip(names, session.run(None, feed), strict=True):
            rows = values.reshape(-1, values.shape[-1])
            if mask is not None and values.shape[:-1] == mask.shape:
                rows = rows[mask.reshape(-1) != 0]
            moments, sizes, seen = found.get(name, (0.0, 0.0, 0))
            found[name] = (moments + rows.T @ rows, sizes + np.abs(rows).sum(0), seen + len(rows))
    return {
        name: (np.asarray(moments, np.float64) / seen, np.asarray(sizes, np.float64) / seen)
        for name, (moments, sizes, seen) in found.items()
    }
