"""A target on costs alone that loses too much is said not to pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.evaluate.verify import Verification
from onnxdecomp.runtime.metrics import OutputError
from onnxdecomp.search.pareto import Point
from onnxdecomp.search.search_record import Expected, Measured, SearchRecord
from onnxdecomp.workflow.loss_note import said_of_bits, said_of_few, said_of_loss

POINTS = (Point(0.0, None, 1.0, 0), Point(0.005, None, 0.8, 2), Point(0.3, None, 0.4, 4))
SEARCH = SearchRecord(Expected(0.3, 0.3, 0.0, None), Measured(None), None, 5, (), POINTS, ())


def verified(error: float, agreement: float | None) -> Verification:
    output = OutputError(
        *("out", "float32", 100),
        None,
        None,
        error,
        None,
        None,
        None,
        agreement,
        nonfinite=0,
        nonfinite_original=0,
    )
    return Verification("passed", None, "a", "b", "cpu", "data", outputs=(output,), rel_l2=error)


@pytest.mark.parametrize(
    ("error", "agreement", "said"),
    [
        (
            0.3,
            0.85,
            "macs=2x does not pay: the first class changes for 15.0% of the inputs; about 1.25x fewer MACs",
        ),
        (0.6, None, "macs=2x does not pay: the outputs' relative error is 0.6; about 1.25x fewer MACs"),
        (0.6, 0.97, ""),
        (0.35, None, ""),
    ],
)
def test_what_does_not_pay_is_said(error: float, agreement: float | None, said: str) -> None:
    notes = said_of_loss("macs=2x", None, verified(error, agreement), SEARCH)
    assert bool(notes) == bool(said)
    for note in notes:
        assert note.startswith(said)
        assert note.endswith("is to be had at an error of 0.1")


def test_what_could_be_had_is_said_in_latency_where_that_was_measured() -> None:
    timed = replace(SEARCH, frontier=tuple(replace(p, latency=(1 + p.macs) / 2) for p in POINTS))
    (note,) = said_of_loss("latency=2x", None, verified(0.6, None), timed)
    assert "about 1.11x in latency" in note
    nothing = replace(SEARCH, frontier=POINTS[:1])
    assert "; nothing is to be had" in said_of_loss("macs=2x", None, verified(0.6, None), nothing)[0]


def test_nothing_is_said_where_the_loss_was_limited() -> None:
    bad = verified(0.6, 0.5)
    assert not said_of_loss("error=0.7", None, bad, SEARCH)
    assert not said_of_loss("macs=2x,error=0.7", None, bad, SEARCH)
    assert not said_of_loss("macs=2x", 0.7, bad, SEARCH)
    assert not said_of_loss(None, None, bad, SEARCH)
    assert not said_of_loss("macs=2x", None, None, SEARCH)
    assert not said_of_loss("macs=2x", None, bad, None)


@pytest.mark.parametrize(
    ("losses", "times"),
    [
        ([(0.1, 0.11), (0.2, 0.24)], ""),
        ([(0.1, 0.1), (0.03, 0.36)], "3.5 times"),
        ([(None, None), (0.1, None)], ""),
        ([(0.0, 0.3)], ""),
        ([], ""),
    ],
)
def test_few_inputs_are_said_to_be_few(losses: list[tuple[float | None, float | None]], times: str) -> None:
    cuts = [ChannelCut("c", ("a",), ("b",), np.arange(4), loss, held_out) for loss, held_out in losses]
    notes = said_of_few(cuts)
    assert bool(notes) == bool(times)
    assert all(times in note and "more inputs would help" in note for note in notes)


@pytest.mark.parametrize(
    ("error", "agreement", "said"),
    [
        (0.31, None, "the outputs are off by 0.31 of their norm"),
        (0.31, 0.8, "the first class changes for 20.0% of the inputs"),
        (0.31, 0.95, ""),
        (0.08, None, ""),
    ],
)
def test_fewer_bits_that_lose_much(error: float, agreement: float | None, said: str) -> None:
    found = said_of_bits("int8-static", None, verified(error, agreement))
    assert [note.split(": ")[1].split(";")[0] for note in found] == ([said] if said else [])
    assert not said_of_bits("", None, verified(0.9, None))
    assert not said_of_bits("int8-static", 0.5, verified(0.4, None))


def test_a_large_output_hides_no_small_one() -> None:
    mask = replace(verified(0.31, None).outputs[0], name="mask")
    state = replace(mask, name="state", rel_l2=0.01)
    both = replace(verified(0.02, None), outputs=(state, mask))
    (note,) = said_of_bits("int8-static", None, both)
    assert "the outputs are off by 0.31 of their norm ('mask')" in note
