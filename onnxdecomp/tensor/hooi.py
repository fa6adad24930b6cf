"""Higher-order orthogonal iteration for the two channel modes of a weight (De Lathauwer et al. 2000).

TensorLy's `partial_tucker` takes the whole singular value decomposition of an unfolding in every step; here
only the eigenvectors that are wanted are computed (see onnxdecomp.tensor.linalg).
"""

from __future__ import annotations

import math

import numpy as np

from onnxdecomp.core.layer import Array, Ranks
from onnxdecomp.tensor.linalg import left_basis
from onnxdecomp.tensor.tenalg import mode_dot


def hooi(w: Array, ranks: Ranks, tolerance: float, max_sweeps: int) -> tuple[Array, Array]:
    """Orthonormal bases A [T, r_out] and B [S, r_in] of a tensor [T, S, *k], in its dtype.

    Alternates from the HOSVD's B until the relative error falls by less than `tolerance` in a sweep.
    """
    total = float(np.sum(np.square(w, dtype=np.float64)))
    r_out, r_in = ranks
    b = left_basis(w, 1, r_in)[0].astype(w.dtype)
    error = math.inf
    for _ in range(max(1, max_sweeps)):
        a = left_basis(compress_inputs(w, b), 0, r_out)[0].astype(w.dtype)
        basis, values = left_basis(mode_dot(w, a, 0, transpose=True), 1, r_in)
        b = basis.astype(w.dtype)
        kept = float(np.sum(np.square(values, dtype=np.float64)))
        previous, error = error, math.sqrt(max(0.0, 1 - kept / total)) if total else 0.0
        if previous - error < tolerance:
            break
    return a, b


def compress_inputs(w: Array, basis: Array) -> Array:
    """The mode product w ×_1 basisᵀ: [T, S, *k] to [T, r, *k], output by output.

    TensorLy's `mode_dot` brings the mode to the front first, which takes two to five times the memory.
    """
    t, s, *kernel = w.shape
    return np.asarray(np.matmul(basis.T, w.reshape(t, s, -1))).reshape(t, -1, *kernel)
