"""columns: an interpolative decomposition; one factor is made of columns or rows of the weight itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import scipy.linalg

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, common_refusal
from onnxdecomp.core.steps import MatMul
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.errors import ModelError


@dataclass(frozen=True)
class Columns:
    """Interpolative decomposition by QR with column pivoting.

    Linear [T, S]: W ≈ W[:, J] P with r columns J; factors [S, r] and [r, T].

    Attributes:
        of: What is kept of the weight: its columns, one for each of r "inputs", or its rows, one for each of
            r "outputs".
    """

    name: ClassVar[str] = "columns"
    summary: ClassVar[str] = "some columns of the weight, and how the others follow from them"
    paper: ClassVar[str] = "Cheng et al. 2005, SIAM J. Sci. Comput. 26(4)"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    of: Literal["inputs", "outputs"] = "inputs"

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.conv is not None or layer.is_stack:
            return Refusal("no single matrix: use svd")
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        return self if min(layer.weight.shape) > 1 else Refusal("a full rank of 1: nothing to reduce")

    def full_ranks(self, layer: Layer) -> Ranks:
        return (min(layer.weight.shape),)

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        (full,) = self.full_ranks(layer)
        return (max(1, round(full * fraction)),)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        return (scipy.linalg.svdvals(self._matrix(layer)),)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        r, _ = self._pivoted(layer)
        rows = np.linalg.norm(r, axis=1)
        left = np.sqrt(np.append(np.cumsum(rows[::-1] ** 2)[::-1], 0.0))  # [full + 1]: the loss at each rank
        return (max(1, int(np.argmax(left <= error * left[0]))),)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (t, s), (r,) = layer.weight.shape, ranks
        return (s, r), (r, t)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        (rank,) = ranks
        r, order = self._pivoted(layer)
        kept = self._matrix(layer)[:, order[:rank]]
        others = np.empty((rank, len(order)))
        others[:, order[:rank]] = np.eye(rank)
        # lstsq, since a weight of lower rank leaves zeros on the diagonal.
        others[:, order[rank:]] = np.linalg.lstsq(r[:rank, :rank], r[:rank, rank:], rcond=None)[0]
        first, last = (others.T, kept.T) if self.of == "inputs" else (kept, others)
        return first.astype(layer.weight.dtype), last.astype(layer.weight.dtype)

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        first, last = factors
        return Chain((MatMul(first, "first"), MatMul(last, "last")), layer.bias, layer.inputs)

    def _matrix(self, layer: Layer) -> Array:
        """[T, S], or [S, T] where rows are kept."""
        if not np.isfinite(layer.weight).all():
            raise ModelError(f"{layer.name}: the weight holds NaN or infinite values")
        matrix = layer.weight.astype(np.float64)
        return matrix if self.of == "inputs" else matrix.T

    def _pivoted(self, layer: Layer) -> tuple[Array, Array]:
        """R of the QR decomposition of the matrix with its columns in another order, and that order."""
        r, order = scipy.linalg.qr(self._matrix(layer), mode="r", pivoting=True)
        return r[: min(r.shape)], order
