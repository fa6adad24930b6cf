"""Kronecker: a matrix as a sum of Kronecker products of small ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks, channels, common_refusal
from onnxdecomp.core.steps import MatMul, Pad, Reshape, Slice, Step, Transpose
from onnxdecomp.decompositions.base import Decomposition, Refusal, SingleRank
from onnxdecomp.errors import UsageError
from onnxdecomp.tensor.linalg import finite_groups, singular_values, two_factors
from onnxdecomp.tensor.tt_matrix_modes import most_padded, padded_factors

Split: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""(t1, t2), (s1, s2): the factors of the outputs and of the inputs."""

_PAYS = 1.5
"""How many times smaller the terms must be for a dimension to be padded: that costs copies."""


@dataclass(frozen=True)
class Kronecker(SingleRank):
    """W = Σ_k A_k ⊗ B_k, by the SVD of the rearranged matrix (Van Loan and Pitsianis 1993).

    T = t1 t2 and S = s1 s2; factors A [r, t1, s1] and B [r, t2, s2]. The rearrangement [(t1 s1), (t2 s2)]
    of W [(t1 t2), (s1 s2)] makes each Kronecker product an outer product, so its truncated singular value
    decomposition is the best sum of r of them in the Frobenius norm. W itself is never formed: the
    activation, seen as [s1, s2], is multiplied by all B_k at once and then by all A_k, or in the other
    order where that costs less. Either way takes two MatMuls and two Transposes of two axes.

    The full rank is min(t1 s1, t2 s2), and a fraction is one of it: like an SVD's, half of it holds about
    as many parameters as the dense matrix where t1 s1 = t2 s2. It multiplies more often than that: r terms
    cost r (S t2 + T s1) multiplications, so small ranks are what this method is for.

    Attributes:
        shape: The sizes, "s1xs2:t1xt2" (inputs, then outputs), for a matrix of that size or one that is
            smaller by an eighth at most (padded). Without it, of all factorisations of T and S the one with
            the fewest parameters t1 s1 + t2 s2 per term, among equal ones the most even. A dimension without
            even factors, such as a prime, is padded with zeros as for a TT-matrix where the terms would be
            outer products (t2 = s1 = 1) or half as large again: it costs a copy of the input or of the
            output. Where they are outer products all the same (a small prime, mostly), the method is the
            SVD: refused.
    """

    name: ClassVar[str] = "kronecker"
    summary: ClassVar[str] = "sum of Kronecker products of small matrices"
    paper: ClassVar[str] = "Van Loan & Pitsianis 1993, doi:10.1007/978-94-015-8196-7_17"
    rank_names: ClassVar[tuple[str, ...]] = ("terms",)
    takes: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    shape: str = ""

    def __post_init__(self) -> None:
        if self.shape:
            parse_shape(self.shape)

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if layer.conv is not None:
            return Refusal("a convolution: use svd" if layer.is_matrix else "a convolution: use tucker")
        if layer.is_stack:
            return Refusal("a stack of matrices: use svd")
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        (t1, t2), (s1, s2) = self.sizes(layer)
        sizes = zip(channels(layer), (t1 * t2, s1 * s2), strict=True)
        if not all(n <= size <= most_padded(n) for n, size in sizes):
            return Refusal(f"the shape {self.shape} is of another size than {layer.inputs}:{layer.outputs}")
        if _is_outer(((t1, t2), (s1, s2))):
            return Refusal(
                f"the Kronecker products of a {t1 * t2} x {s1 * s2} matrix are outer ones: use svd"
            )
        return Refusal("a full rank of 1: nothing to reduce") if self.full_ranks(layer)[0] < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        (t1, t2), (s1, s2) = self.sizes(layer)
        return (min(t1 * s1, t2 * s2),)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        return (singular_values(self._rearranged(layer)),)

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        (t1, t2), (s1, s2) = self.sizes(layer)
        return (*ranks, t1, s1), (*ranks, t2, s2)

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        a, b = two_factors(self._rearranged(layer), *ranks)
        of_a, of_b = self.shapes(layer, ranks)
        return np.ascontiguousarray(a.T).reshape(of_a), np.ascontiguousarray(b).reshape(of_b)

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        a, b = factors
        (t1, t2), (s1, s2) = self.sizes(layer)
        before: tuple[Step, ...] = (Pad(s1 * s2 - layer.inputs, -1, "pad"),) if s1 * s2 > layer.inputs else ()
        after: tuple[Step, ...] = (Slice(layer.outputs, -1, "narrow"),) if t1 * t2 > layer.outputs else ()
        chains = [
            Chain((*before, *steps, *after), layer.bias, layer.inputs)
            for steps in (_inner_first(a, b), _outer_first(a, b))
        ]
        row = (1, layer.inputs)
        # Among equal products, what moves the smaller activation.
        return min(chains, key=lambda chain: (chain.macs(row), chain.traffic(row)))

    def sizes(self, layer: Layer) -> Split:
        """(t1, t2), (s1, s2) for a linear layer."""
        return parse_shape(self.shape) if self.shape else padded_shape(*channels(layer))

    def _rearranged(self, layer: Layer) -> Array:
        """[(t1 s1), (t2 s2)]: row (i, j) is the block of W that A[i, j] scales."""
        (t1, t2), (s1, s2) = self.sizes(layer)
        (w,) = finite_groups(layer)
        if (t1 * t2, s1 * s2) != w.shape:
            w = np.pad(w, ((0, t1 * t2 - w.shape[0]), (0, s1 * s2 - w.shape[1])))
        rearranged: Array = w.reshape(t1, t2, s1, s2).transpose(0, 2, 1, 3).reshape(t1 * s1, t2 * s2)
        return rearranged


def parse_shape(text: str) -> Split:
    """((t1, t2), (s1, s2)) of "16x48:32x24", the factors of the inputs and of the outputs.

    Raises:
        UsageError: The text is not of that form.
    """
    try:
        (s1, s2), (t1, t2) = ([int(n) for n in side.split("x")] for side in text.lower().split(":"))
    except ValueError:
        t1 = t2 = s1 = s2 = 0
    if min(t1, t2, s1, s2) < 1:
        raise UsageError(
            f'kronecker: shape {text!r}: give two factors of inputs and of outputs, as "16x48:32x24"'
        )
    return (t1, t2), (s1, s2)


def balanced_shape(outputs: int, inputs: int) -> Split:
    """The factorisation with the fewest numbers t1 s1 + t2 s2; among equal ones the most even."""

    def badness(split: Split) -> tuple[int, float, int]:
        (t1, t2), (s1, s2) = split
        uneven = abs(math.log(t1 / t2)) + abs(math.log(s1 / s2))
        # Of a pair of mirror images the one with the tall A: it contracts the longer axis first.
        return t1 * s1 + t2 * s2, round(uneven, 9), -t1

    return min(
        (((t, outputs // t), (s, inputs // s)) for t in _divisors(outputs) for s in _divisors(inputs)),
        key=badness,
    )


def padded_shape(outputs: int, inputs: int) -> Split:
    """The balanced shape; where its terms are outer products or large, that of a size with even factors."""
    exact = balanced_shape(outputs, inputs)
    padded = balanced_shape(*(math.prod(padded_factors(n, 2)) for n in (outputs, inputs)))

    def numbers(split: Split) -> int:
        (t1, t2), (s1, s2) = split
        return t1 * s1 + t2 * s2

    return padded if _is_outer(exact) or _PAYS * numbers(padded) <= numbers(exact) else exact


def _is_outer(split: Split) -> bool:
    """Whether the Kronecker products are outer products of vectors: a sum of them is an SVD."""
    (t1, t2), (s1, s2) = split
    return (t2, s1) == (1, 1) or (t1, s2) == (1, 1)


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _inner_first(a: Array, b: Array) -> tuple[Step, ...]:
    """Multiply the s2 axis by all B_k, then s1 and the terms by all A_k."""
    (r, t1, s1), (_, t2, s2) = a.shape, b.shape
    return (
        *_reshape((s1 * s2,), (s1, s2)),
        MatMul(b.transpose(2, 0, 1).reshape(s2, r * t2), "inner"),  # [s1, (k t2)]
        *_swap((s1, r * t2), s1 * r, t2),
        MatMul(a.transpose(2, 0, 1).reshape(s1 * r, t1), "outer"),  # [t2, t1]
        *_swap((t2, t1), t2, t1),
        *_reshape((t1, t2), (t1 * t2,)),
    )


def _outer_first(a: Array, b: Array) -> tuple[Step, ...]:
    """Multiply the s1 axis by all A_k, then s2 and the terms by all B_k."""
    (r, t1, s1), (_, t2, s2) = a.shape, b.shape
    return (
        *_reshape((s1 * s2,), (s1, s2)),
        *_swap((s1, s2), s1, s2),
        MatMul(a.transpose(2, 1, 0).reshape(s1, t1 * r), "outer"),  # [s2, (t1 k)]
        *_swap((s2, t1 * r), s2, t1 * r),
        *_reshape((t1 * r, s2), (t1, r * s2)),
        MatMul(b.transpose(0, 2, 1).reshape(r * s2, t2), "inner"),  # [t1, t2]
        *_reshape((t1, t2), (t1 * t2,)),
    )


def _reshape(source: Ranks, target: Ranks) -> tuple[Step, ...]:
    return (Reshape(source, target),) if source != target else ()


def _swap(state: Ranks, rows: int, columns: int) -> tuple[Step, ...]:
    """Read the state as a matrix and transpose it: [columns, rows]; a vector needs no moving."""
    if 1 in (rows, columns):
        return _reshape(state, (columns, rows))
    return (*_reshape(state, (rows, columns)), Transpose((1, 0)))
