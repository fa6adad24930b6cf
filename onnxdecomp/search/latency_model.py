"""Latency for the search: what each layer takes of its model, and what it would take as a chain."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.find_channels import find_channel
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.errors import DefectError
from onnxdecomp.evaluate.benchmark import bench_under
from onnxdecomp.graph.save import save
from onnxdecomp.latency.against_float import ratios
from onnxdecomp.latency.as_run import as_run
from onnxdecomp.latency.cache import cache_file
from onnxdecomp.latency.chain_model import filled
from onnxdecomp.latency.context import neighbours
from onnxdecomp.latency.layer_shares import MIN_ROUNDS, Share, shares
from onnxdecomp.latency.measure import Request, Timing, time_chains
from onnxdecomp.latency.predict import part_of_whole
from onnxdecomp.latency.quantum import Blocked, measured_quanta
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter, Trunk
from onnxdecomp.quantization import quantized_roughly
from onnxdecomp.quantization.kinds import INT4, storage_of
from onnxdecomp.quantization.products import products
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.device import device_of
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.session import Feed
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.timing import Ratio
from onnxdecomp.search.candidates import Outline, dense_cost
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.sibling_groups import GroupKey, group_of, members_of
from onnxdecomp.tasks.course import Course
from onnxdecomp.tasks.values import Codec

_HERE = Setting()

_OPENED, _RUNS = 3, 10 + 4 * (MIN_ROUNDS + 1)
"""Times that models of the original's size are opened and run at least where its layers are timed."""

_CHAINS = 200
"""Runs of the original that the fewest rounds of all chains amount to: 193 of a ResNet-50."""

_SLOWER = 1.1
"""What a layer takes over its time in floating point from which on it stays so: as much is noise, or worth it
for a smaller file."""

_SLOWER_IN_4_BITS = 1.5
"""The same where the file is what they are for; the model as a whole must still be faster."""

Parts: TypeAlias = Mapping[int, tuple[float, tuple[float, ...]]]


@dataclass(frozen=True)
class Timed:
    """Shares of the original model's latency.

    Attributes:
        parts: By the layer's place in the list of matches: its own share, and that of each outline; infinite
            for one that could not be timed while others of the layer could.
        whole_ms: The original's latency, simplified, quantized if that is asked for, and with all layers
            dense.
        original_ms: The latency of the original as it came in.
        notes: What could not be timed, and what else a user should know.
        narrower: Of each narrower layer asked for, in their order, its time over the layer's; 1 where
            it could not be timed.
        own: By the layer's place, its share, of those that have narrower ones.
    """

    parts: Parts
    whole_ms: float
    original_ms: float
    notes: tuple[str, ...] = ()
    narrower: tuple[float, ...] = ()
    own: Mapping[int, float] = field(default_factory=dict)


_CODEC = Codec((Timed, Ratio))
_NUMBERS = Codec(())


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """How latency is measured.

    Attributes:
        original: The file that came in.
        feed: One input of the model: its shapes are those that count.
        setting: Where.
        precision: "float", or the kernels that the model is going to be quantized for.
        cached: Use and add to the timings on this machine's disk.
        seconds: About the time to take for the chains.
        course: Keeps what was timed of models of just this one; None where nothing is kept.
    """

    original: Path
    feed: Feed
    setting: Setting = _HERE
    precision: str = "float"
    cached: bool = True
    seconds: float = 20.0
    course: Course | None = None

    def time(
        self,
        model: ir.Model,
        matched: Sequence[LayerMatch],
        options: Sequence[Sequence[Outline]],
        narrower: Sequence[tuple[int, Layer]] = (),
    ) -> Timed:
        """Time the outlines of each match, in turns with the layer itself; see `_time`."""
        if self.course is None:
            return self._time(model, matched, options, narrower)
        asked = [[(one.method.name, one.ranks, one.cost) for one in own] for own in options]
        sizes = [(place, layer.outputs, layer.inputs) for place, layer in narrower]
        course = self.course.under("time layers", self.precision, asked, sizes)
        return course.kept(_CODEC, lambda: self._time(model, matched, options, narrower), Timed)

    def foreseen(self) -> float:
        """Seconds that `time` takes, about, told by opening the original and running it once.

        Raises:
            ModelError: The model does not run on the feed.
            ProviderError: The provider did not start.
        """
        begun = time.perf_counter()
        loaded = device_of(self.setting).load(self.original, self.setting.quick, self.feed)
        opened = time.perf_counter()
        loaded.run()
        once = time.perf_counter() - opened
        return max(self.seconds, _CHAINS * once) + _OPENED * (opened - begun) + _RUNS * once

    def _time(
        self,
        model: ir.Model,
        matched: Sequence[LayerMatch],
        options: Sequence[Sequence[Outline]],
        narrower: Sequence[tuple[int, Layer]],
    ) -> Timed:
        """Time the outlines of each match, in turns with the layer itself.

        Args:
            model: The model with all layers dense.
            matched: Its layers.
            options: Outlines of each of them.
            narrower: Layers of fewer outputs or inputs, each with the place of the one that it would be.

        Raises:
            ModelError: The model does not run on the feed.
            ProviderError: The provider did not start.
        """
        shapes = input_shapes(model, {name: array.shape for name, array in self.feed.items()})
        dense = [
            Request(s.layer, dense_chain(s.layer), shapes[s.layer.graph, s.layer.name], around)
            for s, around in zip(matched, neighbours(matched), strict=True)
        ]
        asked = [
            Request(request.layer, option.chain, request.input_shape, request.around)
            for request, own in zip(dense, options, strict=True)
            for option in own
        ]
        asked += [_narrowed(dense[place], layer) for place, layer in narrower]
        widths = {place: _narrowed(dense[place], dense[place].layer) for place, _ in narrower}
        asked += widths.values()
        cache: Path | None = cache_file() if self.cached else None
        notes: list[str] = []
        timings = iter(
            time_chains(
                asked,
                setting=self.setting.quick,
                precision=self.precision,
                cache=cache,
                seconds=self.seconds,
                note=notes.append,
            )
        )
        with temporary_files.folder() as folder:
            path = folder / "model.onnx"
            save(self.quantized(model), path)
            whole = shares(
                path,
                self.feed,
                dense,
                setting=self.setting,
                precision=self.precision,
            )
            before = whole.whole_ms / self._ratio(path).value
        parts = {}
        for index, (own, share) in enumerate(zip(options, whole.layers, strict=True)):
            taken = [next(timings) for _ in own]
            if share.part > 0 and any(not timing.reason for timing in taken):
                parts[index] = (share.part, tuple(_taken(share, timing) for timing in taken))
                notes += _untimed(matched[index], own, taken)
        smaller = [next(timings).dense_ms for _ in narrower]
        full = {place: next(timings).dense_ms for place in widths}
        ratios = (ms / full[place] for ms, (place, _) in zip(smaller, narrower, strict=True))
        return Timed(
            parts | _guessed(matched, options, parts),
            whole.whole_ms,
            before,
            tuple(notes),
            tuple(1.0 if math.isnan(ratio) else ratio for ratio in ratios),
            {place: whole.layers[place].part for place in widths},
        )

    def quanta(self) -> dict[Blocked, int]:
        """The multiples that the device's kernels work in; {} on the processor, whose are known."""
        if provider_of(self.setting.provider).synchronous:
            return {}
        measure = partial(
            measured_quanta, self.setting.quick, self.precision, cache_file() if self.cached else None
        )
        return measure() if self.course is None else self.course.under("quanta").kept(_NUMBERS, measure, dict)

    def time_plan(self, model: ir.Model, plan: Plan) -> Ratio:
        """The latency of the whole model under a plan over the original's, with factors of noise."""
        if self.course is None:
            return self._time_plan(model, plan)
        course = self.course.under("time plan", self.precision, repr(plan.to_json()))
        return course.kept(_CODEC, lambda: self._time_plan(model, plan), Ratio)

    def _time_plan(self, model: ir.Model, plan: Plan) -> Ratio:
        copy = model.clone()
        for cut in plan.cuts:
            channel = find_channel(copy, find(copy, freeze=True)[0], cut.channel, freeze=True)
            if channel is None:
                raise DefectError(f"the channel {cut.channel!r} is gone where others are cut")
            units = np.arange(channel.width).reshape(channel.blocks, -1)  # any: their number counts
            cut_channel(copy, channel, units[:, : cut.kept // channel.blocks].reshape(-1))
        matched, _ = find(copy, freeze=True)
        by_name = {(match.layer.graph, match.layer.name): match for match in matched}
        rewriter = Rewriter(copy)
        groups, trunks = members_of(plan, matched), dict[GroupKey, Trunk]()
        for choice in plan.decomposed:
            match = by_name.get((choice.graph, choice.layer))
            if match is None:  # a table that the cuts have made too small to be a layer
                continue
            method = get(choice.method or "", **choice.options)
            chain = filled(outline(method, match.layer, choice.ranks))
            if (group := group_of(choice)) is not None and group not in trunks:
                trunks[group] = rewriter.trunk(groups[group], chain, {})
            rewriter.replace(match, chain, {}, trunk=None if group is None else trunks[group])
        with temporary_files.folder() as folder:
            path = folder / "model.onnx"
            save(self.quantized(copy), path)
            return self._ratio(path)

    def slower(self, model: ir.Model, precision: str) -> frozenset[str]:
        """The nodes whose layers are slower than in floating point if they are stored in fewer bits.

        Args:
            model: As it will be quantized.
            precision: Kernels of products and tables that are stored by themselves; of others none is named.

        Raises:
            ProviderError: The provider did not start.
        """
        if storage_of(precision, self.setting.provider) is None:
            return frozenset()
        shapes = input_shapes(model, {name: array.shape for name, array in self.feed.items()})
        own = [match for match in products(model) if not match.layer.lookup]
        places = ((match, shapes.get((match.layer.graph, match.layer.name))) for match in own)
        asked = [(match, shape) for match, shape in places if shape is not None]
        found = ratios(
            [Request(match.layer, dense_chain(match.layer), shape) for match, shape in asked],
            precision,
            setting=self.setting.quick,
            cache=cache_file() if self.cached else None,
        )
        return frozenset(
            str(match.output.name)
            for (match, _), ratio in zip(asked, found, strict=True)
            if ratio is not None and ratio > (_SLOWER_IN_4_BITS if precision.startswith(INT4) else _SLOWER)
        )

    def quantized(self, model: ir.Model) -> ir.Model:
        """The model with the kernels that it will run on."""
        return quantized_roughly(
            model, self.precision, self.setting.provider, self.slower(model, self.precision)
        )

    def _ratio(self, new: Path) -> Ratio:
        timed = bench_under(
            [self.original, new],
            self.setting.quick,  # what is written is timed under the setting as it is
            duration=1.0,
            data=(self.feed,),
            memory=False,
            convert=as_run,
        )
        ratio = timed.models[1].ratio
        assert ratio is not None
        return ratio


def _narrowed(request: Request, layer: Layer) -> Request:
    """What times a layer of other sizes in the same place."""
    shape = list(request.input_shape)
    shape[1 if layer.conv is not None else -1] = layer.inputs
    return Request(layer, dense_chain(layer), tuple(shape), request.around)


def _taken(share: Share, timing: Timing) -> float:
    return math.inf if timing.reason else part_of_whole(share, timing)


def _untimed(match: LayerMatch, options: Sequence[Outline], taken: Sequence[Timing]) -> list[str]:
    """A note on the outlines of a layer that could not be timed, if there are any."""
    lost = [(option, timing) for option, timing in zip(options, taken, strict=True) if timing.reason]
    if not lost:
        return []
    shown = "; ".join(f"{o.method.name} at {','.join(map(str, o.ranks))}" for o, _ in lost[:3])
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return [f"{match.layer.name}: left out for want of a timing: {shown}{more} ({lost[0][1].reason})"]


def _guessed(
    matched: Sequence[LayerMatch], options: Sequence[Sequence[Outline]], known: Parts
) -> dict[int, tuple[float, tuple[float, ...]]]:
    """Shares of layers that cannot run alone (recurrent ones): half of what is left, by their MACs.

    The other half are their recurrences. Rough, but the whole model is timed in the end.
    """
    left = max(0.0, 1.0 - sum(part for part, _ in known.values()))
    missing = [index for index, own in enumerate(options) if own and index not in known]
    macs = {index: dense_cost(matched[index].layer).macs for index in missing}
    total = sum(macs.values())
    guessed = {}
    for index in missing:
        part = left / 2 * macs[index] / max(1, total)
        shares = tuple(part * option.cost.macs / max(1, macs[index]) for option in options[index])
        guessed[index] = (part, shares)
    return guessed
