"""Costs as targets: multiply-accumulates, parameters, bytes of the file, latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnxdecomp.search.held import Held, Numbers
from onnxdecomp.search.layer_profiles import LayerProfiles
from onnxdecomp.search.metrics.base import COUNTS, Amount, CostMetric, Outcome, Sizes


@dataclass(frozen=True)
class Macs(CostMetric):
    """Multiply-accumulates of one input."""

    name: ClassVar[str] = "macs"
    units: ClassVar[Mapping[str, float]] = COUNTS
    examples: ClassVar[str] = '"macs=2x" or "macs=20M"'

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return outcome.macs

    def of_original(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        return float(profiles.beyond.macs + sum(layer.dense.macs for layer in profiles.layers))

    def of_layer(self, held: Held, profiles: LayerProfiles, sizes: Sizes) -> Numbers:
        return held.macs


@dataclass(frozen=True)
class Parameters(CostMetric):
    """Numbers that the layers store, a shared weight once."""

    name: ClassVar[str] = "params"
    units: ClassVar[Mapping[str, float]] = COUNTS
    examples: ClassVar[str] = '"params=4x" or "params=1M"'
    weighs: ClassVar[bool] = True

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return outcome.params

    def of_original(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        return float(profiles.beyond.params + sum(layer.stored for layer in profiles.layers))

    def of_layer(self, held: Held, profiles: LayerProfiles, sizes: Sizes) -> Numbers:
        return held.stored


@dataclass(frozen=True)
class FileSize(CostMetric):
    """Bytes of the file with its external data. What is expected is corrected by files that are made."""

    name: ClassVar[str] = "size"
    units: ClassVar[Mapping[str, float]] = {
        **{"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
        **{"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
    }
    examples: ClassVar[str] = '"size=3x" or "size=1.5MB"'
    filed: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    def suffixes(self) -> list[str]:
        return [unit.replace("IB", "iB") for unit in super().suffixes()]

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return outcome.bytes

    def of_original(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        return float(sizes.original)

    def of_simplified(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        return float(sizes.whole)

    def of_layer(self, held: Held, profiles: LayerProfiles, sizes: Sizes) -> Numbers:
        match = held.layer.match
        kept = match.kept_bytes if held.kept else None
        own = {"float64": 8, "float32": 4}.get(match.layer.dtype, 2)
        return held.stored * (kept or sizes.each or own)

    def adjusted(self, limit: float, *, correction: float, sizes: Sizes) -> float:
        return limit - sizes.spare


_OF_A_CHAIN = 1500
"""Bytes of a chain: its nodes and names, and its scales where it is quantized; some hundred for each step."""


@dataclass(frozen=True)
class Smallest(FileSize):
    """Bytes that are made least: a chain has nodes, too, which count where a layer is small."""

    def of_layer(self, held: Held, profiles: LayerProfiles, sizes: Sizes) -> Numbers:
        return super().of_layer(held, profiles, sizes) + (0 if held.kept else _OF_A_CHAIN)


@dataclass(frozen=True)
class Latency(CostMetric):
    """Milliseconds of one input. What is expected is corrected by models that are timed."""

    name: ClassVar[str] = "latency"
    # No bare number: seconds and milliseconds are both plausible.
    units: ClassVar[Mapping[str, float]] = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    examples: ClassVar[str] = '"latency=1.5x" or "latency=3.2ms"'
    timed: ClassVar[bool] = True

    def suffixes(self) -> list[str]:
        return ["x", *self.units]

    def text(self, limit: float, *, relative: bool) -> str:
        written = super().text(limit, relative=relative)
        return written if relative else f"{written}ms"

    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        return outcome.latency

    def of_original(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        return profiles.original_ms

    def of_simplified(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        # Budgets are on the original as it came in; what the simplifier gained is there already.
        return profiles.whole_ms

    def of_layer(self, held: Held, profiles: LayerProfiles, sizes: Sizes) -> Numbers:
        return held.part * (profiles.whole_ms or 1.0)

    def adjusted(self, limit: float, *, correction: float, sizes: Sizes) -> float:
        return limit / correction
