"""Alternating least squares in the metric of a problem, for the factors of any chain.

The loss is a quadratic in each factor while the others stand. The last factor's normal equations are small
and are solved; the others take some steps of conjugate gradients (Hestenes and Stiefel 1952), which never
form them. The loss never rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxdecomp.core.chain import (
    WEIGHTED,
    BlockMatMul,
    Chain,
    Convolve,
    LeftMatMul,
    Lookup,
    MatMul,
    Step,
)
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.adjoints import pull_back, weight_gradient, with_weight
from onnxdecomp.fitting.quadratic_loss import Problem, solved_positive

ITERATIONS = 12
"""Of conjugate gradients for one factor in one sweep."""

_WORK, _FEWEST = 3e10, 2
"""Multiplications of a sweep within the chain, about, and iterations that are always done.

A train of many modes over a large matrix takes seconds for one iteration, and its start is a good one.
"""


def alternate(
    chain: Chain,
    problem: Problem,
    *,
    sweeps: int = 4,
    tolerance: float = 3e-4,
    iterations: int = ITERATIONS,
) -> Chain:
    """The chain with factors of no larger loss, in float64; its bias is not touched.

    Args:
        chain: The start. Its steps must not be stacked matrices.
        problem: The loss, in the layer's own groups.
        sweeps: At most so many rounds over all factors.
        tolerance: Ends when a round takes less than this share off the loss.
        iterations: Of conjugate gradients for one factor in one round.
    """
    steps = _in_float64(chain)
    weighted = [index for index, step in enumerate(steps) if isinstance(step, WEIGHTED)]
    responses = _Responses(chain, problem)
    iterations = min(iterations, _affordable(steps, responses))
    loss = problem.loss(responses.dense(steps))
    for _ in range(sweeps):
        before = loss
        for index in weighted[:-1]:
            steps[index] = _improved(steps, index, responses, iterations)
        steps[weighted[-1]] = _last(steps, weighted[-1], responses)
        loss = problem.loss(responses.dense(steps))
        if before - loss <= tolerance * before:
            break
    return replace(chain, steps=tuple(steps))


def _affordable(steps: Sequence[Step], responses: _Responses) -> int:
    """Iterations per factor whose work is within bounds: each goes through the chain about three times."""
    weighted = [
        (s, x) for s, x in zip(steps, responses.inputs(steps), strict=False) if isinstance(s, WEIGHTED)
    ]
    once = sum(x.size * step.weight.size / _reads(step) for step, x in weighted)
    return max(_FEWEST, int(_WORK / (3 * once * len(weighted))))


def _reads(step: Step) -> int:
    """How many features a weighted step reads: each meets as many numbers of the factor as the rest makes."""
    match step:
        case Convolve():
            return int(step.weight.shape[1]) * step.spec.groups
        case LeftMatMul():
            return int(step.weight.shape[1])
        case BlockMatMul():
            return int(step.weight.shape[0] * step.weight.shape[1])
        case MatMul() | Lookup():
            return int(step.weight.shape[-2])
    raise NotImplementedError(type(step).__name__)


def _in_float64(chain: Chain) -> list[Step]:
    return [
        with_weight(step, step.weight.astype(np.float64)) if isinstance(step, WEIGHTED) else step
        for step in chain.steps
    ]


class _Responses:
    """Between a chain's responses to impulses and the problem's rows [g, T/g, D]."""

    def __init__(self, chain: Chain, problem: Problem) -> None:
        self.problem = problem
        self.groups, self.per_group, _ = problem.cross.shape
        size = chain.inputs // chain.groups
        impulse = np.eye(size)
        if chain.is_conv:
            spatial = next(s.spec.spatial_rank for s in chain.steps if isinstance(s, Convolve))
            impulse = np.tile(impulse, (1, chain.groups)).reshape(size, chain.inputs, *(1,) * spatial)
        self.impulse = impulse

    def inputs(self, steps: Sequence[Step]) -> list[Array]:
        """What each step gets, and the response of the last."""
        seen = [self.impulse]
        for step in steps:
            seen.append(step.respond(seen[-1]))
        return seen

    def dense(self, steps: Sequence[Step]) -> Array:
        return self.rows(self.inputs(steps)[-1])

    def rows(self, response: Array) -> Array:
        """[S/g, T, *kernel] or [S, T] to [g, T/g, D]."""
        flat = response.reshape(len(self.impulse), self.groups, self.per_group, -1)
        return flat.transpose(1, 2, 0, 3).reshape(self.groups, self.per_group, -1)

    def response(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `rows`."""
        apart = rows.reshape(self.groups, self.per_group, len(self.impulse), -1)
        return np.asarray(apart.transpose(2, 0, 1, 3).reshape(shape))


def _improved(steps: Sequence[Step], index: int, responses: _Responses, iterations: int = ITERATIONS) -> Step:
    """Conjugate gradients on one factor, from where it is."""
    problem = responses.problem
    seen = responses.inputs(steps)
    step, x, after = steps[index], seen[index], steps[index + 1 :]
    assert isinstance(step, WEIGHTED)

    def forward(weight: Array) -> Array:
        response = with_weight(step, weight).respond(x)
        for later in after:
            response = later.respond(response)
        return responses.rows(response)

    def adjoint(rows: Array) -> Array:
        z = responses.response(rows, seen[-1].shape)
        for position in range(len(steps) - 1, index, -1):
            z = pull_back(steps[position], z, seen[position].shape)
        return weight_gradient(step, x, z)

    weight, single = np.array(step.weight), problem.single
    residual = -adjoint(problem.gradient(responses.rows(seen[-1])))
    direction, size = residual, float(np.vdot(residual, residual))
    first = size
    for _ in range(iterations):
        if size <= 1e-10 * first or size == 0:
            break
        # The direction's rounding is made up for: the next sweep starts from the exact gradient.
        curved = adjoint((forward(direction).astype(single.dtype) @ single).astype(np.float64))
        curvature = float(np.vdot(direction, curved))
        if not curvature > 0:
            break
        length = size / curvature
        weight += length * direction
        residual = residual - length * curved
        previous, size = size, float(np.vdot(residual, residual))
        direction = residual + size / previous * direction
    return with_weight(step, weight)


def _last(steps: Sequence[Step], index: int, responses: _Responses) -> Step:
    """The best last factor: its outputs are independent of each other, so the normal equations are small."""
    step = steps[index]
    problem = responses.problem
    if index != len(steps) - 1 or not isinstance(step, Convolve | MatMul) or _mixes(step, responses):
        return _improved(steps, index, responses)
    x = responses.impulse
    for earlier in steps[:-1]:
        x = earlier.respond(x)
    basis = _basis(step, x, responses)  # [g, q, D]
    normal = basis @ problem.second @ basis.swapaxes(1, 2)
    right = problem.cross @ basis.swapaxes(1, 2)  # [g, T/g, q]
    solved = []
    for n, r in zip(normal, right, strict=True):
        ridge = 1e-12 * float(np.trace(n)) / len(n)
        solved.append(solved_positive(n + (ridge or 1.0) * np.eye(len(n)), r.T).T)
    factor = np.stack(solved)  # [g, T/g, q]
    if isinstance(step, MatMul):
        return with_weight(step, factor[0].T.copy())
    return with_weight(step, factor.reshape(step.weight.shape))


def _mixes(step: Convolve | MatMul, responses: _Responses) -> bool:
    """Whether the step's groups are others than the layer's."""
    if isinstance(step, MatMul):
        return bool(step.weight.ndim > 2)
    return bool(step.spec.groups != responses.groups)


def _basis(step: Convolve | MatMul, x: Array, responses: _Responses) -> Array:
    """What each number of a row of the factor adds to a row of the dense weight: [g, q, D]."""
    size = len(responses.impulse)
    if isinstance(step, MatMul):
        return np.ascontiguousarray(x.reshape(size, -1).T)[None]
    g = responses.groups
    _, s, *kernel = step.weight.shape
    count = int(np.prod(kernel, dtype=np.int64))
    # A unit factor: output (s, q) reads input channel s through kernel position q.
    unit = np.zeros((g, s * count, s, count))
    for channel in range(s):
        for position in range(count):
            unit[:, channel * count + position, channel, position] = 1
    probe = replace(step, weight=unit.reshape(g * s * count, s, *kernel))
    response = probe.respond(x).reshape(size, g, s * count, -1)
    return response.transpose(1, 2, 0, 3).reshape(g, s * count, -1)
