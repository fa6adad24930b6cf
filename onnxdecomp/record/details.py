"""What a report shows beyond what a run needs: spectra, the graph around layers, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from onnxdecomp.core.spectrum import Spectrum
from onnxdecomp.latency.kernel_profile import Profile
from onnxdecomp.latency.kernels import Demand
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.record.node_view import surroundings
from onnxdecomp.record.schema.layers import DetailedLayer, KernelTimes, LayerRecord, Surroundings
from onnxdecomp.record.schema.timing import AskedOfHardware, HardwareDemand, KernelProfile, TimeSpent
from onnxdecomp.search.spectra import LayerSpectra

Key: TypeAlias = tuple[str, str]
"""A layer: the graph that it stands in, and its name."""


@dataclass(frozen=True, eq=False)
class Details:
    """Of the layers of a run, by graph and name.

    Attributes:
        spectra: Singular values of the decomposed ones.
        nodes: What stood and stands there.
        spent: Where the time goes in the original and in the result; None where not looked at.
        demand: What one run of each asks of the hardware; None likewise.
    """

    spectra: Mapping[Key, Sequence[Spectrum]] = field(default_factory=dict)
    nodes: Mapping[Key, Surroundings] = field(default_factory=dict)
    spent: tuple[Profile, Profile] | None = None
    demand: tuple[Demand, Demand] | None = None

    def of(self, layer: LayerRecord) -> DetailedLayer:
        """What happened to a layer, and what is known of it beside that."""
        key = (layer.graph, layer.name)
        return DetailedLayer(
            **vars(layer),
            latency_ms=self._latency(layer.name),
            spectra=tuple(self.spectra.get(key, ())),
            nodes=self.nodes.get(key),
        )

    def _latency(self, layer: str) -> KernelTimes | None:
        """A kernel that was fused into another's name is not found: no number is better than none."""
        if self.spent is None:
            return None
        before, after = (profile.layers.get(layer) for profile in self.spent)
        return None if before is None and after is None else KernelTimes(before=before, after=after)

    def profile(self) -> KernelProfile | None:
        """The record's `profile`."""
        if self.spent is None:
            return None
        before, after = map(_spent, self.spent)
        return KernelProfile(before=before, after=after)

    def asked(self) -> HardwareDemand | None:
        """The record's `demand`."""
        if self.demand is None:
            return None
        before, after = map(_asked, self.demand)
        return HardwareDemand(before=before, after=after)


def _asked(demand: Demand) -> AskedOfHardware:
    return AskedOfHardware(
        launches=demand.launches, bytes=demand.bytes, flops=demand.flops, intensity=demand.intensity
    )


def _spent(profile: Profile) -> TimeSpent:
    return TimeSpent(total=profile.total, layers=sum(profile.layers.values()), other=profile.other)


def details_of(
    rewritten: Sequence[Rewritten],
    spectra: Sequence[LayerSpectra],
    layers: Sequence[LayerRecord],
    spent: tuple[Profile, Profile] | None = None,
    demand: tuple[Demand, Demand] | None = None,
) -> Details:
    """What is known of the layers.

    Args:
        rewritten: The layers that were replaced, in the model as it is now.
        spectra: Of the layers that the decompose pass has taken.
        layers: Those of the plan as it was carried out in the end.
        spent, demand: Where the time goes, and what is asked of the hardware, see Details.
    """
    done = {(layer.graph, layer.name) for layer in layers if layer.status == "decomposed"}
    # A layer that was only cut has the nodes that it had.
    weights = {(layer.graph, layer.name): layer.weight for layer in layers if layer.status != "cut"}
    found = {(entry.graph, entry.layer): entry.spectra for entry in spectra}
    names = [((r.match.layer.graph, r.match.layer.name), r) for r in rewritten]
    return Details(
        spectra={key: value for key, value in found.items() if key in done},
        nodes={key: surroundings(one, weights[key]) for key, one in names if key in weights},
        spent=spent,
        demand=demand,
    )
