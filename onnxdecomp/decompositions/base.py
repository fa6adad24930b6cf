"""What a decomposition method is: pure mathematics from a Layer and its ranks to a Chain.

A method is a frozen dataclass; its fields are its options and appear by themselves in --help, the
configuration and the JSON record. It never sees a graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks
from onnxdecomp.tensor.linalg import fraction_of, tail_rank


@dataclass(frozen=True)
class Refusal:
    """Why a method cannot take a layer, in a phrase for people."""

    reason: str


@runtime_checkable
class Decomposition(Protocol):
    """A decomposition. Registered by one line in onnxdecomp/decompositions/registry.py, or by its package."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]]
    """What `--rank` counts, in order: ("rank",) or ("out", "in")."""
    takes: ClassVar[tuple[str, ...]]
    """The kinds of layers it takes, for people: ("Conv 1-D/2-D/3-D, grouped", "Gemm", …)."""

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        """The method that does this one's work on the layer: mostly itself, or why none does.

        Of a matrix (Gemm, MatMul, a 1x1 convolution, a stack) Tucker and CP are its SVD, for instance. What
        is returned takes the layer: it specialises to itself.
        """
        ...

    def full_ranks(self, layer: Layer) -> Ranks:
        """The smallest ranks known to be exact whatever the weight's values are."""
        ...

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        """What `--rank 0.5` means: that fraction of the full ranks, at least 1; 1.0 is exactly full."""
        ...

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        """Per rank, the singular values that it truncates (for several groups: root sums of squares).

        Descending and complete. What energy=, evbmf and the reports read. CP has one spectrum per
        channel mode for its single rank, which is the largest that they ask for.
        """
        ...

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """Small ranks at which the relative Frobenius error of the weight is at most `error`."""
        ...

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        """The shapes of the factors that `fit` returns, without computing them."""
        ...

    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        """The factors that approximate the layer's weight, in the weight's dtype, deterministic.

        Raises:
            onnxdecomp.errors.ModelError: The weight holds NaN or infinite values.
        """
        ...

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        """The chain of these factors with the layer's strides, pads, groups and bias."""
        ...


class SingleRank(ABC):
    """What methods have in common that cut one spectrum off at one rank: its tail is their error, exactly."""

    @abstractmethod
    def full_ranks(self, layer: Layer) -> Ranks:
        """See Decomposition."""

    @abstractmethod
    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        """See Decomposition."""

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        (full,) = self.full_ranks(layer)
        return (fraction_of(full, fraction),)

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        (values,) = self.spectra(layer)
        return (tail_rank(values, error),)


@runtime_checkable
class Pooling(Protocol):
    """A method that cuts the weight into several matrices of one size, each of which gets the rank."""

    def parts(self, layer: Layer) -> int:
        """How many matrices of one group each of the `spectra` is pooled from."""
        ...


@runtime_checkable
class Truncating(Protocol):
    """A method that cuts its spectra off, so that its loss at all ranks is known from them at once."""

    def rank_curve(self, layer: Layer, ranks: Sequence[Ranks]) -> Array:
        """The squared relative Frobenius error at each of the ranks, [len(ranks)], or a bound near it."""
        ...


@runtime_checkable
class Patient(Protocol):
    """A method that takes trouble over its plain fit, which need not be where it is only a start."""

    def quick(self) -> Decomposition:
        """The same method with a plain fit in less time."""
        ...


def quick(method: Decomposition) -> Decomposition:
    """The method with a plain fit that is good enough to start from, or to be compared."""
    return method.quick() if isinstance(method, Patient) else method


def refusal_of(method: Decomposition, layer: Layer) -> str | None:
    """Why this very method, and none that stands in for it, cannot take the layer; None where it can."""
    found = method.specialise(layer)
    if isinstance(found, Refusal):
        return found.reason
    return None if found.name == method.name else f"on such a layer it is {found.name}: use that"


def outline(method: Decomposition, layer: Layer, ranks: Ranks) -> Chain:
    """The chain without its numbers: its parameters and MACs cost nothing to ask for."""
    # Broadcast zeros have a shape but no memory.
    zeros = tuple(np.broadcast_to(np.zeros((), layer.weight.dtype), s) for s in method.shapes(layer, ranks))
    return method.assemble(layer, zeros)
