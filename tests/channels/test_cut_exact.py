"""A cut graph computes what the graph does whose readers have lost the columns, for channels of all forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdecomp.channels import BLOCKS, cut_channel
from tests.builders import graphs
from tests.builders.feeds import normal
from tests.builders.graphs import node
from tests.channels.cutting import assert_cut, channels_of, opened
from tests.channels.sketch import SPACE, STEPS, Sketch, Step, end
from tests.channels.transformers import FORMS, HEADS, attention, feed_forward

IMAGE = {"x": normal(2, 3, SPACE, SPACE)}
TOKENS = {"x": normal(2, 5, 12)}


def image_model(steps: Sequence[Step], seed: int, opset: int) -> onnx.ModelProto:
    s = Sketch(np.random.default_rng(seed), opset)
    x, c = s.conv("x", 3, 8, 3), 8
    for step in steps:
        x, c = step(s, x, c)
    return s.model({"x": [2, 3, SPACE, SPACE]}, *end(s, x, c))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: str(step.__name__))
def test_every_operator_between(step: Step) -> None:
    """Each of them alone lets units pass."""
    proto = image_model([step], seed=len(step.__name__), opset=21)
    assert assert_cut(proto, IMAGE) or step.__name__ == "shuffle"


@settings(max_examples=15)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=4),
    seed=st.integers(0, 2**16),
    opset=st.sampled_from((11, 13, 17, 21)),
)
def test_operators_one_after_the_other(steps: list[Step], seed: int, opset: int) -> None:
    proto = image_model(steps, seed, opset)
    onnx.checker.check_model(proto)
    assert_cut(proto, IMAGE, seed)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_heads(form: str, free: bool) -> None:
    """What is inside of heads, and whole heads, whatever way the axis is split and the sizes are known."""
    proto = attention(form, free)
    channels = {channel.name: channel for channel in assert_cut(proto, TOKENS)}
    inner = [channel for name, channel in channels.items() if not name.endswith(BLOCKS)]
    whole = [channel for name, channel in channels.items() if name.endswith(BLOCKS)]
    assert any(channel.products for channel in inner)
    assert any(channel.readers for channel in inner)
    assert [channel.width for channel in whole] == [HEADS]


@pytest.mark.parametrize("sizes", [None, [8, 8, 6]])
def test_packed_attention(sizes: list[int] | None) -> None:
    """Values, and queries and keys, whose scale stays."""
    width = 12 if sizes is None else sizes[2]
    total = 36 if sizes is None else sum(sizes)
    given = {} if sizes is None else {"qkv_hidden_sizes": sizes}
    nodes = [
        node("MatMul", "x up", "h"),
        node("Attention", "h qkv.w qkv.b", "att", domain="com.microsoft", num_heads=HEADS, **given),
        node("MatMul", "att o", "y"),
    ]
    weights = {
        "up": normal(12, 10),
        "qkv.w": normal(10, total),
        "qkv.b": normal(total),
        "o": normal(width, 4),
    }
    proto = graphs.model(nodes, {"x": [2, 5, 12]}, {"y": [2, 5, 4]}, weights)
    hidden, values, scores = assert_cut(proto, TOKENS)
    assert (hidden.width, values.width, values.blocks) == (10, width, HEADS)
    assert [end.match.layer.name for end in hidden.readers] == ["att"]
    assert (scores.width, scores.blocks) == (12 if sizes is None else sizes[0], HEADS)
    assert [end.name for end in scores.products] == ["att"]
    assert values.linear
    assert scores.linear


def test_the_scale_of_scores_stays() -> None:
    """That of a node which takes it from the size of a head is said where heads become smaller."""
    for form, before, after in (("one node", None, 6**-0.5), ("one node of 4 axes", 0.3, 0.3)):
        model = opened(attention(form, free=False))
        (node,) = [node for node in model.graph if node.op_type.endswith("Attention")]
        scale = node.attributes.get("scale")
        assert before is None if scale is None else scale.value == pytest.approx(before)
        channel = next(channel for channel in channels_of(model)[0] if channel.products)
        cut_channel(model, channel, np.array([0, 1, 6, 7]))
        assert node.attributes["scale"].value == pytest.approx(after)


@pytest.mark.parametrize("operator", ["MultiHeadAttention", "GroupQueryAttention"])
def test_caches_are_an_interface(operator: str) -> None:
    proto = attention("one node", free=False)
    (node,) = [node for node in proto.graph.node if node.op_type == "MultiHeadAttention"]
    node.op_type = operator
    node.output.extend(["present_key", "present_value"])
    for name in node.output[1:]:
        proto.graph.output.append(graphs.value(name, [2, HEADS, 5, 6]))
    channels, skips = channels_of(opened(proto))
    assert channels == ()
    assert [skip.name for skip in skips] == ["q", "k", "v", "o"]
    assert all(skip.reason.endswith("its cache keeps the sizes of heads") for skip in skips[:3])


def test_units_of_heads_may_be_mixed() -> None:
    channels, _ = channels_of(opened(attention("plain", False)))
    assert [(c.name, c.width, c.blocks, c.linear) for c in channels] == [
        ("q", 12, 2, True),
        (f"q{BLOCKS}", 2, 1, False),
        ("v", 12, 2, True),
    ]


def test_positions_that_rotate_pair_units() -> None:
    """Rotary positions turn places j and j + size / 2 together, of all heads alike: pairs are the units."""
    channels, _ = channels_of(opened(attention("rotary", False)))
    query = next(channel for channel in channels if channel.products)
    assert (query.width, query.blocks) == (3, 1)
    np.testing.assert_array_equal(query.producers[0].units, [0, 1, 2] * 4)


@pytest.mark.parametrize("form", ["swiglu", "fused swiglu", "gelu", "erf gelu"])
def test_feed_forwards(form: str) -> None:
    (channel,) = assert_cut(feed_forward(form), TOKENS)
    assert channel.width == 16
    assert len(channel.producers) == (2 if form == "swiglu" else 1)
