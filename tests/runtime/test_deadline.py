"""Deadlines: what people write, and what is left of the time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.deadline import Deadline, duration, passed, spoken


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("90s", 90.0),
        ("90", 90.0),
        ("5m", 300.0),
        ("5 min", 300.0),
        ("1.5h", 5400.0),
        (" 2 m ", 120.0),
        (7, 7.0),
        (0.5, 0.5),
    ],
)
def test_durations_as_people_write_them(said: str | float, seconds: float) -> None:
    assert duration(said) == seconds


@pytest.mark.parametrize("said", ["", "5d", "m", "-1s", "0", 0, -3.0, float("inf"), float("nan"), "1h30m"])
def test_what_is_no_duration_is_quoted(said: str | float) -> None:
    with pytest.raises(UsageError, match="--time-limit") as caught:
        duration(said)
    assert str(said) in str(caught.value)


@given(st.floats(0.01, 1e5))
def test_a_spoken_duration_is_near_the_one_meant(seconds: float) -> None:
    number, unit = spoken(seconds).split()
    assert float(number) * {"s": 1, "min": 60, "h": 3600}[unit] == pytest.approx(seconds, rel=0.01)


def test_shares_pass_one_after_the_other() -> None:
    now = [10.0]
    deadline = Deadline(100.0, 10.0, lambda: now[0])
    assert deadline.left() == 100.0
    now[0] = 70.0
    assert (deadline.left(), deadline.left(0.5)) == (40.0, 0.0)
    assert passed(deadline, 0.5)
    assert not passed(deadline, 0.75)
    assert not passed(None, 0.0)


@given(st.floats(0, 150), st.floats(0, 1))
def test_shares_are_of_what_is_left_and_the_end_is_the_same(now: float, share: float) -> None:
    deadline = Deadline(100.0, 10.0, lambda: 10.0 + now)
    anew = deadline.shared_anew()
    assert anew.left() == pytest.approx(deadline.left())
    assert anew.left(share) == pytest.approx(share * deadline.left())
    assert anew.seconds == 100.0
