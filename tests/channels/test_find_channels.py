"""Channels between two layers: what makes them, what reads them, what breaks them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxdecomp.channels import check_cut, cut_channel, without_columns
from onnxdecomp.channels.facts import Facts
from onnxdecomp.channels.find_channels import find_channel, find_channels
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.find import find
from tests.builders import graphs
from tests.builders.feeds import normal
from tests.builders.graphs import node
from tests.builders.models import residual
from tests.channels.cutting import assert_cut, channels_of, opened
from tests.channels.transformers import attention


def feed_forward(
    activation: str = "Relu", **attributes: float
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    nodes = [
        node("MatMul", "x up.w", "up"),
        node("Add", "up up.b", "biased"),
        node(activation, "biased", "hidden", **attributes),
        node("MatMul", "hidden down.w", "down"),
        node("Add", "down down.b", "y"),
    ]
    weights = {"up.w": normal(6, 10), "up.b": normal(10), "down.w": normal(10, 4), "down.b": normal(4)}
    return nodes, weights


def test_a_feed_forward_block_is_a_channel() -> None:
    nodes, weights = feed_forward()
    proto = graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights)
    (channel,) = assert_cut(proto, {"x": normal(2, 5, 6)})
    assert (channel.name, channel.width, channel.blocks) == ("up", 10, 1)
    assert [end.match.layer.name for end in channel.producers] == ["up"]
    assert [end.match.layer.name for end in channel.readers] == ["down"]
    np.testing.assert_array_equal(channel.readers[0].units, [np.arange(10)])
    np.testing.assert_array_equal(channel.producers[0].units, np.arange(10))
    assert [part.value.name for part in channel.shaped] == ["up", "biased", "hidden"]
    assert not channel.linear


def test_a_channel_without_a_bend_is_linear() -> None:
    nodes, weights = feed_forward("Identity")
    proto = graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights)
    assert channels_of(opened(proto))[0][0].linear


def test_convolutions_are_a_channel() -> None:
    nodes = [
        graphs.conv("first", "x", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "a", "b"),
        graphs.conv("second", "b", "y"),
    ]
    weights = {"first.w": normal(8, 3, 3, 3), "first.b": normal(8), "second.w": normal(4, 8, 3, 3)}
    weights["second.b"] = normal(4)
    proto = graphs.model(nodes, {"x": ["N", 3, "H", "W"]}, {"y": ["N", 4, None, None]}, weights)
    (channel,) = assert_cut(proto, {"x": normal(2, 3, 9, 11)})
    np.testing.assert_array_equal(channel.readers[0].units, [np.repeat(np.arange(8), 9)])


def test_what_stays_must_be_units_of_the_channel() -> None:
    nodes, weights = feed_forward()
    model = opened(graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights))
    (channel,), _ = channels_of(model)
    for wrong in ([], [0, 0], [3, 1], [-1, 2], [10], [0.5]):
        with pytest.raises(ValueError, match="units that stay"):
            cut_channel(model, channel, np.array(wrong))


def test_what_breaks_a_channel_is_named() -> None:
    nodes, weights = feed_forward("Softmax", axis=-1)
    proto = graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights)
    channels, skips = channels_of(opened(proto))
    assert channels == ()
    assert [skip.name for skip in skips] == ["up", "down"]
    assert "Softmax hidden" in skips[0].reason
    assert skips[1].reason == "it is the output y"


def test_a_bias_that_others_read_is_copied() -> None:
    """The other reader keeps all of it."""
    nodes, weights = feed_forward()
    nodes += [node("Mul", "side up.b", "z")]
    inputs: dict[str, graphs.Dims] = {"x": ["N", 5, 6], "side": [10]}
    proto = graphs.model(nodes, inputs, {"y": ["N", 5, 4], "z": [10]}, weights)
    feed = {"x": normal(2, 5, 6), "side": normal(10)}
    model = opened(proto)
    (channel,), _ = channels_of(model)
    before = without_columns(model, channel, np.arange(3))
    cut_channel(model, channel, np.arange(3))
    check = check_cut(before, model, channel, np.arange(3), feed)
    assert (check.passed, check.reason) == (True, "")
    sizes = {
        name: value.const_value.size for name, value in model.graph.initializers.items() if value.const_value
    }
    assert sizes["up.b"] == 10
    assert sorted(sizes.values()) == [3, 4, 10, 12, 18]


def test_a_size_that_the_model_measures_breaks_a_channel() -> None:
    """A scale by the width would change with it."""
    nodes, weights = feed_forward()
    nodes[3:3] = [
        node("Shape", "hidden", "shape"),
        node("Gather", "shape last", "width", axis=0),
        node("Cast", "width", "float", to=1),
        node("Div", "hidden float", "scaled"),
    ]
    nodes[7] = node("MatMul", "scaled down.w", "down")
    weights["last"] = np.array(-1)
    proto = graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights)
    channels, skips = channels_of(opened(proto))
    assert channels == ()
    assert skips[0].reason == "Shape shape measures it"


def test_a_bias_that_may_be_overridden_breaks_a_channel() -> None:
    nodes, weights = feed_forward()
    proto = graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights, listed=["up.b"])
    assert channels_of(opened(proto))[0] == ()


def test_the_cut_check_sees_a_wrong_cut() -> None:
    nodes, weights = feed_forward()
    model = opened(graphs.model(nodes, {"x": ["N", 5, 6]}, {"y": ["N", 5, 4]}, weights))
    (channel,), _ = channels_of(model)
    before = without_columns(model, channel, np.array([0, 2]))
    cut_channel(model, channel, np.array([0, 1]))
    assert not check_cut(before, model, channel, np.array([0, 2]), {"x": normal(2, 5, 6)}).passed


@pytest.mark.parametrize("form", ["plain", "fused", "grouped", "residual"])
def test_one_channel_is_found_as_all_are(form: str) -> None:
    """Without a search that begins at every other layer."""
    model = opened(residual() if form == "residual" else attention(form, free=False))
    matched = find(model)[0]
    every = find_channels(model, matched)[0]
    assert every
    for channel in every:
        found = find_channel(model, matched, channel.name)
        assert found is not None
        assert (found.name, found.width, found.blocks) == (channel.name, channel.width, channel.blocks)
        assert (found.nodes, found.linear) == (channel.nodes, channel.linear)
        made, read = (
            zip(found.producers, channel.producers, strict=True),
            zip(found.readers, channel.readers, strict=True),
        )
        assert all(a.match is b.match and (a.units == b.units).all() for a, b in made)
        assert all(a.match is b.match and (a.units == b.units).all() for a, b in read)
    assert find_channel(model, matched, "nobody") is None


def stream(
    blocks: int, outputs: tuple[int, ...] = (), *, ends: bool = False, pairs: bool = False
) -> onnx.ModelProto:
    """A residual stream from x to y: to it each block adds what a layer makes of it.

    Args:
        blocks: How many.
        outputs: Blocks behind which the stream is an output, too.
        ends: Put a layer before it and one behind.
        pairs: Layers read what keeps together two units each.
    """
    nodes, x = [], "x"
    weights = {f"layer{index}.w": normal(4, 4) for index in range(blocks)}
    weights |= {"split": np.array([0, 2, 2]), "join": np.array([0, 4])}
    if ends:
        nodes, x = [node("MatMul", "x first.w", "first")], "first"
    for index in range(blocks):
        out = "y" if index == blocks - 1 and not ends else f"sum{index}"
        made, read = f"layer{index}", f"read{index}" if pairs else x
        if pairs:
            nodes.append(node("Reshape", f"{x} split", f"two{index}"))
            nodes.append(node("Softmax", f"two{index}", f"soft{index}", axis=2))
            nodes.append(node("Reshape", f"soft{index} join", read))
        nodes += [node("MatMul", f"{read} {made}.w", made), node("Add", f"{x} {made}", out)]
        x = out
    if ends:
        nodes.append(node("MatMul", f"{x} last.w", "y"))
        weights |= {"first.w": normal(4, 4), "last.w": normal(4, 4)}
    ports: dict[str, graphs.Dims] = {name: ["N", 4] for name in ("y", *(f"sum{index}" for index in outputs))}
    return graphs.model(nodes, {"x": ["N", 4]}, ports, weights)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("ends", "most"), [(False, 24), (True, 2)])
def test_a_deep_stream_takes_few_searches(
    ends: bool, most: int, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches, spread = [], Facts.spread

    def counted(facts: Facts) -> None:
        searches.append(facts)
        spread(facts)

    monkeypatch.setattr(Facts, "spread", counted)
    channels, skips = channels_of(opened(stream(80, ends=ends, pairs=pairs)))
    assert len(searches) <= most
    reasons = [skip.reason for skip in skips]
    if ends:
        assert [len(channel.producers) for channel in channels] == [81]
        assert reasons == ["it is the output y"]
    else:
        assert channels == ()
        assert reasons == sorted(reasons)
        assert set(reasons) == {"it comes from the input x", "it is the output y"}


@pytest.mark.parametrize(
    ("outputs", "pairs"), [((), False), ((2,), True), ((9,), False), ((3, 4, 9), False), ((7,), True)]
)
def test_why_a_stream_breaks_is_what_each_layer_meets_first(outputs: tuple[int, ...], pairs: bool) -> None:
    """As searches of their own say, which those listed first have."""
    model = opened(stream(12, outputs, pairs=pairs))
    matched = find(model)[0]
    reasons = {skip.name: skip.reason for skip in find_channels(model, matched)[1]}
    assert len(reasons) == 12
    for match in matched:
        others = [other for other in matched if other is not match]
        own = next(s for s in find_channels(model, [match, *others])[1] if s.name == match.layer.name)
        assert reasons[own.name] == own.reason
