"""Variable elimination: the least sum of tables over few variables each, one variable after the other.

At given prices the minimum of the sum is exact by eliminating the variables (bucket elimination: Dechter
1999, "Bucket elimination: a unifying framework for reasoning"), in an order that makes few new neighbours
(min-fill). Channels that follow each other are a path, and residual networks are little more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Numbers:
    """What every combination of states of some variables costs and loses.

    Attributes:
        variables: In rising order.
        values: [states of each variable …, numbers]: the costs and, last, the loss.
        open: [states of each variable …]: the combinations that may be chosen.
    """

    variables: tuple[int, ...]
    values: Floats
    open: Bools


@dataclass(frozen=True, eq=False)
class Bucket:
    """What is added up when its variable is eliminated, a table over the variable and its context.

    Attributes:
        context: Variables that are eliminated later, in rising order.
        own: [context …, states, numbers]: the sum of the problem's tables in it.
        open: [context …, states]: what may be chosen.
        incoming: The buckets whose minima are added, each with the shape that aligns these.
    """

    context: tuple[int, ...]
    own: Floats
    open: Bools
    incoming: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, eq=False)
class Buckets:
    """A problem whose variables are numbered so that the last one is eliminated first.

    Attributes:
        order: For every variable here, its number outside.
        each: Every variable's bucket.
    """

    order: tuple[int, ...]
    each: tuple[Bucket, ...]


@dataclass(frozen=True, eq=False)
class Minimum:
    """A problem minimised at several prices.

    Attributes:
        value: [trials]: the minimum.
        numbers: The costs and the loss of what is least in the first trial.
        excess: By bucket, [context …, states, trials]: how much more than the least a state makes it.
        sums: By bucket, [context …, states, numbers]: the numbers of the bucket and those of what is least
            below it in the first trial.
        least: By bucket, [context …]: the state that is least in the first trial.
    """

    value: Floats
    numbers: Floats
    excess: tuple[Floats, ...]
    sums: tuple[Floats, ...]
    least: tuple[Ints, ...]


def buckets(states: Sequence[int], tables: Sequence[Numbers], numbers: int) -> Buckets:
    """Put the tables of a problem into buckets.

    Args:
        states: Of every variable; at least one each.
        tables: Each over at least one variable.
        numbers: In a table, per combination.
    """
    order, contexts = _order(states, [table.variables for table in tables])
    place = {variable: index for index, variable in enumerate(order)}
    sizes = [states[variable] for variable in order]
    waiting: list[list[Numbers]] = [[] for _ in order]
    for table in tables:
        axes = sorted(range(len(table.variables)), key=lambda axis: place[table.variables[axis]])
        scope = tuple(place[table.variables[axis]] for axis in axes)
        values = table.values.transpose(*axes, len(axes))
        waiting[scope[-1]].append(Numbers(scope, values, table.open.transpose(*axes)))
    incoming: list[list[int]] = [[] for _ in order]
    each = []
    for bucket in reversed(range(len(order))):
        context = tuple(sorted(place[variable] for variable in contexts[order[bucket]]))
        if context:
            incoming[context[-1]].append(bucket)
        scope = (*context, bucket)
        shape = tuple(sizes[variable] for variable in scope)
        own, may = np.zeros((*shape, numbers)), np.ones(shape, bool)
        for table in waiting[bucket]:
            aligned = _aligned(table.variables, scope, sizes)
            own += table.values.reshape(*aligned, numbers)
            may &= table.open.reshape(aligned)
        each.append(Bucket(context, own, may, tuple((source, ()) for source in incoming[bucket])))
    each.reverse()
    shaped = [_with_shapes(bucket, index, each, sizes) for index, bucket in enumerate(each)]
    return Buckets(tuple(order), tuple(shaped))


def minimise(problem: Buckets, weights: Floats) -> Minimum:
    """Eliminate all variables.

    Args:
        problem: The buckets.
        weights: [trials, numbers]: what is least is the sum of the numbers with these weights.
    """
    low: dict[int, Floats] = {}
    best: dict[int, Floats] = {}
    excess, sums, least = [], [], []
    value, numbers = np.zeros(len(weights)), np.zeros(weights.shape[1])
    for index in reversed(range(len(problem.each))):
        bucket = problem.each[index]
        priced, total = bucket.own @ weights.T, bucket.own
        if not bucket.open.all():
            priced[~bucket.open] = np.inf
        for source, shape in bucket.incoming:
            priced = priced + low[source].reshape(*shape, -1)
            total = total + best[source].reshape(*shape, -1)
        at = priced[..., 0].argmin(axis=-1)
        low[index] = priced.min(axis=-2)
        best[index] = np.take_along_axis(total, at[..., None, None], axis=-2)[..., 0, :]
        with np.errstate(invalid="ignore"):
            over = priced - low[index][..., None, :]
        over[np.isnan(over)] = np.inf  # where nothing may be chosen
        excess.append(over)
        sums.append(total)
        least.append(at)
        if not bucket.context:
            value, numbers = value + low[index], numbers + best[index]
    return Minimum(value, numbers, tuple(excess[::-1]), tuple(sums[::-1]), tuple(least[::-1]))


def least(problem: Buckets, weights: Sequence[float]) -> tuple[float, Floats]:
    """The minimum of `minimise` at one price, and the numbers of what is least there.

    Args:
        problem: The buckets.
        weights: [numbers].
    """
    low: dict[int, Floats] = {}
    best: list[Ints] = []
    value = 0.0
    for index in reversed(range(len(problem.each))):
        bucket = problem.each[index]
        priced = bucket.own @ np.asarray(weights)
        if not bucket.open.all():
            priced[~bucket.open] = np.inf
        for source, shape in bucket.incoming:
            priced += low[source].reshape(shape)
        at = priced.argmin(axis=-1)
        low[index] = np.take_along_axis(priced, at[..., None], axis=-1)[..., 0]
        best.append(at)
        if not bucket.context:
            value += float(low[index])
    numbers, states = np.zeros(len(weights)), list[int]()
    for bucket, at in zip(problem.each, reversed(best), strict=True):
        context = tuple(states[variable] for variable in bucket.context)
        states.append(int(at[context]))
        numbers += bucket.own[(*context, states[-1])]
    return value, numbers


def affordable(states: Sequence[int], scopes: Iterable[tuple[int, ...]], most: int) -> tuple[int, ...]:
    """How many states of each variable make buckets of `most` combinations together.

    In the largest bucket the states of the variable that most others hang on are halved, until that will do.
    """
    order, contexts = _order(states, scopes)
    sizes = list(states)
    hanging = [sum(variable in context for context in contexts.values()) for variable in range(len(states))]

    def size(variable: int) -> int:
        return math.prod(sizes[other] for other in (*contexts[variable], variable))

    while sum(map(size, order)) > most and max(sizes) > 1:
        largest = max(order, key=size)
        scope = sorted((*contexts[largest], largest))
        halved = max(scope, key=lambda v: (sizes[v] > 2, sizes[v] > 1, hanging[v], sizes[v]))
        sizes[halved] = -(-sizes[halved] // 2)
    return tuple(sizes)


def _aligned(variables: Iterable[int], scope: Iterable[int], sizes: Sequence[int]) -> tuple[int, ...]:
    own = set(variables)
    return tuple(sizes[variable] if variable in own else 1 for variable in scope)


def _with_shapes(bucket: Bucket, index: int, each: Sequence[Bucket], sizes: Sequence[int]) -> Bucket:
    scope = (*bucket.context, index)
    shaped = tuple((source, _aligned(each[source].context, scope, sizes)) for source, _ in bucket.incoming)
    return Bucket(bucket.context, bucket.own, bucket.open, shaped)


def _order(states: Sequence[int], scopes: Iterable[tuple[int, ...]]) -> tuple[list[int], dict[int, set[int]]]:
    """The variables, the last to be eliminated first, and for each those that its bucket holds besides.

    They are eliminated by min-fill and then taken depth first: what hangs on a variable alone comes right
    after it, so that of the variables before few matter at a time.
    """
    neighbours: list[set[int]] = [set() for _ in states]
    for scope in scopes:
        for variable in scope:
            neighbours[variable].update(other for other in scope if other != variable)

    def rank(variable: int) -> tuple[int, int, int]:
        around = neighbours[variable]
        fill = sum(len(around - neighbours[other]) - 1 for other in around)
        return fill, math.prod(states[other] for other in around), variable

    ranks = {variable: rank(variable) for variable in range(len(states))}
    contexts: dict[int, set[int]] = {}
    while ranks:
        variable = min(ranks, key=ranks.__getitem__)
        del ranks[variable]
        around = contexts[variable] = neighbours[variable]
        for other in around:
            neighbours[other] = (neighbours[other] | around) - {other, variable}
        changed = around.union(*(neighbours[other] for other in around))
        ranks.update({other: rank(other) for other in changed})
    return _depth_first(contexts), contexts


def _depth_first(contexts: Mapping[int, set[int]]) -> list[int]:
    """The variables from the roots of the elimination tree down, small branches first."""
    place = {variable: index for index, variable in enumerate(contexts)}
    children: dict[int | None, list[int]] = {None: [], **{variable: [] for variable in contexts}}
    size: dict[int, int] = {}
    for variable, context in contexts.items():
        size[variable] = 1 + sum(size[child] for child in children[variable])
        children[min(context, key=place.__getitem__, default=None)].append(variable)
    found: list[int] = []
    stack: list[int] = children[None]
    while stack:
        variable = stack.pop()
        found.append(variable)
        stack += sorted(children[variable], key=lambda child: (-size[child], -child))
    return found
