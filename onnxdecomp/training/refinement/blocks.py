"""Blocks: stretches of a compressed model that end in values which the original has, too."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.graph.traversal import operands
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.training.refinement.values import follows


@dataclass(frozen=True)
class Block:
    """A stretch of the main graph.

    Attributes:
        enters: Names of the values at its beginning that differ from the original's; () of the first block.
        leaves: Names of those at its end, and of the model's outputs that it makes.
        weights: Names of the initializers that only its nodes read, and that are to be refined.
        layers: Names of the rewritten layers in it.
        hints: Names of values inside it that are compared too.
    """

    enters: tuple[str, ...]
    leaves: tuple[str, ...]
    weights: tuple[str, ...]
    layers: tuple[str, ...]
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Cut:
    """A place in a graph: so many nodes are before it, and these values go on from there."""

    position: int
    live: tuple[str, ...]


def blocks(graph: ir.Graph, reference: ir.Graph, weights: Collection[str], layers: int) -> tuple[Block, ...]:
    """The blocks of a graph, in order.

    A block ends where one value separates what is before from what comes after: behind a residual block of a
    convolutional network, behind attention and behind the layers after it in a transformer. Where there is no
    such place for long it ends where the fewest values pass, all of them values of the original.

    Args:
        graph: Of the compressed model.
        reference: Of the original.
        weights: Names of the initializers to refine.
        layers: Rewritten layers that a block should have: twice as many at most, if the graph allows it.
    """
    nodes = list(graph)
    own = {graph.initializers[name] for name in weights}
    views = _views(nodes, own)
    changed = _downstream(nodes, own | views)
    readers = {value: _readers(value, views) for value in own}
    place = {node: position for position, node in enumerate(nodes)}
    reached = [place[node] for found in readers.values() for node in found if node in place]
    if not reached:
        return ()
    named = [(place[node], _layer(node)) for found in readers.values() for node in found if node in place]
    first: dict[str, int] = {}
    for position, name in sorted(named):
        first.setdefault(name, position)
    first.pop("", None)
    starts = sorted(first.values())
    cuts = list(_cuts(nodes, changed, reference))
    ends = _ends(cuts, starts, max(reached), layers, len(nodes))
    found: list[Block] = []
    begin, enters = 0, tuple[str, ...]()
    made_at = {value: position for position, node in enumerate(nodes) for value in node.outputs}
    outputs = [value for value in graph.outputs if value in changed]
    for end in ends:
        made = [str(value.name) for value in outputs if begin <= made_at[value] < end.position]
        inside = [
            str(value.name)
            for value in own
            if readers[value] and all(begin <= place.get(node, -1) < end.position for node in readers[value])
        ]
        names = [name for name, position in first.items() if begin <= position < end.position]
        leaves = tuple(dict.fromkeys((*end.live, *made)))
        hints = () if end.live else _inside(cuts, starts, begin)
        found.append(Block(enters, leaves, tuple(sorted(inside)), tuple(names), hints))
        begin, enters = end.position, end.live
    return tuple(found)


def _ends(cuts: Sequence[_Cut], starts: Sequence[int], last: int, layers: int, total: int) -> list[_Cut]:
    """Where blocks end: the last one at the end of the graph."""

    def held(begin: int, end: int) -> int:
        return bisect_left(starts, end) - bisect_left(starts, begin)

    found: list[_Cut] = []
    begin = 0
    ahead = [cut for cut in cuts if cut.position <= last]
    while True:
        ahead = [cut for cut in ahead if cut.position > begin and held(begin, cut.position) >= layers]
        near = [cut for cut in ahead if held(begin, cut.position) <= 2 * layers] or ahead[:1]
        # Of places with no layer between them the last: what works element by element belongs to its layer.
        chosen = min(
            near, key=lambda cut: (len(cut.live), held(begin, cut.position), -cut.position), default=None
        )
        short = held(begin, total) <= 2 * layers and chosen is not None and len(chosen.live) > 1
        if chosen is None or short or 2 * held(chosen.position, total) < layers:
            return [*found, _Cut(total, ())]
        found.append(chosen)
        begin = chosen.position


def _inside(cuts: Sequence[_Cut], starts: Sequence[int], begin: int) -> tuple[str, ...]:
    """Values inside the last block, one behind each layer: outputs may be few numbers, as scores are."""
    found: dict[int, str] = {}
    for cut in cuts:
        behind = bisect_left(starts, cut.position) - bisect_left(starts, begin)
        if cut.position > begin and behind and len(cut.live) == 1:
            found.setdefault(behind, cut.live[0])
    return tuple(found.values())


def _cuts(nodes: Sequence[ir.Node], changed: Collection[ir.Value], reference: ir.Graph) -> Iterator[_Cut]:
    """The places where all that is changed and goes on is a value of the original."""
    known = {str(value.name): value for node in reference for value in node.outputs}
    last: dict[ir.Value, int] = {}
    for position, node in enumerate(nodes):
        for value in operands(node):
            last[value] = position
    live: dict[ir.Value, None] = {}
    for position, node in enumerate(nodes):
        live |= dict.fromkeys(v for v in node.outputs if v in changed and last.get(v, -1) > position)
        live = {value: None for value in live if last[value] > position}
        if live and all(_counterpart(value, known.get(str(value.name))) for value in live):
            yield _Cut(position + 1, tuple(str(value.name) for value in live))


def _counterpart(value: ir.Value, other: ir.Value | None) -> bool:
    """Whether two values of one name can be compared, as far as shapes are known."""
    if other is None:
        return False
    ours, theirs = value.shape, other.shape
    if ours is None or theirs is None:
        return True
    sizes = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(
        a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int)
    )


def _views(nodes: Sequence[ir.Node], own: Collection[ir.Value]) -> set[ir.Value]:
    """Values that are made of weights to refine and of constants alone."""
    found: set[ir.Value] = set()
    constant: set[ir.Value] = set()
    for node in nodes:
        read = list(operands(node))
        still = [v for v in read if not (v in own or v in found or v in constant or v.is_initializer())]
        if not still:
            (found if any(v in own or v in found for v in read) else constant).update(node.outputs)
    return found


def _downstream(nodes: Sequence[ir.Node], roots: Collection[ir.Value]) -> set[ir.Value]:
    """What depends on some values, without these."""
    found: set[ir.Value] = set()
    for node in nodes:
        if follows(node, roots) or follows(node, found):
            found.update(out for out in node.outputs if out not in roots)
    return found


def _readers(value: ir.Value, views: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes that read a weight, directly or through views."""
    found: list[ir.Node] = []
    todo = [value]
    for one in todo:  # grows
        for node, _ in one.uses():
            if node.outputs and node.outputs[0] in views:
                todo += node.outputs
            else:
                found.append(node)
    return found


def _layer(node: ir.Node) -> str:
    return node.metadata_props.get(LAYER, "")
