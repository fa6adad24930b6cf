"""Spatial SVD with greedy compression ratios, as AIMET does it, on ONNX graphs with plain onnx.helper.

Every convolution becomes a k x 1 and a 1 x k one by the SVD of its rearranged weight (Jaderberg et al. 2014).
Each layer is compressed alone to ratios of 0.1 to 0.9 of its MACs and the model's score taken; then the
lowest score is searched for at which choosing for each layer its smallest ratio with that score reaches the
ratio asked for (AIMET's documentation, "Greedy compression ratio selection"). The score is 1 minus the
relative L2 error of the outputs on some calibration inputs: they have no labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from bench.straightforward import layers
from onnxdecomp.core.layer import Array
from onnxdecomp.runtime.session import Feed

RATIOS = tuple(round(0.1 * k, 1) for k in range(1, 11))
_SECONDS = 60.0
"""About the time that scores may take: it decides how many inputs they are taken on."""
_MOST = 64


@dataclass(frozen=True, eq=False)
class Split:
    """A convolution with its SVD.

    Attributes:
        node: The convolution.
        left: [outputs * kw, rank], right: [rank, inputs * kh]: their product is the rearranged weight.
        shape: Of the weight.
        dense: MACs of the layer.
        each: MACs of the chain for each rank.
    """

    node: onnx.NodeProto
    left: Array
    right: Array
    shape: tuple[int, int, int, int]
    dense: int
    each: int

    def rank(self, ratio: float) -> int:
        """The largest rank at that ratio of MACs."""
        full: int = self.left.shape[1]
        return max(1, min(full, int(ratio * self.dense / self.each)))


def compress(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, ratio: float
) -> tuple[onnx.ModelProto | None, dict[str, Any]]:
    """The model at about `ratio` of the MACs of its convolutions, and facts; None where it has none.

    Args:
        model: With a name for every node.
        feeds: Calibration inputs.
        ratio: Of all convolutions' MACs that this method takes.
    """
    splits = _splits(model, feeds[0])
    if not splits:
        return None, {}
    start = time.process_time()
    _outputs(model, feeds[:1])
    each = time.process_time() - start
    count = int(np.clip(_SECONDS / (len(splits) * len(RATIOS) * each), 1, min(_MOST, len(feeds))))
    used = feeds[:count]
    wanted = _outputs(model, used)
    scores = {
        name: {
            r: _score(_outputs(_replaced(model, {name: split}, {name: r}), used), wanted) for r in RATIOS[:-1]
        }
        for name, split in splits.items()
    }
    chosen = _greedy(splits, scores, ratio)
    return _replaced(model, splits, chosen), {
        "samples": count,
        "decomposed": sum(r < 1 for r in chosen.values()),
    }


def _greedy(
    splits: Mapping[str, Split], scores: Mapping[str, Mapping[float, float]], ratio: float
) -> dict[str, float]:
    """Each layer's smallest ratio that keeps a score, the highest score that reaches the ratio asked for."""
    total = sum(split.dense for split in splits.values())
    chosen: dict[str, float] = {}
    for score in sorted({s for own in scores.values() for s in own.values()}, reverse=True):
        chosen = {
            name: min((r for r, s in own.items() if s >= score), default=1.0) for name, own in scores.items()
        }
        cost = sum(
            split.dense if chosen[name] == 1 else split.each * split.rank(chosen[name])
            for name, split in splits.items()
        )
        if cost <= ratio * total:
            break
    return chosen


def _splits(model: onnx.ModelProto, feed: Feed) -> dict[str, Split]:
    weights = {node.name: weight for node, weight in layers(model) if _plain(node, weight)}
    nodes = [node for node in model.graph.node if node.name in weights]
    shapes = _shapes(model, feed, [value for node in nodes for value in (node.input[0], node.output[0])])
    found = {}
    for node in nodes:
        t, s, kh, kw = weights[node.name].shape
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        matrix = weights[node.name].transpose(0, 3, 1, 2).reshape(t * kw, s * kh)
        left, right = _svd(matrix)
        rows, columns = after[2], after[3]
        each = s * kh * rows * before[3] + t * kw * rows * columns
        found[node.name] = Split(node, left, right, (t, s, kh, kw), t * s * kh * kw * rows * columns, each)
    return found


def _svd(matrix: Array) -> tuple[Array, Array]:
    from scipy.linalg import svd

    u, values, v = svd(matrix, full_matrices=False)
    root = np.sqrt(values)
    return u * root, root[:, None] * v


def _plain(node: onnx.NodeProto, weight: Array) -> bool:
    """AIMET takes convolutions without dilation."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (
        node.op_type == "Conv"
        and set(given.get("dilations", [1])) == {1}
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and weight.shape[2] * weight.shape[3] > 1
    )


def _replaced(
    model: onnx.ModelProto, splits: Mapping[str, Split], ratios: Mapping[str, float]
) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    gone = set()
    for node in made.graph.node:
        ratio = ratios.get(node.name, 1.0)
        if ratio == 1:
            nodes.append(node)
            continue
        split = splits[node.name]
        gone.add(node.input[1])
        nodes += _pair(made, split, split.rank(ratio))
    kept = [tensor for tensor in made.graph.initializer if tensor.name not in gone]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(kept)
    return made


def _pair(model: onnx.ModelProto, split: Split, rank: int) -> list[onnx.NodeProto]:
    node = split.node
    t, s, kh, kw = split.shape
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    down, across = given.get("strides", [1, 1])
    first = split.right[:rank].reshape(rank, s, kh, 1)
    second = split.left[:, :rank].reshape(t, kw, rank).transpose(0, 2, 1)[:, :, None, :]
    names = [f"{node.name}.first.weight", f"{node.name}.second.weight"]
    for name, array in zip(names, (first, second), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    between = f"{node.name}.between"
    return [
        helper.make_node(
            "Conv",
            [node.input[0], names[0]],
            [between],
            name=f"{node.name}.first",
            kernel_shape=[kh, 1],
            strides=[down, 1],
            pads=[top, 0, bottom, 0],
        ),
        helper.make_node(
            "Conv",
            [between, names[1], *node.input[2:]],
            list(node.output),
            name=f"{node.name}.second",
            kernel_shape=[1, kw],
            strides=[1, across],
            pads=[0, left, 0, right],
        ),
    ]


def _score(outputs: Sequence[Array], wanted: Sequence[Array]) -> float:
    lost = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(outputs, wanted, strict=True))
    return 1.0 - float(np.sqrt(lost / sum(float(np.square(b, dtype=np.float64).sum()) for b in wanted)))


def _outputs(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[Array]:
    """The floating-point outputs for all feeds."""
    session = _session(model)
    return [array for feed in feeds for array in session.run(None, feed) if array.dtype.kind == "f"]


def _shapes(model: onnx.ModelProto, feed: Feed, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    wanted = [name for name in dict.fromkeys(names) if name not in known]
    tapped.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    session = _session(tapped)
    every = [value.name for value in session.get_outputs()]
    ran = dict(zip(every, session.run(None, feed), strict=True))
    return {name: (feed[name] if name in feed else ran[name]).shape for name in names}


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
