"""TensorLy's helpers against NumPy or what is in use in their place; see bench/tensorly_methods.py.

CPU time is the least of some calls, memory what tracemalloc sees.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from bench.provenance import markdown
from onnxdecomp.core.layer import Array
from onnxdecomp.tensor import cp_als
from onnxdecomp.tensor.hooi import compress_inputs
from onnxdecomp.tensor.linalg import left_basis
from onnxdecomp.tensor.tensor_ring import ring_error

Call: TypeAlias = Callable[[], Any]

SIZES = ((32, 32, 9, 16), (128, 129, 3, 64), (128, 128, 9, 64), (512, 512, 9, 256), (128, 128, 27, 32))
"""T, S, K and the rank of a tensor [T, S, K]."""

TAKEN = {
    "unfold": "TensorLy's.",
    "mode_dot, outputs": "TensorLy's.",
    "mode_dot, inputs": "ours, output by output: TensorLy's brings the mode to the front, which takes two "
    "to five times the memory, more time on small tensors and less on the largest; where the kernel is "
    "short the last digits differ.",
    "khatri_rao": "TensorLy's: it is small beside the product with the tensor that follows.",
    "cp_to_tensor": "TensorLy's.",
    "cp_normalize": "TensorLy's for the norms of components. One norm for all factors it does not give.",
    "unfolding_dot_khatri_rao": "ours: one product with the tensor serves all modes but the first.",
    "tr_to_tensor": "ours: the error of a ring is summed in float64 and by blocks, so that its memory is "
    "bounded; of tensors as small as these it takes longer.",
}
"""What the product uses of a helper, and why."""


def rows() -> list[dict[str, Any]]:
    """One for each size and helper."""
    found = []
    for size in SIZES:
        t, s, k, r = size
        for name, (ours, theirs) in _pairs(*size).items():
            first, second = (np.asarray(call()) for call in (ours, theirs))
            same = first.dtype == second.dtype and np.array_equal(first, second)
            costs = {"ours": _cost(ours), "tensorly": _cost(theirs)}
            found.append({"helper": name, "size": f"{t}x{s}x{k}, rank {r}", "same_bytes": same, **costs})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """As Markdown."""
    head = ("helper", "tensor", "ms, ours", "ms, TensorLy", "MB, ours", "MB, TensorLy", "same bytes")
    sides = ("ours", "tensorly")
    cells = (
        [
            row["helper"],
            row["size"],
            *(f"{row[side]['cpu_ms']:.3f}" for side in sides),
            *(f"{row[side]['peak_bytes'] / 1e6:.2f}" for side in sides),
            "yes" if row["same_bytes"] else "no",
        ]
        for row in found
    )
    return markdown(head, cells)


def _pairs(t: int, s: int, k: int, r: int) -> dict[str, tuple[Call, Call]]:
    import tensorly as tl
    from tensorly.tenalg import khatri_rao, mode_dot, unfolding_dot_khatri_rao

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    w, c = normal(t, s, k), normal(k, r)
    a, b = (left_basis(w, mode, r)[0].astype(w.dtype) for mode in (0, 1))
    cores = [normal(4, s, 8), normal(8, k, 8), normal(8, t, 4)]
    ring = np.asarray(tl.tr_to_tensor(cores)) + normal(s, k, t)

    def sweep() -> Array:
        products: list[Array] = []

        def kept(mode: int, factors: list[Array], projected: Array, normal: Array) -> Array:
            products.append(projected)
            return factors[mode]

        cp_als.sweep(w, [a, b, c], kept)
        return products[-1]

    def products() -> Array:
        found = [unfolding_dot_khatri_rao(w, (None, [a, b, c]), mode) for mode in (1, 2, 0)]
        return np.asarray(found[-1], np.float64)

    return {
        "unfold": (lambda: np.moveaxis(w, 1, 0).reshape(s, -1), lambda: tl.unfold(w, 1)),
        "mode_dot, outputs": (
            lambda: (a.T @ w.reshape(t, -1)).reshape(r, s, k),
            lambda: mode_dot(w, a, 0, transpose=True),
        ),
        "mode_dot, inputs": (lambda: compress_inputs(w, b), lambda: mode_dot(w, b, 1, transpose=True)),
        "khatri_rao": (lambda: (b[:, None] * c).reshape(-1, r), lambda: khatri_rao([b, c])),
        "cp_to_tensor": (
            lambda: (a @ (b[:, None] * c).reshape(-1, r).T).reshape(t, s, k),
            lambda: tl.cp_to_tensor((None, [a, b, c])),
        ),
        "cp_normalize": (
            lambda: np.prod([np.linalg.norm(f, axis=0) for f in (a, b, c)], axis=0),
            lambda: tl.cp_normalize((None, [a, b, c])).weights,
        ),
        "unfolding_dot_khatri_rao": (sweep, products),
        "tr_to_tensor": (
            lambda: ring_error(ring, cores),
            lambda: float(np.linalg.norm(tl.tr_to_tensor(cores) - ring) / np.linalg.norm(ring)),
        ),
    }


def _cost(call: Call) -> dict[str, float]:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = []
    for _ in range(9):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return {"cpu_ms": 1000 * min(times), "peak_bytes": peak}
