"""The estimate of the time left: exact where a run spends what runs usually do, and learning where not."""

from __future__ import annotations

import pytest

from onnxdecomp.runtime.estimate import PARTS, Estimate

NAMES = {"decompose ": "decompose a", "weigh": "weigh a", "try": "try plan 1"}


def walked(seconds: dict[str, float], steps: int = 10) -> list[tuple[float, float]]:
    """What is estimated of the whole time, over the truth, at shares of it."""
    now = [0.0]
    estimate = Estimate(lambda: now[0])
    whole = sum(seconds.values())
    found = []
    for part, _ in PARTS:
        for step in range(steps if part in seconds else 0):
            left = estimate.left(NAMES.get(part, part), step, steps)
            if left is not None:
                found.append((now[0] / whole, (now[0] + left) / whole))
            now[0] += seconds[part] / steps
    return found


def test_a_usual_run_is_known_from_its_beginning() -> None:
    found = walked({part: 100 * share for part, share in PARTS})
    assert found
    assert all(guess == pytest.approx(1.0) for _, guess in found)


def test_without_trials_and_timing_it_learns_what_is_not_there() -> None:
    found = walked({part: 100 * share for part, share in PARTS if part not in ("try", "time layers")})
    late = [guess for when, guess in found if when > 0.6]
    assert late
    assert all(1 / 1.5 < guess < 1.5 for guess in late)


def test_going_back_is_no_new_beginning() -> None:
    now = [0.0]
    estimate = Estimate(lambda: now[0])
    assert estimate.left("load") is None
    now[0] = 60.0
    first = estimate.left("decompose a", 5, 10)
    assert first is not None
    again = estimate.left("weigh b", 0, 10)
    assert again is not None
    assert again >= first * 0.5
    assert estimate.left("something else", 1, 2) == again


def test_no_more_is_promised_than_a_time_limit_leaves() -> None:
    now = [0.0]
    estimate = Estimate(lambda: now[0], most=100.0)
    assert estimate.left("load") is None
    now[0] = 10.0
    assert estimate.left("weigh a", 0, 10) is None
    now[0] = 60.0
    assert estimate.left("weigh a", 5, 10) == pytest.approx(40.0)
    now[0] = 130.0
    assert estimate.left("try plan 1", 0, 6) == 10.0
    assert estimate.left("time", 9, 10) == pytest.approx(120 * 0.005 / 0.645)
