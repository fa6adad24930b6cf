"""Tensor ring: a train of small cores whose two ends are tied together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer, Ranks
from onnxdecomp.core.options import check_numbers
from onnxdecomp.decompositions.base import Decomposition, Refusal
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.tensor.cores import balanced, padded
from onnxdecomp.tensor.linalg import pooled, singular_values, tail_rank
from onnxdecomp.tensor.tensor_network import Node, cheapest, contract
from onnxdecomp.tensor.tensor_ring import (
    Ring,
    open_at,
    random_ring,
    ring_als,
    ring_error,
    ring_svd,
    splits,
    sweep_cost,
)
from onnxdecomp.tensor.tensorization import Sides, check_options, sides_of, sides_refusal, split

_TRIAL = 10
"""Sweeps that each start gets before the best goes on, if they are cheap enough."""

_CANCELLED = 0.01
"""The relative error below which a difference of squared norms in float32 is no measure of it."""

_WORK = 2e10
"""Multiplications that the trials, and the best start's sweeps, may take: a few seconds of one core."""


@dataclass(frozen=True)
class Tr:
    """Tensor-ring decomposition (Zhao et al. 2016; of networks: Wang et al. 2018).

    The weight of each group is a tensor over the input modes s_1…s_p (S = Π s_k), the kernel as one mode
    K, and the output modes t_1…t_q (T = Π t_k). Core k has the shape [groups, r_k, n_k, r_{k+1}] and the
    last one ends in r_0. A convolution of unsplit channels is a 1x1 one to r_0 r_1 channels, the k-sized
    one from r_1 to r_2 with the r_0 regrouped with the batch (its weights serve them all), and a 1x1 one
    from r_0 r_2 to T. A linear layer contracts its input cores, then its output cores, the ring being
    closed by the last; of the orders to do so the one with the fewest multiplications is taken.

    Ranks are the bonds r_0 (between the outputs and the inputs), r_1, … With r_0 = 1 the ring is a tensor
    train, exact at the train's full bonds. So the full ranks hold these, with the largest r_0 that is of
    use: √min(n_0, n_{d-1}), as the first truncation has r_0 r_1 <= n_0. A fraction f below 1 is one cap
    for all bonds, or one more for the last few of them: the largest whose cores hold at most f of the
    dense weight's parameters. No unfolding of the weight belongs to r_0 alone: energy and evbmf leave
    it at 1.

    The fit takes the TR-SVD from every circular shift of the modes, with several splits of its first
    truncation, and improves the best by alternating least squares, as it does random rings. A required
    error is met with the fewest parameters over all shifts and all divisor splits.

    Attributes:
        order: Modes per side; 0 takes 2 for matrices (1x1 convolutions too) and 1 for other convolutions.
        shape: The modes, "16x32:8x8" (inputs, then outputs, of one group), for a weight of that size.
        starts: So many of the best TR-SVDs are tried as starts of the alternation.
        random_starts: And so many random rings, if r_0 > 1.
        tolerance: The alternation ends when a sweep takes less than this part off the error.
        max_sweeps: At most so many alternations from the best start, fewer if they would take minutes.
    """

    name: ClassVar[str] = "tr"
    summary: ClassVar[str] = "tensor ring: 1x1, shared core, 1x1 convolutions; a ring of MatMuls"
    paper: ClassVar[str] = "Zhao et al. 2016, arXiv:1606.05535; Wang et al. 2018, arXiv:1802.09052"
    rank_names: ClassVar[tuple[str, ...]] = ("bond 0", "bond 1", "…")
    takes: ClassVar[tuple[str, ...]] = ("Conv 1-D/2-D/3-D, grouped", "ConvTranspose", "Gemm", "MatMul")

    order: int = 0
    shape: str = ""
    starts: int = 2
    random_starts: int = 3
    tolerance: float = 1e-3
    max_sweeps: int = 50

    def __post_init__(self) -> None:
        check_options(self.name, self.order, self.shape)
        check_numbers(self, starts=0, random_starts=0, tolerance=0, max_sweeps=0)
        if self.starts + self.random_starts < 1:
            raise ValueError("starts=0 and random_starts=0: the alternation needs one to begin with")

    def specialise(self, layer: Layer) -> Decomposition | Refusal:
        if (reason := sides_refusal(layer, self.shape)) is not None:
            return Refusal(reason)
        return Refusal("full ranks of 1: nothing to reduce") if max(self.full_ranks(layer)) < 2 else self

    def full_ranks(self, layer: Layer) -> Ranks:
        sizes = self._sides(layer).sizes
        d = len(sizes)
        # A ring of two modes is a matrix: its two bonds would do the work of one.
        tied = math.isqrt(min(sizes[0], sizes[-1])) if d > 2 else 1
        return (tied, *(min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, d)))

    def fraction_ranks(self, layer: Layer, fraction: float) -> Ranks:
        full = self.full_ranks(layer)
        if fraction >= 1:
            return full

        def fits(ranks: Ranks) -> bool:
            return sum(map(math.prod, self.shapes(layer, ranks))) <= fraction * layer.weight.size

        def capped(cap: int, above: int = 0) -> Ranks:
            """The cap for all bonds, and one more for the last `above` of them."""
            d = len(full)
            return tuple(min(cap + (k >= d - above), f) for k, f in enumerate(full))

        low, high = 1, max(full)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(capped(middle)) else (low, middle - 1)
        above = max((k for k in range(len(full)) if fits(capped(low, k))), default=0)
        return capped(low, above)

    def spectra(self, layer: Layer) -> tuple[Array, ...]:
        sides = self._sides(layer)
        tensors, sizes = split(layer, sides), sides.sizes
        bonds = [
            pooled(singular_values(x.reshape(math.prod(sizes[:k]), -1)) for x in tensors)
            for k in range(1, len(sizes))
        ]
        return np.array([np.linalg.norm(bonds[0])]), *bonds

    def ranks_for_error(self, layer: Layer, error: float) -> Ranks:
        """The ranks of fewest parameters over all shifts and splits of the TR-SVD.

        It truncates d - 1 times; the first, which gives two bonds, may lose error √(2/d), each other one
        error √(1/d).
        """
        tensors = split(layer, self._sides(layer))
        full = self.full_ranks(layer)
        d = len(full)
        found: list[Ranks] = []
        for shift in range(d):
            most = full[shift], full[(shift + 1) % d]
            opened = open_at(tensors, shift)
            values = pooled(np.linalg.norm(z.reshape(len(z), -1), axis=1) for z in opened.rests)
            first = tail_rank(values, error * math.sqrt(2 / d if d > 2 else 1))
            for pair in splits(first, most):
                (ring, *_) = ring_svd(opened, pair, share=error / math.sqrt(d))
                ranks = tuple(core.shape[0] for core in ring)
                if all(r <= f for r, f in zip(ranks, full, strict=True)):
                    found.append(ranks)
        return min(found, key=lambda ranks: sum(math.prod(s) for s in self.shapes(layer, ranks)))

    def shapes(self, layer: Layer, ranks: Ranks) -> tuple[tuple[int, ...], ...]:
        sizes = self._sides(layer).sizes
        ends = (*ranks[1:], ranks[0])
        return tuple((layer.groups, a, n, b) for a, n, b in zip(ranks, sizes, ends, strict=True))

    @one_thread()
    def fit(self, layer: Layer, ranks: Ranks, seed: int = 0) -> Factors:
        tensors = split(layer, self._sides(layer))
        rings = [self._fit(x, ranks, seed) for x in tensors]
        return tuple(np.stack(cores).astype(layer.weight.dtype) for cores in zip(*rings, strict=True))

    def _fit(self, tensor: Array, ranks: Ranks, seed: int) -> Ring:
        # Near 1, products with random cores cannot overflow; by a power of two, nothing is rounded.
        exponent = int(np.frexp(np.abs(tensor).max())[1])
        tensor = np.ldexp(tensor, -exponent, order="C")
        starts = sorted(_candidates(tensor, ranks), key=lambda start: start[0])
        rings = [ring for _, ring in starts[: self.starts]]
        if ranks[0] > 1:
            # The SVD leads a true ring into local minima that ALS from elsewhere often avoids.
            rng = np.random.default_rng(seed)
            rings += [random_ring(tensor, ranks, rng) for _ in range(self.random_starts)]
        best, cost = rings[0], sweep_cost(rings[0])
        if cost * len(rings) * _TRIAL <= _WORK:
            tries = [ring_als(tensor, ring, self.tolerance, _TRIAL) for ring in rings]
            _, best = min(tries, key=lambda found: found[0])
        sweeps = min(self.max_sweeps, int(_WORK / cost))
        first, *others = ring_als(tensor, best, self.tolerance, sweeps)[1]
        return balanced([np.ldexp(first.astype(np.float64), exponent), *others])

    def assemble(self, layer: Layer, factors: Factors) -> Chain:
        sides = self._sides(layer)
        d, p = len(factors), len(sides.ins)
        nodes = [
            Node(core, (f"r{k}", name, f"r{(k + 1) % d}"), f"core{k}")
            for k, (name, core) in enumerate(zip(sides.names, factors, strict=True))
        ]
        inputs = dict(zip(sides.input_names, sides.ins, strict=True))
        q = d - len(sides.outs)
        orders = [
            [*first, *nodes[p:q], *last]
            for first in (nodes[:p], nodes[:p][::-1])
            for last in (nodes[q:], nodes[q:][::-1])
        ]
        return cheapest([contract(layer, order, inputs, sides.output_names) for order in orders], layer)

    def _sides(self, layer: Layer) -> Sides:
        return sides_of(layer, self.order, self.shape)


def _candidates(tensor: Array, ranks: Ranks) -> Iterator[tuple[float, Ring]]:
    """TR-SVDs of at most these ranks, filled up with zeros: every shift, several splits; and their errors."""
    d = len(ranks)
    for shift in range(d):
        opened = open_at([tensor], shift)
        for pair in _pairs(len(opened.rests[0]), ranks[shift], ranks[(shift + 1) % d]):
            (ring,) = ring_svd(opened, pair, ranks)
            # All cores but the one before the shift are isometries: that one has the norm of the whole.
            kept = float(np.linalg.norm(ring[shift - 1].astype(np.float64)))
            error = math.sqrt(max(0.0, 1 - (kept / opened.norm) ** 2)) if opened.norm else 0.0
            whole = padded(ring, (*ranks, ranks[0]))
            yield ring_error(tensor, whole) if error < _CANCELLED else error, whole


def _pairs(useful: int, before: int, after: int) -> list[tuple[int, int]]:
    """Splits of a first truncation between two bonds, of which it can use the product `useful`."""
    even = math.isqrt(useful - 1) + 1
    pairs = {(a, min(after, -(-useful // a))) for a in {1, min(before, even), min(before, useful)}}
    pairs |= {(min(before, -(-useful // b)), b) for b in {1, min(after, even), min(after, useful)}}
    if before * after <= 2 * useful:  # above, one of the two would be mostly zeros
        pairs.add((before, after))
    return sorted(pairs)
