"""Alternating least squares in the metric of a problem, for the factors of any chain.

The loss is a quadratic in each factor while the others stand. The last factor's normal equations are small
and are solved, together with the factor before it where the last one mixes channels only; the others take
some steps of conjugate gradients (Hestenes and Stiefel 1952), which never form them. From round to round they
are carried as far again as they have come. The loss never rises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve, Step, WeightedStep
from onnxdecomp.fitting.factor_problem import Sight, factor_problem, sight
from onnxdecomp.fitting.quadratic_loss import Problem, solved_positive
from onnxdecomp.tensor.linalg import left_basis

ITERATIONS = 12
"""Of conjugate gradients for one factor in one sweep."""

_EXACT, _NEAR = 1e-10, 1e-2
"""Of the squared residual: what is left of it where iterations end, and where they do with a preconditioner,
which measures it by what it adds to the loss. The other factors then move, too."""

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
    steps = list(chain.with_weights(lambda step: step.weight.astype(np.float64)).steps)
    weighted = [index for index, step in enumerate(steps) if isinstance(step, WeightedStep)]
    responses = _Responses(chain, problem)
    iterations = min(iterations, _affordable(steps, responses))
    loss = problem.loss(responses.dense(steps)) if sweeps > 1 else 0.0
    earlier: list[Step] | None = None
    for left in reversed(range(sweeps)):
        now = list(steps) if earlier is None or not left else _farther(steps, earlier, weighted[:-1])
        explained = _sweep(now, weighted, responses, iterations)
        if not left:
            steps = now
            break  # nobody asks what it loses
        if explained is None:
            found = problem.loss(responses.dense(now))
        else:  # where a quadratic is least, it is what its linear part leaves of the constant
            found = problem.energy + problem.pull - explained
        if earlier is not None and not found <= loss:
            earlier = None  # too far: from the best again
            continue
        before, loss = loss, found
        earlier, steps = steps, now
        if before - loss <= tolerance * before:
            break
    return replace(chain, steps=tuple(steps))


def _farther(steps: Sequence[Step], earlier: Sequence[Step], others: Sequence[int]) -> list[Step]:
    """Factors as far beyond where the last round has brought them; the last one is solved for anyway.

    Alternations creep along valleys, in which the next step is about the last one (Harshman 1970; Nesterov's
    with restarts: Mitchell et al. 2020, "Nesterov acceleration of alternating least squares").
    """
    moved = list(steps)
    for index in others:
        now, then = steps[index], earlier[index]
        assert isinstance(now, WeightedStep)
        assert isinstance(then, WeightedStep)
        moved[index] = now.with_weight(2 * now.weight - then.weight)
    return moved


def _sweep(
    steps: list[Step], weighted: Sequence[int], responses: _Responses, iterations: int
) -> float | None:
    """Every factor anew, in place; tr(V CT) of the whole where the last of them is the best that there is."""
    *others, last = weighted
    both = None
    if others and others[-1] == last - 1 == len(steps) - 2:
        for index in others[:-1]:
            steps[index] = _improved(steps, index, responses, iterations)
        both = _pair(steps, responses)
        others = others[-1:]
    if both is not None:
        *steps[-2:], explained = both
        return explained
    for index in others:
        steps[index] = _improved(steps, index, responses, iterations)
    steps[last], found = _last(steps, last, responses)
    return found


def solve_last(chain: Chain, problem: Problem) -> Chain:
    """The chain with the last factor of least loss while the others stand, in float64."""
    steps = chain.with_weights(lambda step: step.weight.astype(np.float64)).steps
    last, _ = _last(steps, len(steps) - 1, _Responses(chain, problem))
    return replace(chain, steps=(*steps[:-1], last))


def _affordable(steps: Sequence[Step], responses: _Responses) -> int:
    """Iterations per factor whose work is within bounds: each goes through the chain about three times."""
    weighted = [
        (s, x) for s, x in zip(steps, responses.inputs(steps), strict=False) if isinstance(s, WeightedStep)
    ]
    once = sum(x.size * step.params / step.inputs for step, x in weighted)
    return max(_FEWEST, int(_WORK / (3 * once * len(weighted))))


class _Responses:
    """Between a chain's responses to impulses and the problem's rows [g, T/g, D]."""

    def __init__(self, chain: Chain, problem: Problem) -> None:
        self.problem = problem
        self.groups, self.per_group, _ = problem.cross.shape
        self.impulse = chain.impulses(0, chain.inputs // chain.groups, np.float64)
        self._first: Sight | None = None

    def sight(self, steps: Sequence[Step], index: int) -> Sight | None:
        """What a step sees, if it is a plain convolution; that of the first does not change."""
        if index == 0:
            self._first = self._first or sight(steps[0], None, steps[1:], self.problem)
            return self._first
        x = self.impulse
        for step in steps[:index]:
            x = step.forward(x)
        return sight(steps[index], x, steps[index + 1 :], self.problem)

    def inputs(self, steps: Sequence[Step]) -> list[Array]:
        """What each step gets, and the response of the last."""
        seen = [self.impulse]
        for step in steps:
            seen.append(step.forward(seen[-1]))
        return seen

    def dense(self, steps: Sequence[Step]) -> Array:
        return self.rows(self.inputs(steps)[-1])

    def rows(self, response: Array, per_group: int | None = None) -> Array:
        """[S/g, T, *kernel] or [S, T] to [g, T/g, D], T/g that of the layer if `per_group` says no other."""
        per_group = self.per_group if per_group is None else per_group
        flat = response.reshape(len(self.impulse), self.groups, per_group, -1)
        return flat.transpose(1, 2, 0, 3).reshape(self.groups, per_group, -1)

    def response(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `rows`."""
        apart = rows.reshape(self.groups, self.per_group, len(self.impulse), -1)
        return np.asarray(apart.transpose(2, 0, 1, 3).reshape(shape))


def _improved(steps: Sequence[Step], index: int, responses: _Responses, iterations: int = ITERATIONS) -> Step:
    """Conjugate gradients on one factor, from where it is."""
    step, seen = steps[index], responses.sight(steps, index)
    if seen is None or not isinstance(step, Convolve):
        return _improved_through_chain(steps, index, responses, iterations)
    posed = factor_problem(step, steps[index + 1 :], seen)
    weight = step.weight.reshape(len(step.weight), -1)
    found = _conjugate_gradients(
        weight, -posed.gradient(weight), posed.curved, posed.preconditioner(), _NEAR, iterations
    )
    return step.with_weight(found.reshape(step.weight.shape))


def _improved_through_chain(
    steps: Sequence[Step], index: int, responses: _Responses, iterations: int
) -> Step:
    """The same through the steps themselves, of any kind, and the layer's own rows."""
    problem = responses.problem
    seen = responses.inputs(steps)
    step, x, after = steps[index], seen[index], steps[index + 1 :]
    assert isinstance(step, WeightedStep)

    def forward(weight: Array) -> Array:
        response = step.with_weight(weight).forward(x)
        for later in after:
            response = later.forward(response)
        return responses.rows(response)

    def adjoint(rows: Array) -> Array:
        z = responses.response(rows, seen[-1].shape)
        for position in range(len(steps) - 1, index, -1):
            z = steps[position].adjoint(z, seen[position].shape)
        return step.weight_gradient(x, z)

    single = problem.single

    def curved(direction: Array) -> Array:
        return adjoint((forward(direction).astype(single.dtype) @ single).astype(np.float64))

    start = -adjoint(problem.gradient(responses.rows(seen[-1])))
    found = _conjugate_gradients(np.array(step.weight), start, curved, _itself, _EXACT, iterations)
    return step.with_weight(found)


def _conjugate_gradients(
    weight: Array,
    residual: Array,
    curved: Callable[[Array], Array],
    divided: Callable[[Array], Array],
    enough: float,
    iterations: int,
) -> Array:
    """A weight of no larger loss.

    Args:
        weight: Where it is.
        residual: Half the downward gradient there.
        curved: Half the Hessian times a direction. Its rounding is made up for: the next sweep starts from
            the exact gradient.
        divided: A gradient by about the curvature.
        enough: What is left of the squared residual where iterations end.
        iterations: At most.
    """
    direction = divided(residual)
    size = float(np.vdot(residual, direction))
    first = size
    for _ in range(iterations):
        if size <= enough * first or size == 0:
            break
        bent = curved(direction)
        curvature = float(np.vdot(direction, bent))
        if not curvature > 0:
            break
        length = size / curvature
        weight = weight + length * direction
        residual = residual - length * bent
        scaled = divided(residual)
        previous, size = size, float(np.vdot(residual, scaled))
        direction = scaled + size / previous * direction
    return weight


def _itself(gradient: Array) -> Array:
    return gradient


def _last(steps: Sequence[Step], index: int, responses: _Responses) -> tuple[Step, float | None]:
    """The best last factor, by normal equations where its outputs are independent; tr(V CT) then."""
    step = steps[index]
    assert isinstance(step, WeightedStep)
    rows = step.rows()
    if index != len(steps) - 1 or rows is None or len(rows) != responses.groups:
        return _improved(steps, index, responses), None
    normal, right = _normal_equations(steps, index, responses)
    best = _solved(normal, right)
    return step.with_rows(best), float(np.sum(best * right))


def _pair(steps: Sequence[Step], responses: _Responses) -> tuple[Step, Step, float] | None:
    """The best two last factors where the last one mixes channels and nothing else; None where it does not.

    Reduced-rank regression (Izenman 1975) on what the first of the two reads.
    """
    first, last = steps[-2:]
    if not isinstance(first, WeightedStep) or not isinstance(last, WeightedStep):
        return None
    inner, outer = first.rows(), last.rows()
    if inner is None or outer is None or not len(inner) == len(outer) == responses.groups:
        return None
    rank = inner.shape[1]
    if outer.shape[2] != rank or rank > min(outer.shape[1], inner.shape[2]):
        return None
    normal, right = _normal_equations(steps, len(steps) - 2, responses)
    try:
        best = _solved(normal, right)
    except np.linalg.LinAlgError:  # what the first of them reads is too much alike
        return None
    basis = _leading_outputs(best, normal, rank)
    turned = basis.swapaxes(1, 2)
    inner = turned @ best
    return first.with_rows(inner), last.with_rows(basis), float(np.sum(inner * (turned @ right)))


def _leading_outputs(best: Array, normal: Array, rank: int) -> Array:
    """The directions [g, T/g, rank] in which the outputs V x vary most, of V and of the moments of x."""
    if best.shape[1] <= best.shape[2]:
        spread = best @ normal @ best.swapaxes(1, 2)
        return np.asarray(np.linalg.eigh((spread + spread.swapaxes(1, 2)) / 2)[1][:, :, : -rank - 1 : -1])
    # T may be a vocabulary, of which no square is taken.
    values, vectors = np.linalg.eigh((normal + normal.swapaxes(1, 2)) / 2)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    return np.stack([left_basis(outputs, rank=rank)[0] for outputs in best @ root])


def _normal_equations(steps: Sequence[Step], index: int, responses: _Responses) -> tuple[Array, Array]:
    """Of the factor at `index`, were it the last: [g, q, q] and [g, T/g, q]."""
    step, problem = steps[index], responses.problem
    assert isinstance(step, WeightedStep)
    seen = responses.sight(steps, index)
    if seen is not None and seen.cross.shape[2] == 1:
        return seen.second[:, 0, 0][None], seen.cross[:, :, 0][None]
    rows = step.rows()
    assert rows is not None
    x = responses.impulse
    for earlier in steps[:index]:
        x = earlier.forward(x)
    # What each number of a row adds to a row of the dense weight: the response of a factor of unit rows.
    units = step.with_rows(np.tile(np.eye(rows.shape[2]), (len(rows), 1, 1)))
    basis = responses.rows(units.forward(x), rows.shape[2])  # [g, q, D]
    turned = basis.swapaxes(1, 2)
    return basis @ problem.second @ turned, problem.cross @ turned


def _solved(normal: Array, right: Array) -> Array:
    solved = []
    for n, r in zip(normal, right, strict=True):
        ridge = 1e-12 * float(np.trace(n)) / len(n)
        solved.append(solved_positive(n + (ridge or 1.0) * np.eye(len(n)), r.T).T)
    return np.stack(solved)
