"""The process in which simplifiers run: `python -m onnxdecomp_passes._simplify_worker TOOL IN OUT`.

It stands alone because simplifiers print, hang and crash. Both files are models without weights (see
_skeleton.py). Exit status 0: OUT holds the result, which computes what IN does as far as that could be
tried. Anything else: the last line on stderr says what went wrong.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Feeds: TypeAlias = dict[str, Array]

_FOLDED_BYTES = "1MB"
"""The largest tensor that folding may make: an Expand or a Tile must not become a weight."""
_FOLDED_ELEMENTS = 1 << 18
_TRIAL_WEIGHTS = 1 << 23
"""Numbers in the weights up to which the trial makes some up (32 MB in float32): it must not need more
memory than the compression itself. Larger models have the verification of the result."""
_FREE_SIZES = (32, 1, 64)
"""What free dimensions are bound to, until one suits the model."""
_UNNEEDED = ("torch", "sympy")
"""What onnxsim imports, where it is installed, for other things than simplifying: that takes seconds."""


LEFT_OUT = [
    *("fuse_attention", "fuse_gqa", "fuse_rope"),
    *("fuse_matmul_add_bias_into_gemm_batched", "fuse_qkv"),
]
"""What onnxsim is not to do: write operators of com.microsoft; make one product of queries, keys and values,
or Reshape, Gemm and Reshape of a product and its bias. Behind these ONNX Runtime's optimizers find no
Attention and no BiasGelu; on the CPU the model is as fast without them (bench/results/fusions.md)."""


def simplify(model: onnx.ModelProto, tool: str) -> onnx.ModelProto:
    """The model as the tool ("onnxsim" or "onnxscript") simplifies it."""
    if tool == "onnxsim":
        import onnxsim

        # Functions stay; 2 GB and overridable initializers do not arise without weights.
        result, _ = onnxsim.simplify(
            model,
            check_n=0,
            tensor_size_threshold=_FOLDED_BYTES,
            inline_functions=False,
            skipped_optimizers=LEFT_OUT,
        )
        return result  # type: ignore[no-any-return]
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    # Of optimizer.optimize_ir only this. It would remove functions and opset imports and lift subgraphs'
    # initializers; and of its rewrite rules one changes results, another needs a newer opset.
    graph = ir.from_proto(model)
    optimizer.fold_constants_ir(graph, output_size_limit=_FOLDED_ELEMENTS)
    for clean in (
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        clean(graph)
    return ir.to_proto(graph)


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
    """What tells the two models apart on random inputs and weights; None if nothing does.

    A model for which no inputs can be made up, or which does not run, is let through.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # The graphs themselves are compared, not what ONNX Runtime makes of them.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    try:
        reference = ort.InferenceSession(before.SerializeToString(), options, providers)
    except Exception:
        return None
    try:
        candidate = ort.InferenceSession(after.SerializeToString(), options, providers)
    except Exception as error:
        return f"ONNX Runtime does not load the simplified model: {error}"
    names = [value.name for value in before.graph.output]
    for size in _FREE_SIZES:
        feeds = _feeds(before, size)
        if feeds is None:
            break
        try:
            expected, again = (reference.run(None, feeds) for _ in range(2))
        except Exception:
            continue
        return _compare(names, expected, again, candidate, feeds)
    return None


def _compare(
    names: list[str], expected: list[Any], again: list[Any], candidate: Any, feeds: Feeds
) -> str | None:
    """What differs between the models; an output that differs between two runs of the first says nothing."""
    try:
        actual = candidate.run(None, feeds)
    except Exception as error:
        return f"the simplified model does not run: {error}"
    for name, one, once_more, two in zip(names, expected, again, actual, strict=True):
        if _same(one, once_more) and not _same(one, two):
            return f"the simplified model computes something else at the output {name!r}"
    return None


def _feeds(model: onnx.ModelProto, size: int) -> Feeds | None:
    """Random values for every input, free dimensions bound to `size` and a free first one to 1."""
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    bound: dict[str, int] = {}
    stored = {tensor.name for tensor in model.graph.initializer}
    wanted = [value for value in model.graph.input if value.name not in stored]
    total = 0
    for value in wanted:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            return None
        shape = []
        for axis, dim in enumerate(tensor.shape.dim):
            free = 1 if axis == 0 else size
            if dim.HasField("dim_param"):
                shape.append(bound.setdefault(dim.dim_param, free))
            else:
                shape.append(dim.dim_value if dim.dim_value > 0 else free)
        total += math.prod(shape)
        array = _random(rng, shape, tensor.elem_type) if total <= _TRIAL_WEIGHTS else None
        if array is None:
            return None
        feeds[value.name] = array
    return feeds


def _random(rng: np.random.Generator, shape: list[int], elem_type: int) -> Array | None:
    """Numbers that a network can take as an input or a weight; None for strings and the like."""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    except KeyError:
        return None
    if dtype.kind in "iub":
        # 0 and 1 are indices, sizes and flags that most models take.
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind != "f":
        return None
    if len(shape) == 1:
        # One-dimensional weights are variances and scales, which must be positive.
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    # Products with a weight keep the size of what they are applied to.
    return np.asarray(rng.standard_normal(shape) * max(1, math.prod(shape[1:])) ** -0.5).astype(dtype)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
    if not isinstance(one, np.ndarray):
        return True
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, two))
    tolerance = 1e-2 if one.dtype.itemsize == 2 else 1e-4
    one, two = one.astype(np.float64), two.astype(np.float64)
    finite: Array = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(two)):
        return False
    error, size = (float(np.linalg.norm(x[finite])) for x in (one - two, one))
    return error <= tolerance * max(size, 1e-6)


def main(tool: str, source: str, target: str) -> int:
    if tool == "onnxsim":
        for name in _UNNEEDED:
            sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    model = onnx.load(source)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    after = simplify(model, tool)
    wrong = difference(before, after)
    if wrong is not None:
        print(" ".join(wrong.split()), file=sys.stderr)
        return 1
    Path(target).write_bytes(after.SerializeToString(deterministic=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
