"""Latency for the survey: what each layer takes of its model, and what it would take as a chain."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxdecomp.graph.save import save
from onnxdecomp.latency.cache import cache_file
from onnxdecomp.latency.measure import Request, time_chains
from onnxdecomp.latency.neighbours import neighbours
from onnxdecomp.latency.predict import part_of_whole
from onnxdecomp.latency.shapes import input_shapes
from onnxdecomp.latency.shares import shares
from onnxdecomp.plan.candidates import Outline
from onnxdecomp.plan.plan import dense_chain
from onnxdecomp.runtime.session import Feed
from onnxdecomp.sites.base import Site


@dataclass(frozen=True)
class Timed:
    """Shares of the original model's latency.

    Attributes:
        parts: By the layer's place in the list of sites: its own share, and that of each outline.
        whole_ms: The original's latency, simplified and with all layers dense.
    """

    parts: Mapping[int, tuple[float, tuple[float, ...]]]
    whole_ms: float


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """How latency is measured.

    Attributes:
        feed: One input of the model: its shapes are those that count.
        provider, threads: Where.
        cached: Use and add to the timings on this machine's disk.
        seconds: About the time to take for the chains.
        note: Called with what a user should know.
    """

    feed: Feed
    provider: str = "cpu"
    threads: int = 1
    cached: bool = True
    seconds: float = 20.0
    note: Callable[[str], object] | None = None

    def time(self, model: ir.Model, sites: Sequence[Site], options: Sequence[Sequence[Outline]]) -> Timed:
        """Time the outlines of each site, in turns with the layer itself.

        Raises:
            ModelError: The model does not run on the feed.
            ProviderError: The provider did not start.
        """
        shapes = input_shapes(model, {name: array.shape for name, array in self.feed.items()})
        dense = [
            Request(s.layer, dense_chain(s.layer), shapes[s.layer.graph, s.layer.name], around)
            for s, around in zip(sites, neighbours(sites), strict=True)
        ]
        asked = [
            Request(request.layer, option.chain, request.input_shape, request.around)
            for request, own in zip(dense, options, strict=True)
            for option in own
        ]
        cache: Path | None = cache_file() if self.cached else None
        timings = iter(
            time_chains(
                asked,
                provider=self.provider,
                threads=self.threads,
                cache=cache,
                seconds=self.seconds,
                note=self.note,
            )
        )
        with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path)
            whole = shares(path, self.feed, dense, provider=self.provider, threads=self.threads)
        parts = {}
        for index, (own, share) in enumerate(zip(options, whole.layers, strict=True)):
            taken = [next(timings) for _ in own]
            if share.part > 0 and own and not any(timing.reason for timing in taken):
                parts[index] = (share.part, tuple(part_of_whole(share, timing) for timing in taken))
        return Timed(parts, whole.whole_ms)
