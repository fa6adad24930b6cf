"""Plans for a target of size: corrected by the files that are made, and never larger than asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxdecomp.search.file_size import FILES, refine_by_size
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.plan import Choice, Plan
from onnxdecomp.search.select import Chosen


def plan(size: float) -> Chosen:
    """A plan of which that size is expected, and which loses the more the smaller it is."""
    choice = Choice("a", "", "Conv", method="svd", ranks=(round(size),))
    return Chosen(Plan((choice,)), 1e6 - size, 0.0, 0.0, None, size=size)


def expected(chosen: Plan) -> int:
    return chosen.decomposed[0].ranks[0]


@pytest.mark.parametrize("made", [lambda p: expected(p) + 300, lambda p: expected(p) - 300, expected])
def test_what_files_need_beside_the_weights_is_learnt(made: Callable[[Plan], int]) -> None:
    found = refine_by_size(lambda spare: plan(1000 - spare), made, 1000)
    assert isinstance(found, Chosen)
    assert 970 <= made(found.plan) <= 1000


def test_a_file_that_is_too_large_is_never_the_answer() -> None:
    # Twice as large as expected: four files are not enough to learn that from sums.
    made: list[int] = []

    def double(p: Plan) -> int:
        made.append(4 * expected(p))
        return made[-1]

    found = refine_by_size(lambda spare: plan(max(100.0, 1000 - spare)), double, 1000)
    assert len(made) <= FILES
    assert isinstance(found, Chosen)
    assert 4 * expected(found.plan) <= 1000


def test_where_no_file_is_small_enough_the_smallest_is_told() -> None:
    found = refine_by_size(lambda spare: plan(900), lambda p: 2000, 1000)
    assert isinstance(found, OutOfReach)
    assert found.least == (2000,)
    beyond = OutOfReach("no", (1200.0,))
    assert refine_by_size(lambda spare: beyond, expected, 1000) is beyond
