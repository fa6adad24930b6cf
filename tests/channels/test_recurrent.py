"""Units of recurrent states: a cut network computes what it does whose readers have lost the columns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdecomp.channels import cut_channel
from onnxdecomp.core.layer import Array
from tests.builders import graphs
from tests.builders.feeds import normal
from tests.builders.graphs import node
from tests.builders.recurrent import BATCH, HIDDEN, Recurrent
from tests.channels.cutting import assert_cut, assert_valid, channels_of, opened

FORMS = {
    "lstm": Recurrent(),
    "gru": Recurrent("GRU"),
    "gru, reset after": Recurrent("GRU", attributes={"linear_before_reset": 1}),
    "rnn": Recurrent("RNN", attributes={"activations": ["Relu"]}),
    "reverse": Recurrent(direction="reverse"),
    "both directions": Recurrent(directions=2),
    "stacked": Recurrent("GRU", stacked=3),
    "stacked, both directions": Recurrent(directions=2, stacked=2),
    "last state": Recurrent(reads="last"),
    "last states of both directions": Recurrent("GRU", directions=2, reads="last"),
    "cell": Recurrent(reads="cell"),
    "steps and state": Recurrent("GRU", reads="both"),
    "steps and states": Recurrent(directions=2, reads="both"),
    "no bias": Recurrent(bias=False),
    "peepholes": Recurrent(peepholes=True),
    "lengths": Recurrent(lengths=True, directions=2),
    "constant first state": Recurrent(first="constant", directions=2),
    "computed zeros": Recurrent(first="zeros"),
    "clipped": Recurrent(attributes={"clip": 0.5, "input_forget": 1}),
    "activations": Recurrent(attributes={"activations": ["HardSigmoid", "Softsign", "Tanh"]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str) -> None:
    network = FORMS[form]
    channels = assert_cut(network.model(), network.feed())
    assert [channel.width for channel in channels] == [network.directions * HIDDEN] * network.stacked
    assert [channel.blocks for channel in channels] == [network.directions] * network.stacked
    assert [len(channel.recurrences) for channel in channels] == [network.directions] * network.stacked
    assert not any(channel.linear for channel in channels)


@settings(max_examples=12)
@given(
    op_type=st.sampled_from(["LSTM", "GRU", "RNN"]),
    directions=st.integers(1, 2),
    stacked=st.integers(1, 2),
    reads=st.sampled_from(["steps", "last", "both"]),
    first=st.sampled_from(["", "zeros", "constant"]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_forms_together(
    op_type: str, directions: int, stacked: int, reads: str, first: str, bias: bool, seed: int
) -> None:
    network = Recurrent(op_type, directions, "forward", stacked, reads, first, bias, seed=seed)
    assert len(assert_cut(network.model(), network.feed(), seed)) == stacked


def test_states_outside_of_the_network_stay() -> None:
    channels, skips = channels_of(opened(Recurrent(first="given").model()))
    assert channels == ()
    assert skips[0].reason == "it comes from the input state"


def test_the_last_state_as_an_output_stays() -> None:
    proto = Recurrent("GRU", reads="both").model()
    proto.graph.output.append(graphs.value("rnn0.h", [1, BATCH, HIDDEN]))
    channels, skips = channels_of(opened(proto))
    assert channels == ()
    assert skips[0].reason == "it is the output rnn0.h"


def test_units_that_two_layers_add_to_are_cut_alike() -> None:
    """A residual connection around a recurrent layer: its units are those of the layer before."""
    nodes = [
        node("MatMul", "x w", "up"),
        node("LSTM", "up rnn.w rnn.r", "states", hidden_size=HIDDEN),
        node("Squeeze", "states axes", "flat"),
        node("Add", "up flat", "sum"),
        node("MatMul", "sum dense.w", "dense"),
    ]
    weights = {"w": normal(4, HIDDEN), "rnn.w": normal(1, 4 * HIDDEN, HIDDEN), "dense.w": normal(HIDDEN, 3)}
    weights |= {"rnn.r": normal(1, 4 * HIDDEN, HIDDEN), "axes": np.array([1])}
    proto = graphs.model(nodes, {"x": [5, 2, 4]}, {"dense": [5, 2, 3]}, weights)
    (channel,) = assert_cut(proto, {"x": normal(5, 2, 4)})
    assert [end.match.layer.name for end in channel.producers] == ["up", "states"]
    assert [end.match.layer.name for end in channel.readers] == ["states", "dense"]


def test_a_state_that_begins_another_layer_is_cut_with_it() -> None:
    """From an encoder to a decoder: the last state of one is the first of the other."""
    nodes = [
        helper.make_node("GRU", ["x", "a.w", "a.r"], ["", "state"], "a", hidden_size=HIDDEN),
        helper.make_node("GRU", ["x", "b.w", "b.r", "", "", "state"], ["y"], "b", hidden_size=HIDDEN),
        node("MatMul", "y dense.w", "dense"),
    ]
    weights = {f"{name}.w": normal(1, 3 * HIDDEN, 4, seed=at) for at, name in enumerate("ab")}
    weights |= {f"{name}.r": normal(1, 3 * HIDDEN, HIDDEN, seed=at) for at, name in enumerate("ab")}
    weights["dense.w"] = normal(HIDDEN, 3)
    proto = graphs.model(nodes, {"x": [5, 2, 4]}, {"dense": [5, 1, 2, 3]}, weights)
    (channel,) = assert_cut(proto, {"x": normal(5, 2, 4)})
    assert [end.match.layer.name for end in channel.producers] == ["a", "b"]
    assert [end.match.layer.name for end in channel.recurrences] == ["a/recurrence", "b/recurrence"]


def test_directions_that_are_added_up_are_cut_alike() -> None:
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r"], ["states"], "lstm", direction="bidirectional", hidden_size=HIDDEN
        ),
        node("ReduceSum", "states axes", "sum", keepdims=0),
        node("MatMul", "sum dense.w", "dense"),
    ]
    weights = {"w": normal(2, 4 * HIDDEN, 4), "r": normal(2, 4 * HIDDEN, HIDDEN), "axes": np.array([1])}
    weights["dense.w"] = normal(HIDDEN, 3)
    proto = graphs.model(nodes, {"x": [5, 2, 4]}, {"dense": [5, 2, 3]}, weights)
    (channel,) = assert_cut(proto, {"x": normal(5, 2, 4)})
    assert (channel.width, channel.blocks) == (HIDDEN, 1)


def test_the_batch_first_is_cut_alike() -> None:
    """ONNX Runtime has no kernel for it: the tensors are those of the same network the other way round."""
    cut = []
    for layout, shape in ((0, (1, 2, HIDDEN)), (1, (2, 1, HIDDEN))):
        first = normal(1, 2, HIDDEN).reshape(shape)
        x, y = ([5, 2, 4], [5, 1, 2, 3]) if layout == 0 else ([2, 5, 4], [2, 5, 1, 3])
        operands = ["x", "w", "r", "", "", "first"]
        gru = helper.make_node("GRU", operands, ["y", "h"], "gru", hidden_size=HIDDEN, layout=layout)
        nodes = [gru, node("MatMul", "y a", "ya"), node("MatMul", "h b", "hb")]
        weights = {"w": normal(1, 3 * HIDDEN, 4), "r": normal(1, 3 * HIDDEN, HIDDEN), "first": first}
        weights |= {"a": normal(HIDDEN, 3), "b": normal(HIDDEN, 4)}
        outputs = {"ya": y, "hb": [*shape[:2], 4]}
        model = opened(graphs.model(nodes, {"x": x}, outputs, weights))
        (channel,), _ = channels_of(model)
        cut_channel(model, channel, np.array([0, 2, 3, 7]))
        assert_valid(model)
        assert model.graph.node("gru").attributes["hidden_size"].value == 4
        found = {name: constant_of(value) for name, value in model.graph.initializers.items()}
        cut.append(found | {"first": found["first"].reshape(2, 4)})
    assert cut[0].keys() == cut[1].keys()
    for name, array in cut[0].items():
        np.testing.assert_array_equal(array, cut[1][name])


def constant_of(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()
