"""What a report shows beyond what a run needs: spectra, the graph around layers, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnxdecomp.latency.kernel_profile import Profile
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.record.layers import LayerRecord
from onnxdecomp.record.node_view import Surroundings, surroundings
from onnxdecomp.runtime import jsonio

Key: TypeAlias = tuple[str, str]
"""A layer: the graph that it stands in, and its name."""


@dataclass(frozen=True, eq=False)
class Details:
    """Of the layers of a run, by graph and name.

    Attributes:
        spectra: Singular values of the decomposed ones, as JSON values.
        nodes: What stood and stands there.
        spent: Where the time goes in the original and in the result; None where not looked at.
    """

    spectra: Mapping[Key, Any] = field(default_factory=dict)
    nodes: Mapping[Key, Surroundings] = field(default_factory=dict)
    spent: tuple[Profile, Profile] | None = None

    def of(self, layer: LayerRecord) -> dict[str, Any]:
        """What the record of a layer has beside what happened to it; every key always."""
        key = (layer.graph, layer.name)
        latency = None
        if self.spent is not None:
            # A kernel that was fused into another's name is not found: no number is better than none.
            before, after = (profile.layers.get(layer.name) for profile in self.spent)
            latency = None if before is None and after is None else {"before": before, "after": after}
        return {
            "latency_ms": latency,
            "spectra": list(self.spectra.get(key, ())),
            "nodes": jsonio.plain(self.nodes.get(key)),
        }

    def profile(self) -> dict[str, Any] | None:
        """The record's `profile`."""
        if self.spent is None:
            return None
        return {
            "unit": "ms",
            **{
                when: {"total": found.total, "layers": sum(found.layers.values()), "other": found.other}
                for when, found in zip(("before", "after"), self.spent, strict=True)
            },
        }


def details_of(
    rewritten: Sequence[Rewritten],
    spectra: Sequence[Mapping[str, Any]],
    layers: Sequence[LayerRecord],
    spent: tuple[Profile, Profile] | None = None,
) -> Details:
    """What is known of the layers.

    Args:
        rewritten: The layers that were replaced, in the model as it is now.
        spectra: What the decompose stage has recorded: layers with `graph`, `layer` and `spectra`.
        layers: Those of the plan as it was carried out in the end.
        spent: Where the time goes, see Details.
    """
    done = {(layer.graph, layer.name) for layer in layers if layer.status == "decomposed"}
    found = {(entry["graph"], entry["layer"]): entry["spectra"] for entry in spectra}
    return Details(
        spectra={key: value for key, value in found.items() if key in done},
        nodes={(r.site.layer.graph, r.site.layer.name): surroundings(r) for r in rewritten},
        spent=spent,
    )
