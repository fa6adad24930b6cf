"""Cutting channels of a model and comparing with the model whose readers have lost the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxdecomp.channels import (
    Channel,
    ChannelSkip,
    check_cut,
    cut_channel,
    find_channel,
    find_channels,
    without_columns,
)
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.constants import Constant, initializer, resolve
from onnxdecomp.graph.shape_inference import as_declared
from onnxdecomp.graph.traversal import value_names
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes

SMALL = 64


def opened(proto: onnx.ModelProto) -> ir.Model:
    """A model with the shapes of its activations."""
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def channels_of(model: ir.Model) -> tuple[tuple[Channel, ...], tuple[ChannelSkip, ...]]:
    return find_channels(model, find(model)[0])


def again(model: ir.Model, name: str) -> Channel:
    found = find_channel(model, find(model)[0], name)
    assert found is not None
    return found


def random_keep(channel: Channel, rng: np.random.Generator) -> Array:
    """Some units, equally many of each block and some of each span, at least one left out."""
    size = channel.width // channel.blocks
    starts = np.arange(channel.blocks) * size
    while True:
        kept = int(rng.integers(1, size))
        keep = np.concatenate([np.sort(rng.choice(size, kept, replace=False)) + start for start in starts])
        if all(np.isin(units, keep).any() for units in channel.spans) or kept == size - 1:
            return keep


def assert_cut(proto: onnx.ModelProto, feed: Mapping[str, Array], seed: int = 0) -> list[Channel]:
    """Cut every channel of a model alone at random, and then all of those that are left one after the other.

    Returns:
        The channels of the model.
    """
    rng = np.random.default_rng(seed)
    untouched = opened(proto)
    channels, _ = channels_of(untouched)
    for channel in channels:
        assert_one_cut(proto, feed, channel.name, random_keep(channel, rng), rng)
    if len(channels) > 1:
        model = opened(proto)
        for name in [channel.name for channel in channels]:
            left = next((c for c in channels_of(model)[0] if c.name == name), None)
            if left is not None:
                keep = random_keep(left, rng)
                before = without_columns(model, left, keep)
                cut_channel(model, left, keep)
                assert_same(before, model, left, keep, feed)
        assert_valid(model)
    return list(channels)


def assert_one_cut(
    proto: onnx.ModelProto, feed: Mapping[str, Array], name: str, keep: Array, rng: np.random.Generator
) -> ir.Model:
    """Cut a channel: nothing else changes, whatever numbers made the units that have gone."""
    model = opened(proto)
    channel = again(model, name)
    whole = ir.to_proto(model).SerializeToString()
    cut_channel(model, channel, np.arange(channel.width))
    assert ir.to_proto(model).SerializeToString() == whole
    before = without_columns(model, channel, keep)
    poisoned = opened(proto)
    twin = again(poisoned, name)
    poison(poisoned, twin, keep, rng)
    cut_channel(model, channel, keep)
    assert_valid(model)
    assert_same(before, model, channel, keep, feed)
    assert_same(without_columns(poisoned, twin, keep), model, channel, keep, feed)
    assert parameters(model) < parameters(opened(proto))
    return model


def assert_same(
    before: ir.Model, after: ir.Model, channel: Channel, keep: Array, feed: Mapping[str, Array]
) -> None:
    check = check_cut(before, after, channel, keep, feed)
    assert check.reason == ""
    assert check.passed, (channel.name, check)
    assert check.rel_error is not None


def assert_valid(model: ir.Model) -> None:
    """The file is one, its shapes are those that strict inference finds, nothing is stored for nothing."""
    copy = model.clone()
    as_declared(copy)
    for candidate in (model, copy):
        proto = ir.to_proto(candidate)
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)
    unused = [name for name, value in model.graph.initializers.items() if not value.uses()]
    assert [name for name in unused if not model.graph.initializers[name].is_graph_output()] == []


def poison(model: ir.Model, channel: Channel, keep: Sequence[int] | Array, rng: np.random.Generator) -> None:
    """Put random numbers where units stand that do not stay."""
    left = np.zeros(channel.width + 1, bool)
    left[[*keep, -1]] = True
    taken = value_names(model)
    for part in channel.stored:
        operand = part.node.inputs[part.at]
        assert operand is not None
        constant = resolve(operand, ir_version=3, opset=17)
        assert isinstance(constant, Constant)
        gone = np.broadcast_to(~left[part.units], constant.array.shape)
        if constant.array.dtype.kind == "f":
            numbers = rng.standard_normal(constant.array.shape).astype(constant.array.dtype)
            changed = np.where(gone, np.abs(numbers) + 0.1, constant.array)
            name = f"poison{len(taken)}"
            taken.add(name)
            value = initializer(model.graph, ir.Tensor(changed, name=name), name)
            part.node.replace_input_with(part.at, value)


def parameters(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)
