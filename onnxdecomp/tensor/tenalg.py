"""TensorLy's tensor algebra on NumPy arrays, with types: unfoldings, products, tensors from their factors.

The only module that imports TensorLy, and only when a function is called: that takes a quarter of a second,
and most commands need none of it. TensorLy's backend belongs to the process and its threads, so to whoever
has set it: it is looked at here and never set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError

Truncation: TypeAlias = Callable[[Array, int], tuple[Array, Array]]
"""A matrix M [m, n] and a rank to an orthonormal U [m, rank] and Uᵀ M [rank, n]."""


def unfold(tensor: Array, mode: int) -> Array:
    """The unfolding [n_mode, rest] (Kolda and Bader 2009, with the rest in C order)."""
    unfolded: Array = _tensorly().unfold(tensor, mode)
    return unfolded


def partial_unfold(tensors: Array, mode: int) -> Array:
    """The unfoldings [batch, n_mode, rest] of a batch of tensors; the mode is counted without the batch."""
    unfolded: Array = _tensorly().partial_unfold(tensors, mode, skip_begin=1)
    return unfolded


def mode_dot(tensor: Array, matrix: Array, mode: int, transpose: bool = False) -> Array:
    """The mode product of [..., n, ...] with a matrix [r, n], or [n, r] to be transposed: [..., r, ...]."""
    product: Array = _tensorly().tenalg.mode_dot(tensor, matrix, mode, transpose=transpose)
    return product


def multi_mode_dot(
    tensor: Array, matrices: Sequence[Array], modes: Sequence[int], transpose: bool = False
) -> Array:
    """The mode products with one matrix for each of these modes, one after the other."""
    product: Array = _tensorly().tenalg.multi_mode_dot(tensor, matrices, modes=modes, transpose=transpose)
    return product


def khatri_rao(factors: Sequence[Array]) -> Array:
    """The column-wise Kronecker product [Π n_m, R], the first factor's index the slowest."""
    product: Array = _tensorly().tenalg.khatri_rao(factors)
    return product


def cp_to_tensor(factors: Sequence[Array]) -> Array:
    """The tensor [n_0, n_1, …] of canonical polyadic factors [n_m, R]."""
    tensor: Array = _tensorly().cp_to_tensor((None, list(factors)))
    return tensor


def cp_weights(factors: Sequence[Array]) -> Array:
    """The norms [R] of the components of canonical polyadic factors [n_m, R]."""
    weights: Array = _tensorly().cp_normalize((None, list(factors))).weights
    return weights


def tensor_train(tensor: Array, ranks: Sequence[int], truncate: Truncation) -> list[Array]:
    """The TT-SVD with a truncation of one's own: cores [r_{k-1}, n_k, r_k].

    Args:
        tensor: [n_1, …, n_d].
        ranks: r_1 … r_{d-1}; one that is above what its unfolding has is lowered to that.
        truncate: Of every unfolding.
    """

    def svd(matrix: Array, n_eigenvecs: int, **_: object) -> tuple[Array, Array, Array]:
        basis, rest = truncate(matrix, n_eigenvecs)
        return basis, np.ones(n_eigenvecs, matrix.dtype), rest

    train = _tensorly().decomposition.tensor_train(tensor, [1, *ranks, 1], svd=svd)
    return list(train.factors)


def _tensorly() -> ModuleType:
    """TensorLy, which computes in NumPy.

    Raises:
        UsageError: Its backend is another.
    """
    try:
        import tensorly
    except ImportError as error:  # of the backend that the environment names
        raise UsageError(f"TensorLy cannot be imported ({error}): TENSORLY_BACKEND must be numpy") from error
    module: ModuleType = tensorly
    if (backend := module.get_backend()) != "numpy":
        raise UsageError(f"TensorLy's backend is {backend}, by TENSORLY_BACKEND or set_backend: set numpy")
    return module
