"""Variable elimination against trying every choice, at several prices and at one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.search.elimination import Numbers, buckets, least, minimise


@given(
    states=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    numbers=st.integers(2, 3),
)
def test_the_least_sum_is_that_of_the_best_choice(states: list[int], seed: int, numbers: int) -> None:
    rng = np.random.default_rng(seed)
    count = len(states)
    scopes = {(variable,) for variable in range(count)}
    scopes |= {tuple(sorted(rng.choice(count, 2, replace=False).tolist())) for _ in range(count) if count > 1}
    tables = []
    for scope in sorted(scopes):
        shape = tuple(states[variable] for variable in scope)
        tables.append(Numbers(scope, rng.random((*shape, numbers)), rng.random(shape) < 0.8))
    weights = rng.random((2, numbers))
    posed = buckets(states, tables, numbers)
    found = minimise(posed, weights)
    value, sums = least(posed, weights[0].tolist())

    open_to = []
    for choice in itertools.product(*map(range, states)):
        picked = [(t, tuple(choice[v] for v in t.variables)) for t in tables]
        if all(table.open[at] for table, at in picked):
            open_to.append(sum(table.values[at] for table, at in picked))
    if not open_to:
        assert np.isinf(found.value).all()
        assert np.isinf(value)
        return
    totals = np.array(open_to) @ weights.T
    np.testing.assert_allclose(found.value, totals.min(axis=0), rtol=1e-12)
    np.testing.assert_allclose(value, found.value[0], rtol=1e-12)
    np.testing.assert_allclose(sums, open_to[int(totals[:, 0].argmin())], rtol=1e-12)
    np.testing.assert_allclose(found.numbers, sums, rtol=1e-12)
