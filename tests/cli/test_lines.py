"""Progress off a terminal: a line now and then, none of a run that is soon over."""

from __future__ import annotations

from onnxdecomp.cli.lines import EVERY, Lines, said_of
from onnxdecomp.runtime.estimate import Estimate


def test_a_line_every_half_minute_with_what_is_done_and_left() -> None:
    now, said = [0.0], list[str]()
    lines = Lines(said.append, Estimate(lambda: now[0]))
    for step in range(40):
        now[0] = 3.0 * step
        lines(f"weigh layer{step}", step, 40)
    assert len(said) == int(3.0 * 39 // EVERY)
    assert said[0].startswith("weigh layer10 (10 of 40): 30 s so far, about ")
    assert said[0].endswith(" left")


def test_a_run_that_is_soon_over_says_nothing() -> None:
    now, said = [0.0], list[str]()
    lines = Lines(said.append, Estimate(lambda: now[0]))
    for what in ("load", "weigh a", "decompose a", "verify", ""):
        now[0] += 5.0
        lines(what, 0, 0)
    assert said == []


def test_what_is_not_known_is_not_said() -> None:
    assert said_of(None) == ""
    assert said_of(0.2) == "about 1 s left"
    assert said_of(18.2) == "about 18 s left"
    assert said_of(61.3) == "about 1 min left"
    assert said_of(83.0) == "about 85 s left"
    assert said_of(115.0) == "about 2 min left"
    assert said_of(754.0) == "about 13 min left"
    assert said_of(9000.0) == "about 2.5 h left"
