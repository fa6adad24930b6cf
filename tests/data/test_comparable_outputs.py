"""Outputs that are no tensors, that are random, or of which the data say how many rows they have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxdecomp.core.layer import Array
from onnxdecomp.data.comparable_outputs import Compared, UnlikeError, chosen_by_data, pairs, unsteady
from onnxdecomp.evaluate.verify import Verification, verify
from tests.builders.graphs import model as make
from tests.builders.graphs import value

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 6)).astype(np.float32)
A, B = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3) + 1


def test_sequences_are_compared_one_by_one() -> None:
    found = list(pairs("s", [A, [B]], [B, [A]]))
    assert [name for name, _, _ in found] == ["s[0]", "s[1][0]"]
    np.testing.assert_array_equal(found[1][1], B)


def test_maps_are_compared_by_key() -> None:
    ((name, one, two),) = pairs("p", [{"a": 1.0, "b": 2.0}] * 2, [{"b": 3.0, "a": 1.0}] * 2)
    assert name == "p"
    np.testing.assert_array_equal(one, [[1, 2], [1, 2]])
    np.testing.assert_array_equal(two, [[1, 3], [1, 3]])
    ((_, single, _),) = pairs("p", {3: 0.5}, {3: 0.25})
    np.testing.assert_array_equal(single, [[0.5]])


def test_empty_optionals_have_nothing_to_compare() -> None:
    assert list(pairs("o", None, None)) == []


@pytest.mark.parametrize(
    ("one", "two", "what"),
    [
        (A, B[:1], "size"),
        (A, B[0], "kind"),
        ([A], [A, B], "size"),
        (A, None, "size"),
        ({"a": 1.0}, {"b": 1.0}, "kind"),
        (object(), object(), "unknown"),
    ],
)
def test_what_is_unlike(one: object, two: object, what: str) -> None:
    with pytest.raises(UnlikeError) as caught:
        list(pairs("y", one, two))
    assert caught.value.what == what


def test_only_differences_that_the_data_can_make_are_left_out() -> None:
    compared = Compared(["y", "z"], by_data=lambda name: name == "y")
    compared.add({}, [A, A], [B[:1], B])
    assert list(compared.left_out) == ["y"]
    assert "'y'" in compared.notes[0]
    assert [comparison.name for comparison in compared.comparisons] == ["z"]
    with pytest.raises(ValueError, match="'z'"):
        compared.add({}, [A, A], [B, B[:1]])


def test_outputs_that_differ_by_themselves() -> None:
    noise = RNG.standard_normal((2, 3))
    found = unsteady(["same", "noise", "rows", "list"], [A, A, A, [A]], [A, A + noise, A[:1], [A, A]])
    assert list(found) == ["noise", "rows", "list"]


def proto(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], scale: float) -> bytes:
    weights: Mapping[str, Array] = {
        "w": (np.eye(6) * scale).astype(np.float32),
        "one": np.array(1.0, np.float32),
        "zero": np.array([0]),
    }
    product = helper.make_node("MatMul", ["x", "w"], ["f"], name="fc")
    return bytes(make([product, *nodes], [value("x", ["N", 6])], outputs, weights).SerializeToString())


def compared(nodes: list[onnx.NodeProto], *outputs: onnx.ValueInfoProto, scale: float = 1.5) -> Verification:
    before, after = (proto(nodes, list(outputs), by) for by in (1.0, scale))
    return verify(before, after, data={"x": X})


SELECT = [
    helper.make_node("ReduceMax", ["f"], ["s"], axes=[1], keepdims=0),
    helper.make_node("Greater", ["s", "one"], ["g"]),
    helper.make_node("Compress", ["f", "g"], ["rows"], axis=0),
]
NOISE = [helper.make_node("RandomNormalLike", ["f"], ["e"]), helper.make_node("Add", ["f", "e"], ["y"])]
F, ROWS, NOISY = value("f", ["N", 6]), value("rows", ["K", 6]), value("y", ["N", 6])


def test_rows_of_the_datas_choice_are_named_and_the_rest_is_judged() -> None:
    found = compared(SELECT, F, ROWS)
    assert found.status == "failed"
    assert found.worst == pytest.approx(0.5)
    assert [out.name for out in found.outputs] == ["f"]
    assert any("'rows'" in note and "depends on the data" in note for note in found.notes)


def test_where_nothing_can_be_compared_nothing_is_judged() -> None:
    for found in (compared(SELECT, ROWS), compared(NOISE, NOISY)):
        assert found.status == "skipped"
        assert found.outputs == ()
        assert "no output can be compared" in str(found.reason)


def test_random_outputs_are_named_and_the_rest_is_judged() -> None:
    found = compared(NOISE, NOISY, F, scale=1.01)
    assert found.status == "passed"
    assert [out.name for out in found.outputs] == ["f"]
    assert any("'y'" in note and "two runs" in note for note in found.notes)


def test_a_sequence_is_verified() -> None:
    nodes = [helper.make_node("SequenceConstruct", ["f", "f"], ["sq"])]
    sequence = helper.make_tensor_sequence_value_info("sq", TensorProto.FLOAT, None)
    found = compared(nodes, sequence)
    assert [out.name for out in found.outputs] == ["sq[0]", "sq[1]"]
    assert found.worst == pytest.approx(0.5)


def test_a_shape_that_the_data_have_no_part_in_is_a_failure() -> None:
    slices = [helper.make_node("Concat", ["f"] * count, ["y"], axis=0) for count in (1, 2)]
    y = value("y", ["M", 6])
    found = verify(proto(slices[:1], [y], 1.0), proto(slices[1:], [y], 1.0), data={"x": X})
    assert found.status == "failed"
    assert "has shape" in str(found.reason)


def test_operators_that_choose_are_found() -> None:
    assert chosen_by_data(proto(SELECT, [F, ROWS], 1.0), "rows")
    assert not chosen_by_data(proto(SELECT, [F, ROWS], 1.0), "f")
