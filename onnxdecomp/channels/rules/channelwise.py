"""Operators over [batch, channels, space …] that treat each channel alone: pooling and the like."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.facts import Facts, Term, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules.rule import Operator, OperatorRule, single_output
from onnxdecomp.graph.attributes import attribute

AVERAGES = ("AveragePool", "GlobalAveragePool")
POOLS = ("MaxPool", "LpPool", "GlobalMaxPool", "GlobalLpPool", "GridSample", "InstanceNormalization")
_SIZES = 3
"""The position of Resize's sizes."""


@single_output
def channelwise(node: ir.Node, facts: Facts) -> None:
    """Batch and channels pass, and with the channels all operands of one number a channel."""
    shape = facts.sizes.shape(node.outputs[0])
    if shape is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    rank = len(shape)
    for at in (0, -1):
        facts.mix(node, at, range(2, rank), "works across it")
    _tie(node, facts, rank)
    return None


def _tie(node: ir.Node, facts: Facts, rank: int) -> None:
    every = tuple(range(rank))
    terms: list[Term] = [(0, every), (-1, every)]
    for at, value in enumerate(node.inputs[1:], 1):
        constant = facts.constant(value)
        shape = constant.array.shape if constant is not None else facts.sizes.shape(value)
        if shape is not None and len(shape) == 1:
            terms.append((at, (1,)))
    facts.tie(node, terms, rank)


@single_output
def _pool(node: ir.Node, facts: Facts) -> None:
    facts.bend()
    channelwise(node, facts)


@single_output
def _batch_norm(node: ir.Node, facts: Facts) -> None:
    """Every place has its own numbers, so other axes than the channels pass, too."""
    shape = facts.sizes.shape(node.outputs[0])
    facts.bend()
    if shape is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    _tie(node, facts, len(shape))
    return None


@single_output
def _group_norm(node: ir.Node, facts: Facts) -> None:
    """Means over the channels of a group: they stay or go together."""
    shape, groups = facts.sizes.shape(node.outputs[0]), int(attribute(node, "num_groups", 1))
    facts.bend()
    if shape is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    rank = len(shape)
    for at, value in ((0, node.inputs[0]), (-1, node.outputs[0])):
        facts.mix(node, at, range(2, rank), "takes the mean over it")
        labels = facts.labels(value)
        if labels is not None and labels.shape[1] > 1:
            facts.mix_runs(node, labels, 1, groups, "takes the mean over a group")
    every = tuple(range(rank))
    joint = facts.tie(node, [(0, every), (-1, every)], rank)
    if joint is None or joint.shape[1] == 1:
        return None
    units = joint.reshape(groups, -1)
    for at in (1, 2):
        constant = facts.constant(node.inputs[at])
        if constant is None:
            facts.freeze(joint, f"{describe(node)} reads numbers that are not constant")
        else:  # before opset 21 one number a group
            facts.store(node, at, units[:, 0] if constant.array.size == groups else units.reshape(-1))
    return None


def _resize_group_norm(node: ir.Node, cut: Resizing) -> None:
    stays = cut.stays(node.inputs[0], 1)
    if stays is not None:
        groups = stays.reshape(int(attribute(node, "num_groups", 1)), -1)
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", int(groups[:, 0].sum()))


@single_output
def _interpolate(node: ir.Node, facts: Facts) -> None:
    """An axis whose size stays passes."""
    before, after = facts.sizes.shape(node.inputs[0]), facts.sizes.shape(node.outputs[0])
    facts.bend()
    if before is None or after is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    moved = [axis for axis in range(len(after)) if before[axis] != after[axis] or before[axis] is None]
    for at in (0, -1):
        facts.mix(node, at, moved, "works across it")
    every = tuple(range(len(after)))
    facts.tie(node, [(0, every), (-1, every)], len(after))
    return None


def _resize_interpolate(node: ir.Node, cut: Resizing) -> None:
    found = None
    if len(node.inputs) > _SIZES and node.inputs[_SIZES] is not None:
        found = cut.computed(node, _SIZES)
    if found is None:
        return
    sizes = found.copy()
    axes = [int(axis) for axis in attribute(node, "axes", range(len(sizes)))]
    for index, axis in enumerate(axes):
        stays = cut.stays(node.outputs[0], axis % len(cut.shape(node.outputs[0])))
        if stays is not None:
            sizes[index] = stays.sum()
    cut.put(node, _SIZES, sizes)


@single_output
def _depth_to_space(node: ir.Node, facts: Facts) -> None:
    """Channels that become places of one channel go together."""
    shape, block = (
        facts.sizes.shape(node.inputs[0]),
        int(attribute(node, "blocksize", 1)),
    )
    if shape is None or not isinstance(shape[1], int):
        return facts.freeze_all(node, "the shape of its input is not known")
    widens = node.op_type == "DepthToSpace"
    channels = shape[1] // (block * block) if widens else shape[1]
    first = not widens or str(attribute(node, "mode", "DCR")) == "DCR"
    deep, flat = (0, -1) if widens else (-1, 0)
    for at in (0, -1):
        facts.mix(node, at, (2, 3), "works across it")
    order = np.arange(channels * block * block).reshape(
        (block * block, channels) if first else (channels, block * block)
    )
    by_channel = order if first else order.T
    for places in by_channel:
        facts.spread_places(node, deep, flat, 1, places, np.arange(channels))
    return None


RULES: dict[Operator, OperatorRule] = {
    **{("", name): OperatorRule(channelwise) for name in AVERAGES},
    **{("", name): OperatorRule(_pool) for name in POOLS},
    ("", "BatchNormalization"): OperatorRule(_batch_norm),
    ("", "GroupNormalization"): OperatorRule(_group_norm, _resize_group_norm),
    **{("", name): OperatorRule(_interpolate, _resize_interpolate) for name in ("Resize", "Upsample")},
    **{("", name): OperatorRule(_depth_to_space) for name in ("DepthToSpace", "SpaceToDepth")},
}
