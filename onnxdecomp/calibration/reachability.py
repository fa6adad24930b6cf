"""Reach: what calibration inputs come to at all.

A branch of an If may never be taken, an expert get no rows, a cache be empty. Such a layer costs nothing on
these inputs, whatever is done to it, and its values have no range. ONNX Runtime's trace of its kernels tells
which nodes ran, in all graphs, and the shapes of what they were given.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.attributes import dims
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime import session, temporary_files
from onnxdecomp.runtime.session import Feed
from onnxdecomp.runtime.shared_weights import share_weights

_GROWTH = 8
"""Each look is at so many times as many batches as the one before: most models need only the first."""

_EVENTS = 500_000
"""Kernels of one look; ONNX Runtime's trace ends after a million."""

UNREACHED = "no calibration input reaches it"
"""Why a layer is kept."""

_Entries: TypeAlias = Sequence[Mapping[str, Sequence[int]]]
"""Of each input or output that is there, its shape by its type."""

_NAME = re.compile(r'"name" *: *"[^"]*?onnxdecomp_reach_(\d+)_[^"]*?_kernel_time"')


def unreached(model: ir.Model, matched: Sequence[LayerMatch], feeds: Feeds, *, batch: int = 1) -> list[bool]:
    """Of each layer, whether no input brings numbers to it.

    Args:
        model: The layers' model; it stays as it is.
        matched: The layers.
        feeds: The inputs.
        batch: Feeds stacked for one run.
    """
    sizes, empty = _input_sizes(model), _has_empty(feeds)
    open_ones = [match for match in matched if empty or match.place.path or not _sized(match.x, sizes)]
    wanted = {match.nodes[0]: place_of(match) for match in open_ones}
    idle = wanted.keys() - reached(model, wanted, feeds, batch=batch)
    return [match.nodes[0] in idle for match in matched]


def reached(
    model: ir.Model, wanted: Mapping[ir.Node, int | None], feeds: Feeds, *, batch: int = 1
) -> set[ir.Node]:
    """The nodes that have numbers to work on for at least one of the inputs.

    Args:
        model: It stays as it is.
        wanted: Nodes of any graph, each with the place among the inputs that it has of the one that is to
            hold numbers; None asks that all outputs do.
        feeds: The inputs.
        batch: Feeds stacked for one run.

    Returns:
        Those; all of them where ONNX Runtime keeps no trace of the model, and those of the main graph, where
        every node runs, that it has no trace of: Constant, or what it writes in other operators.
    """
    found: set[ir.Node] = set()
    ran: set[ir.Node] = set()
    if not wanted:
        return found
    copy, numbers = _numbered(model, wanted)
    nodes = {number: node for node, number in numbers.items()}
    most = max(1, _EVENTS // max(1, sum(1 for place in places(model) for _ in place.graph)))
    weights = share_weights(copy)
    content = ir.to_proto(copy).SerializeToString()
    batches, size = feeds.batches(batch), 1
    try:
        while found < wanted.keys() and (group := _take(batches, min(size, most))):
            for number, *entries in _trace(content, weights, group):
                ran.add(nodes[number])
                at = wanted[nodes[number]]
                given, made = map(_full, entries)
                if all(made) if at is None else at < len(given) and given[at]:
                    found.add(nodes[number])
            size *= _GROWTH
    except ModelError:
        return set(wanted)
    return found | {node for node in wanted if node.graph is model.graph and node not in ran}


def shapes_read(model: ir.Model, wanted: Mapping[ir.Node, int], feed: Feed) -> dict[ir.Node, tuple[int, ...]]:
    """The shape of one input of each node in a run on one feed, the largest of several that it had.

    Args:
        model: It stays as it is.
        wanted: Nodes of any graph, each with the place among the inputs that it has.
        feed: The inputs.

    Returns:
        Without nodes that did not run, or that ONNX Runtime keeps no trace of.

    Raises:
        ModelError: The model does not run on the feed.
    """
    copy, numbers = _numbered(model, wanted)
    nodes = {number: node for node, number in numbers.items()}
    found: dict[ir.Node, tuple[int, ...]] = {}
    weights = share_weights(copy)
    for number, given, _ in _trace(ir.to_proto(copy).SerializeToString(), weights, [feed]):
        node = nodes[number]
        if wanted[node] >= len(given) or len(given[wanted[node]]) != 1:
            continue
        (shape,) = (tuple(sizes) for sizes in given[wanted[node]].values())
        if node not in found or math.prod(shape) > math.prod(found[node]):
            found[node] = shape
    return found


def place_of(match: LayerMatch) -> int:
    """The activation's place among the inputs that the layer's first node has."""
    return _present(match.nodes[0]).index(match.operand)


def valueless(model: ir.Model, feeds: Feeds) -> set[str]:
    """The outputs of the main graph's nodes that read or make a value which no input brings numbers to.

    Args:
        model: It stays as it is.
        feeds: The inputs.
    """
    sizes = _input_sizes(model)
    bare = {
        value
        for value in model.graph.inputs
        if all(0 in shape.get(str(value.name), ()) for shape in feeds.shapes())
    }
    open_ones = [
        node for node in model.graph if not all(_sized(out, sizes) for out in node.outputs if out.name)
    ]
    wanted = dict.fromkeys(model.graph if _has_empty(feeds) else open_ones)
    for node in wanted.keys() - reached(model, wanted, feeds):
        bare.update(node.outputs)
    idle = (node for node in model.graph if bare & {*node.inputs, *node.outputs})
    return {str(out.name) for node in idle for out in node.outputs if out.name}


def _input_sizes(model: ir.Model) -> set[str]:
    return {dim for value in model.graph.inputs for dim in dims(value) or () if isinstance(dim, str)}


def _has_empty(feeds: Feeds) -> bool:
    return any(0 in shape for shapes in feeds.shapes() for shape in shapes.values())


def _sized(value: ir.Value, sizes: Collection[str]) -> bool:
    """Whether the value's shape says that it holds numbers, given inputs that do."""
    shape = dims(value)
    return shape is not None and all(isinstance(dim, int) or dim in sizes for dim in shape)


def _present(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _numbered(model: ir.Model, wanted: Collection[ir.Node]) -> tuple[ir.Model, dict[ir.Node, int]]:
    """A copy whose wanted nodes have names that are told apart in a trace, and their numbers."""
    copy = model.clone()
    numbers: dict[ir.Node, int] = {}
    for here, there in zip(places(model), places(copy), strict=True):
        for node, own in zip(here.graph, there.graph, strict=True):
            if node in wanted:
                numbers[node] = len(numbers)
                own.name = f"onnxdecomp_reach_{numbers[node]}_"
    return copy, numbers


def _take(batches: Iterator[Feed], count: int) -> list[Feed]:
    return [feed for feed, _ in zip(batches, range(count), strict=False)]


def _trace(
    content: bytes, weights: Mapping[str, Array], feeds: Sequence[Feed]
) -> Iterator[tuple[int, _Entries, _Entries]]:
    """Of every run of a numbered node: its number, and the shapes of its inputs and outputs."""
    with temporary_files.folder() as folder:
        opened = session.open_session(
            content,
            integers=False,
            idling="sleep",
            low_memory=True,
            weights=weights,
            optimize=False,
            profile=folder / "trace",
        )
        names = {spec.name for spec in session.inputs_of(opened)}
        for feed in feeds:
            session.run(opened, {name: array for name, array in feed.items() if name in names})
        with Path(opened.end_profiling()).open(encoding="utf-8") as lines:
            for line in lines:
                if (named := _NAME.search(line)) is not None:
                    facts = json.loads(line.strip().rstrip(",")).get("args", {})
                    given, made = (facts.get(f"{way}put_type_shape", []) for way in ("in", "out"))
                    yield int(named[1]), given, made


def _full(entries: _Entries) -> list[bool]:
    return [all(0 not in shape for shape in entry.values()) for entry in entries]
