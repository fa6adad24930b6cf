"""A window of activations: what a model has computed of all calibration inputs, up to where it still changes.

Layers are fitted in graph order. Computing the whole prefix of each anew would take as long as the square of
the depth; so the values at a cut through the graph are held, and each look computes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import Observer, open_observer
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.graph.traversal import node_graphs, operands, upstream
from onnxdecomp.runtime.memory_budget import KEPT
from onnxdecomp.runtime.session import Feed

HELD = KEPT
"""Bytes of activations that a lone window holds. A cut that takes more is not moved to: the old one stays."""


class Window:
    """Values inside a model's main graph, for all inputs, batch by batch.

    The model may change between two looks, by nodes that the look before was told of as pending: nothing
    that depends on them is held. Values that are pinned, one set for each batch, are never computed.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Feeds,
        *,
        batch: int,
        provider: str = "cpu",
        threads: int = 0,
        held: int = HELD,
        pins: Sequence[Feed] = (),
    ) -> None:
        self._pins = pins
        self._model, self._feeds, self._batch = model, feeds, batch
        self._provider, self._threads, self._most = provider, threads, held
        self._held: list[dict[ir.Value, Array]] = []
        self._known: tuple[ir.Value, ...] = ()
        self._done: set[ir.Node] = set()
        self.moves: list[tuple[str, ...]] = []
        """The names that it was asked for, one look after the other."""

    def advance(self, names: Sequence[str], pending: Collection[ir.Node] = ()) -> Iterator[list[Array]]:
        """The values of these names for each batch of the inputs, and the cut moved up to them.

        Args:
            names: Of values of the main graph, inputs among them.
            pending: Nodes that will be replaced or get other weights, in any graph.

        Raises:
            KeyError: The main graph has no such value.
            ModelError: ONNX Runtime fails on the model.
        """
        self.moves.append(tuple(names))
        graph = self._model.graph
        values = {str(value.name): value for value in graph.inputs}
        values |= {str(out.name): out for node in graph for out in node.outputs if out.name}
        wanted = [values[name] for name in names]
        done = self._done | (upstream(graph, wanted, self._known) - self._affected(pending))
        cut = self._cut(done)
        missing = [v for v in dict.fromkeys((*wanted, *cut)) if v not in self._known]
        observer = self._open(missing)
        window: list[dict[ir.Value, Array]] | None = []
        size = 0
        whole = True  # of what is held nothing was let go of yet
        try:
            for index, feed in enumerate(self._batches(observer)):
                have = dict(self._held[index]) if self._known else {}
                if observer is not None:
                    before = {str(value.name): array for value, array in have.items()} | self._pinned(index)
                    have |= zip(missing, observer.run(feed | before), strict=True)
                yield [have[value] for value in wanted]
                if window is not None and not all(isinstance(have[value], np.ndarray) for value in cut):
                    window = None  # a sequence is not held
                if window is not None:
                    window.append({value: have[value] for value in cut})
                    size += sum(have[value].nbytes for value in cut)
                    if max(size, size * self._ahead(index)) > self._most:
                        window = None
                    elif self._known:  # the old cut and the new one are not held both
                        self._held[index], whole = {}, False
            if window is not None:
                self._held, self._known, self._done = window, cut, done
                whole = True
        finally:
            if not whole:  # from the inputs again
                self._held, self._known, self._done = [], (), set()

    def _ahead(self, index: int) -> float:
        """All inputs over those of the batches up to this one, where all are stacked alike."""
        each = self._batch if self._feeds.stackable else 1
        return max(1.0, len(self._feeds) / ((index + 1) * each))

    def counterparts(self, nodes: Collection[ir.Node]) -> set[ir.Node]:
        """The main graph's nodes that give values of the names that these nodes of another model give.

        Pending in a model that is rewritten, they are still to be looked at in the original: a cut beyond
        them would have it computed from its inputs again, look after look.
        """
        names = {out.name for node in nodes for out in node.outputs if out.name}
        return {node for node in self._model.graph if any(out.name in names for out in node.outputs)}

    def held(self) -> list[dict[str, Array]]:
        """The values at the cut, by name for each batch; empty where none are held."""
        return [{str(v.name): array for v, array in have.items()} for have in self._held if have]

    def _affected(self, pending: Collection[ir.Node]) -> set[ir.Node]:
        """The main graph's nodes that are pending, or compute with what pending ones give."""
        graph = self._model.graph
        nested = any(node.graph is not graph for node in pending)
        found: set[ir.Node] = set()
        for node in graph:
            holds = any(node_graphs(node)) or node.op_identifier() in self._model.functions
            after = any(value.producer() in found for value in operands(node))
            if node in pending or after or (nested and holds):
                found.add(node)
        return found

    def _cut(self, done: set[ir.Node]) -> tuple[ir.Value, ...]:
        """What nodes that are still to be computed read of those that are done."""
        ahead = (node for node in self._model.graph if node not in done)
        return tuple(dict.fromkeys(v for node in ahead for v in operands(node) if v.producer() in done))

    def _open(self, missing: Sequence[ir.Value]) -> Observer | None:
        if not missing:
            return None
        known: Feed = {str(v.name): a for v, a in self._held[0].items()} if self._known else {}
        known = known | self._pinned(0)
        names = [str(value.name) for value in missing]
        return open_observer(self._model, names, provider=self._provider, threads=self._threads, known=known)

    def _pinned(self, index: int) -> Feed:
        return dict(self._pins[index]) if self._pins else {}

    def _batches(self, observer: Observer | None) -> Iterator[dict[str, Array]]:
        """The inputs where they are needed, else as many empty feeds as batches are held."""
        inputs = {str(value.name) for value in self._model.graph.inputs}
        if self._known and (observer is None or not observer.inputs & inputs):
            yield from ({} for _ in self._held)
        else:
            yield from self._feeds.batches(self._batch)


@dataclass(frozen=True, eq=False)
class Moved:
    """A window with the nodes that are pending, to be moved as it was in an earlier run (see `Journal`)."""

    window: Window
    pending: Collection[ir.Node]

    @property
    def moves(self) -> list[tuple[str, ...]]:
        """What it was asked for."""
        return self.window.moves

    def move(self, names: Sequence[str]) -> None:
        """Look at these, and need nothing of them."""
        for _ in self.window.advance(names, self.pending):
            pass
