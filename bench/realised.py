"""The realised share: what part of the time that fewer MACs could save was saved.

Let the rewritten layers take the shares s of the simplified, dense model's latency (each measured as
`onnxdecomp.latency.layer_shares` does), and let their MACs fall to the fractions f. If their time fell in
proportion, the model would save the share sum(s (1 - f)) of its latency. It was measured to save
1 - new / dense, the two interleaved. The realised share is the second over the first: 1 where time falls as
MACs do, 0 where nothing is gained. What the simplifier gains does not count, for the dense model has it too;
nor does what the layers take that stay.

It is unknown where a rewritten layer cannot be timed alone (the input projection of a recurrent operator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import Shape
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.latency.context import neighbours
from onnxdecomp.latency.layer_shares import shares
from onnxdecomp.latency.measure import Request
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.runtime.session import Feed
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.search.plan import Choice, Plan

Key: TypeAlias = tuple[str, str]
"""Graph and layer."""


@dataclass(frozen=True, eq=False)
class Dense:
    """The simplified model with all layers dense, at the sizes of one feed.

    Attributes:
        model: Simplified and normalised.
        feed: Its inputs.
    """

    model: ir.Model
    feed: Feed

    @cached_property
    def matched(self) -> tuple[LayerMatch, ...]:
        return tuple(find(self.model, freeze=True)[0])

    @cached_property
    def layers(self) -> dict[Key, Layer]:
        return {(match.layer.graph, match.layer.name): match.layer for match in self.matched}

    @cached_property
    def shapes(self) -> dict[Key, Shape]:
        """Of the layers' activations."""
        return input_shapes(self.model, {name: array.shape for name, array in self.feed.items()})

    def macs(self, choice: Choice) -> int:
        """Multiply-accumulates of a layer under a choice, at its real size."""
        key = (choice.graph, choice.layer)
        return chain_of(choice, self.layers[key]).macs(self.shapes[key])

    def dense_macs(self, choice: Choice) -> int:
        """The same of the layer as it is."""
        key = (choice.graph, choice.layer)
        return dense_chain(self.layers[key]).macs(self.shapes[key])

    def total_macs(self, plan: Plan) -> int:
        """Of all layers that could be read, under a plan; layers that it does not name are dense."""
        changed = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
        return sum(
            self.macs(changed[key]) if key in changed else dense_chain(layer).macs(self.shapes[key])
            for key, layer in self.layers.items()
        )

    def latency_shares(self, path: Path, threads: int) -> dict[Key, float]:
        """The share of its latency that each layer takes; 0 where it cannot be timed alone.

        `path` is the model's file.
        """
        asked = [
            Request(s.layer, dense_chain(s.layer), self.shapes[s.layer.graph, s.layer.name], around)
            for s, around in zip(self.matched, neighbours(self.matched), strict=True)
        ]
        found = shares(path, self.feed, asked, setting=Setting(threads=threads)).layers
        return {key: share.part for key, share in zip(self.layers, found, strict=True)}

    def proportional(self, plan: Plan, parts: Mapping[Key, float]) -> float | None:
        """The latency over the dense model's if that of the rewritten layers fell as their MACs do.

        None where it is unknown, or nothing is rewritten.
        """
        rewritten = [(parts[c.graph, c.layer], c) for c in plan.decomposed]
        if not rewritten or any(part <= 0 for part, _ in rewritten):
            return None
        return 1.0 - sum(part * (1.0 - self.macs(c) / self.dense_macs(c)) for part, c in rewritten)


def simplified(source: Path, target: Path) -> ir.Model:
    """A model simplified and normalised as compress does it, initializers frozen; it is written too."""
    stages = [
        stage
        for stage in configuration.build(None, {"normalise": {"freeze_initializers": True}})
        if stage.name in ("simplify", "normalise")
    ]
    model = pipeline.run(load(source), stages).model
    save(model, target, overwrite=True)
    return model


def chain_of(choice: Choice, layer: Layer) -> Chain:
    """What a choice makes of its layer, without the numbers."""
    if choice.method is None:
        return dense_chain(layer)
    return outline(get(choice.method, **choice.options), layer, choice.ranks)


def realised_share(ratio: float, ideal: float | None) -> float | None:
    """What was saved over what could be: `ratio` is the measured latency over the dense one's, `ideal` the
    `proportional` one.

    None where it is unknown, or nothing could be saved.
    """
    return None if ideal is None or ideal >= 1.0 else (1.0 - ratio) / (1.0 - ideal)
