"""Operators that move whole axes or pick places along one: no number is computed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.facts import Facts, Term, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules.rule import Operator, OperatorRule
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute


def _transpose(node: ir.Node, facts: Facts) -> None:
    shape = facts.shape(node, 0)
    if shape is None:
        return facts.freeze_all(node, "the shape of its input is not known")
    rank = len(shape)
    perm = tuple(int(axis) for axis in attribute(node, "perm", tuple(reversed(range(rank)))))
    facts.tie(node, [(0, tuple(range(rank))), (-1, perm)], rank)
    return None


def _squeeze(node: ir.Node, facts: Facts) -> None:
    """Squeeze and Unsqueeze: axes of size 1 come or go."""
    before, after = facts.shape(node, 0), facts.shape(node, -1)
    if before is None or after is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    longer = max(len(before), len(after))
    axes = attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1:
        axes = facts.integers(node.inputs[1])
    if axes is None:
        axes = [axis for axis, size in enumerate(before) if size == 1]
    ones = {int(axis) % longer for axis in axes}
    kept = tuple(axis for axis in range(longer) if axis not in ones)
    every = tuple(range(longer))
    own = {len(kept): kept, longer: every}
    if len(before) not in own or len(after) not in own:
        return facts.freeze_all(node, "its axes are not known")
    facts.tie(node, [(0, own[len(before)]), (-1, own[len(after)])], longer)
    return None


def _concat(node: ir.Node, facts: Facts) -> None:
    shape = facts.shape(node, -1)
    if shape is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    axis = int(attribute(node, "axis", 0)) % len(shape)
    if not _differ(node, axis, facts):
        every = tuple(range(len(shape)))
        facts.tie(node, [*((at, every) for at in range(len(node.inputs))), (-1, every)], len(shape))
        return None
    begin = 0
    for at in range(len(node.inputs)):
        size = facts.size(node, at, axis)
        if size is None:
            return facts.freeze_all(node, "a size of its operands is not known")
        facts.spread_places(node, at, -1, axis, np.arange(size), np.arange(begin, begin + size))
        begin += size
    return None


def _split(node: ir.Node, facts: Facts) -> None:
    shape = facts.shape(node, 0)
    if shape is None:
        return facts.freeze_all(node, "the shape of its input is not known")
    axis = int(attribute(node, "axis", 0)) % len(shape)
    if not _differ(node, axis, facts):
        every = tuple(range(len(shape)))
        terms: list[Term] = [(-1 - at, every) for at in range(len(node.outputs))]
        facts.tie(node, [(0, every), *terms], len(shape))
        return None
    begin = 0
    for at in range(len(node.outputs)):
        size = facts.size(node, -1 - at, axis)
        if size is None:
            return facts.freeze_all(node, "a size of its outputs is not known")
        facts.spread_places(node, 0, -1 - at, axis, np.arange(begin, begin + size), np.arange(size))
        begin += size
    return None


def _resize_split(node: ir.Node, cut: Resizing) -> None:
    rank = len(cut.shape(node.inputs[0]))
    axis = int(attribute(node, "axis", 0)) % rank
    sizes = [cut.size(output, axis) for output in node.outputs]
    if all(cut.stays(output, axis) is None for output in node.outputs):
        return
    if "split" in node.attributes or cut.opset < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.attributes.pop("num_outputs", None)
    cut.put(node, 1, np.array(sizes, np.int64))


def _slice(node: ir.Node, facts: Facts) -> None:
    shape, bounds = facts.shape(node, 0), _bounds(node, facts)
    if shape is None or bounds is None:
        return facts.freeze_all(node, "where it cuts is not known")
    rank = len(shape)
    active = [axis % rank for axis in bounds if _differ(node, axis % rank, facts)]
    if not active:
        every = tuple(range(rank))
        facts.tie(node, [(0, every), (-1, every)], rank)
        return None
    size, bound = shape[active[0]], {a % rank: b for a, b in bounds.items()}[active[0]]
    if len(active) > 1 or bound is None or not isinstance(size, int) or bound.step not in (None, 1):
        return facts.freeze_all(node, "it takes some of them in steps")
    picked = np.arange(size)[bound]
    facts.spread_places(node, 0, -1, active[0], picked, np.arange(picked.size))
    return None


def _bounds(node: ir.Node, facts: Facts) -> dict[int, slice | None] | None:
    """What is taken of each axis, None where that is computed; None where the axes are."""
    if "starts" in node.attributes:
        starts, ends = list(attribute(node, "starts", ())), list(attribute(node, "ends", ()))
        axes, steps = list(attribute(node, "axes", range(len(starts)))), [1] * len(starts)
        return {
            int(a): slice(int(b), int(e), int(s))
            for a, b, e, s in zip(axes, starts, ends, steps, strict=True)
        }
    given = [facts.integers(value) if value is not None else None for value in node.inputs[1:]]
    given += [None] * (4 - len(given))
    present = [len(node.inputs) > at and node.inputs[at] is not None for at in (3, 4)]
    if present[0] and given[2] is None:
        return None
    counts = [len(found) for found in given if found is not None]
    if not counts:
        return None
    axes = given[2] if given[2] is not None else list(range(counts[0]))
    if given[0] is None or given[1] is None or (present[1] and given[3] is None):
        return dict.fromkeys(axes)
    steps = given[3] if given[3] is not None else [1] * len(axes)
    found: dict[int, slice | None] = {}
    for axis, begin, end, step in zip(axes, given[0], given[1], steps, strict=True):
        found[axis] = slice(begin, end, step)
    return found


def _resize_slice(node: ir.Node, cut: Resizing) -> None:
    shape = cut.shape(node.inputs[0])
    if "starts" in node.attributes:
        starts, ends = (np.array(attribute(node, name, ())) for name in ("starts", "ends"))
        axes = np.array(attribute(node, "axes", range(len(starts))))
    else:
        starts, ends = cut.constant(node, 1).copy(), cut.constant(node, 2).copy()
        given = len(node.inputs) > 3 and node.inputs[3] is not None
        axes = cut.constant(node, 3) if given else np.arange(len(starts))
    for index, axis in enumerate(axes.tolist()):
        stays = cut.stays(node.inputs[0], axis % len(shape))
        if stays is not None:
            begin, end, _ = slice(int(starts[index]), int(ends[index])).indices(stays.size)
            starts[index] = stays[:begin].sum()
            ends[index] = starts[index] + stays[begin:end].sum()
    if "starts" in node.attributes:
        node.attributes["starts"] = ir.AttrInt64s("starts", starts.tolist())
        node.attributes["ends"] = ir.AttrInt64s("ends", ends.tolist())
    else:
        cut.put(node, 1, starts)
        cut.put(node, 2, ends)


def _gather(node: ir.Node, facts: Facts) -> None:
    data, out = facts.shape(node, 0), facts.shape(node, -1)
    if data is None or out is None:
        return facts.freeze_all(node, "the shape of its output is not known")
    axis = int(attribute(node, "axis", 0)) % len(data)
    extra = len(out) - len(data)
    own = tuple(k if k < axis else k + extra for k in range(len(data)) if k != axis)
    found = facts.constant(node.inputs[1])
    labels = facts.labels(node.inputs[0])
    along = labels is not None and labels.shape[axis] > 1
    picked = facts.labels(node.outputs[0])
    along = along or (extra == 0 and picked is not None and picked.shape[axis] > 1)
    if not along:
        # The places picked are an axis of the output of their own.
        rank = len(out) + 1
        terms: list[Term] = [(0, (*own[:axis], rank - 1, *own[axis:])), (-1, tuple(range(len(out))))]
        joint = facts.tie(node, terms, rank)
        wide = set(range(len(out))) - set(own)
        if joint is not None and wide & set(of.varies(joint)):
            facts.freeze(joint, f"{describe(node)} picks by indices")
        return None
    if found is None or found.array.ndim > 1:
        return facts.freeze_all(node, "what it picks is not known")
    size = data[axis]
    if not isinstance(size, int):
        return facts.freeze_all(node, "a size of its operand is not known")
    places = found.array.reshape(-1) % size
    facts.spread_places(node, 0, -1, axis, places, np.arange(places.size), drops=found.array.ndim == 0)
    return None


def _resize_gather(node: ir.Node, cut: Resizing) -> None:
    data = node.inputs[0]
    axis = int(attribute(node, "axis", 0)) % len(cut.shape(node.inputs[0]))
    stays = cut.stays(data, axis)
    if stays is None:
        return
    indices = cut.constant(node, 1)
    wanted = indices % stays.size
    cut.put(node, 1, (np.cumsum(stays) - 1)[wanted[stays[wanted]]].astype(indices.dtype))


def _pad(node: ir.Node, facts: Facts) -> None:
    shape, pads = facts.shape(node, 0), _pads(node, facts)
    if shape is None or pads is None:
        return facts.freeze_all(node, "how much it pads is not known")
    rank = len(shape)
    active = [axis for axis in range(rank) if any(pads.get(axis, (0, 0))) and _differ(node, axis, facts)]
    if not active:
        every = tuple(range(rank))
        facts.tie(node, [(0, every), (-1, every)], rank)
        return None
    mode = attribute(node, "mode", "constant")
    size = shape[active[0]]
    if len(active) > 1 or str(mode) != "constant" or not isinstance(size, int):
        return facts.freeze_all(node, "it pads with some of them")
    begin, end = pads[active[0]]
    inside = np.arange(max(0, -begin), size - max(0, -end))
    facts.spread_places(node, 0, -1, active[0], inside, inside + begin)
    return None


def _pads(node: ir.Node, facts: Facts) -> dict[int, tuple[int, int]] | None:
    given = attribute(node, "pads", None)
    if given is None and len(node.inputs) > 1:
        given = facts.integers(node.inputs[1])
    if given is None:
        return None
    half = len(given) // 2
    axes: list[int] | None = list(range(half))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = facts.integers(node.inputs[3])
    rank = len(facts.shape(node, 0) or ())
    if axes is None or not rank:
        return None
    return {axis % rank: (int(given[k]), int(given[half + k])) for k, axis in enumerate(axes)}


def _resize_pad(node: ir.Node, cut: Resizing) -> None:
    rank = len(cut.shape(node.inputs[0]))
    by_attribute = "pads" in node.attributes
    pads = np.array(attribute(node, "pads", ())) if by_attribute else cut.constant(node, 1).copy()
    axes = np.arange(rank)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = cut.constant(node, 3) % rank
    for index, axis in enumerate(axes.tolist()):
        for side, at in ((0, index), (1, index + len(axes))):
            count = int(pads[at])
            value = node.outputs[0] if count > 0 else node.inputs[0]
            stays = cut.stays(value, axis)
            if stays is not None and count:
                edge = stays[: abs(count)] if side == 0 else stays[-abs(count) :]
                pads[at] = int(np.sign(count)) * int(edge.sum())
    if by_attribute:
        node.attributes["pads"] = ir.AttrInt64s("pads", pads.tolist())
    else:
        cut.put(node, 1, pads)


def _tile(node: ir.Node, facts: Facts) -> None:
    shape, repeats = facts.shape(node, 0), facts.integers(node.inputs[1]) if len(node.inputs) == 2 else None
    if shape is None or repeats is None:
        return facts.freeze_all(node, "how often it repeats is not known")
    every = tuple(range(len(shape)))
    active = [axis for axis in every if repeats[axis] != 1 and _differ(node, axis, facts)]
    if not active:
        facts.tie(node, [(0, every), (-1, every)], len(shape))
        return None
    size = shape[active[0]]
    if len(active) > 1 or not isinstance(size, int):
        return facts.freeze_all(node, "it repeats along several axes")
    places: Array = np.tile(np.arange(size), repeats[active[0]])
    facts.spread_places(node, 0, -1, active[0], places, np.arange(places.size))
    return None


def _differ(node: ir.Node, axis: int, facts: Facts) -> bool:
    """Whether units differ along the axis of an operand or output."""
    found = [facts.labels(value) for value in (*node.inputs, *node.outputs)]
    return any(labels is not None and axis < labels.ndim and labels.shape[axis] > 1 for labels in found)


def _measure(node: ir.Node, facts: Facts) -> None:
    """Shape gives out no places; what its numbers are for is judged at the end (channels/measured.py)."""


RULES: dict[Operator, OperatorRule] = {
    ("", "Shape"): OperatorRule(_measure),
    ("", "Transpose"): OperatorRule(_transpose),
    ("", "Squeeze"): OperatorRule(_squeeze),
    ("", "Unsqueeze"): OperatorRule(_squeeze),
    ("", "Concat"): OperatorRule(_concat),
    ("", "Split"): OperatorRule(_split, _resize_split),
    ("", "Slice"): OperatorRule(_slice, _resize_slice),
    ("", "Gather"): OperatorRule(_gather, _resize_gather),
    ("", "Pad"): OperatorRule(_pad, _resize_pad),
    ("", "Tile"): OperatorRule(_tile),
}
