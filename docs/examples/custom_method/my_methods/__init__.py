"""A decomposition of one's own: the inputs in panels, each with a low rank of its own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import common_refusal
from onnxdecomp.core.steps import BlockMatMul, MatMul, Reshape
from onnxdecomp.decompositions.base import Refusal, SingleRank
from onnxdecomp.tensor.linalg import finite_groups, pooled, singular_values, tails, two_factors


@dataclass(frozen=True)
class Panels(SingleRank):
    """W [T, S] in b panels of S/b columns, each as U [T, r] V [r, S/b].

    The first factor is block-diagonal, [b, S/b, r], the last one [b r, T].

    Attributes:
        count: Into how many panels the inputs are cut.
    """

    name: ClassVar[str] = "panels"
    summary: ClassVar[str] = "a low rank for each panel of inputs"
    paper: ClassVar[str] = "none: an example"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    takes: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    count: int = 4

    def __post_init__(self):
        if self.count < 2:
            raise ValueError("count must be 2 or more")

    def specialise(self, layer):
        if layer.conv is not None or layer.is_stack or layer.lookup:
            return Refusal("no single matrix")
        if (common := common_refusal(layer)) is not None:
            return Refusal(common)
        if layer.inputs % self.count:
            return Refusal(f"its {layer.inputs} inputs are not {self.count} equal panels")
        return self if self.full_ranks(layer) > (1,) else Refusal("a full rank of 1: nothing to reduce")

    def full_ranks(self, layer):
        return (min(layer.outputs, layer.inputs // self.count),)

    def spectra(self, layer):
        return (pooled(singular_values(panel) for panel in self._split(layer)),)

    def rank_curve(self, layer, ranks):
        return tails(self.spectra(layer), ranks)

    def shapes(self, layer, ranks):
        (r,) = ranks
        return (self.count, layer.inputs // self.count, r), (self.count * r, layer.outputs)

    def fit(self, layer, ranks, seed=0):
        pairs = [two_factors(panel, *ranks) for panel in self._split(layer)]  # U [T, r], V [r, S/b]
        return np.stack([v.T for _, v in pairs]), np.concatenate([u.T for u, _ in pairs])

    def assemble(self, layer, factors):
        first, last = factors
        b, each, r = first.shape
        steps = (
            Reshape((b * each,), (b, each)),
            BlockMatMul(first, "first"),
            Reshape((b, r), (b * r,)),
            MatMul(last, "last"),
        )
        return Chain(steps, layer.bias, layer.inputs)

    def _split(self, layer):
        (weight,) = finite_groups(layer)
        return np.split(weight, self.count, axis=1)


DECOMPOSITIONS = {"panels": "my_methods:Panels"}
