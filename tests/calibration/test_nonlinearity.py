"""Activations behind layers, and fits that spend nothing on what they forgive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.calibration.nonlinearity import Activation, Aim, activation
from onnxdecomp.core.layer import Array
from tests.builders.feeds import normal
from tests.builders.graphs import conv, from_x, loaded, match_of
from tests.builders.models import PICTURE, residual

WEIGHTS = {"layer.w": normal(4, 4, 1, 1), "layer.b": normal(4)}
LIMITS: dict[str, Array] = {
    name: np.array(number, np.float32) for name, number in (("zero", 0), ("six", 6), ("one", 1))
}


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "expected"),
    [
        ("Relu", [], {}, Activation()),
        ("LeakyRelu", [], {}, Activation(0.01)),
        ("LeakyRelu", [], {"alpha": 0.25}, Activation(0.25)),
        ("Clip", ["zero", "six"], {}, Activation(high=6.0)),
        ("Clip", ["zero"], {}, Activation()),
        ("Clip", ["one", "six"], {}, None),
        ("Clip", [], {}, None),
        ("LeakyRelu", [], {"alpha": -1.0}, None),
        ("Sigmoid", [], {}, None),
    ],
)
def test_what_stands_behind_a_layer(
    op: str, operands: list[str], attributes: dict[str, Any], expected: Activation | None
) -> None:
    nodes = [conv("layer", "x", "h"), helper.make_node(op, ["h", *operands], ["y"], **attributes)]
    model = from_x(nodes, WEIGHTS | {name: LIMITS[name] for name in operands}, PICTURE)
    found = activation(match_of(model))
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.slope == pytest.approx(expected.slope)
        assert found.high == expected.high


def test_other_uses_of_the_output_forgive_nothing() -> None:
    nodes = [conv("layer", "x", "h"), helper.make_node("Relu", ["h"], ["y"])]
    assert activation(match_of(from_x(nodes, WEIGHTS, PICTURE, "y", "h"))) is None
    nodes.append(helper.make_node("Neg", ["h"], ["z"]))
    assert activation(match_of(from_x(nodes, WEIGHTS, PICTURE, "y", "z"))) is None


def test_a_sum_with_a_branch_may_stand_between() -> None:
    assert activation(match_of(loaded(residual()), "second")) == Activation()


numbers = st.integers(0, 2**32 - 1)
acts = st.sampled_from([Activation(), Activation(0.2), Activation(high=0.7), Activation(0.1, 0.5)])


@given(seed=numbers, act=acts, branched=st.booleans())
def test_a_fit_to_what_is_wanted_instead_is_never_worse_behind_the_activation(
    seed: int, act: Activation, branched: bool
) -> None:
    """The bound: any output closer to what is wanted instead is closer behind the activation."""
    rng = np.random.default_rng(seed)
    rows, weight, bias = rng.normal(size=(1, 40, 3)), rng.normal(size=(1, 5, 3)), rng.normal(size=5)
    meant = rng.normal(size=(40, 5))
    added = rng.normal(size=(40, 5)) if branched else None
    wanted = Aim(act, weight, bias).wanted(rows[0] @ weight[0].T + bias, meant, added)

    def behind(bias: Array, weight: Array) -> float:
        fitted = rows[0] @ weight.T + bias + (0 if added is None else added)
        return float(np.sum(np.square(act(fitted) - act(meant + (0 if added is None else added)))))

    full = np.hstack([rows[0], np.ones((40, 1))])
    solved = np.linalg.lstsq(full, wanted, rcond=None)[0].T
    # The secant at the fit before is no bound of the activation elsewhere, but the step is short enough.
    assert behind(solved[:, -1], solved[:, :-1]) <= 1.05 * behind(bias, weight[0]) + 1e-9


def test_nothing_is_wanted_where_both_are_cut_off() -> None:
    meant = np.array([[-1.0], [2.0], [-3.0]])
    wanted = Aim(Activation(), np.full((1, 1, 1), -2.0), None).wanted(np.full((3, 1), -2.0), meant, None)
    # The fitted value is -2: as good as -1 and -3; 2 is out of reach of a half step.
    assert wanted[0, 0] == -2
    assert wanted[2, 0] == -2
    assert -2 < wanted[1, 0] < 2


def test_a_fit_that_is_right_stays() -> None:
    rows = np.arange(6.0).reshape(1, 3, 2)
    weight = np.array([[[1.0, -1.0]]])
    meant = rows[0] @ weight[0].T
    np.testing.assert_array_equal(Aim(Activation(), weight, None).wanted(meant, meant, None), meant)
