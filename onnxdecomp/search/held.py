"""Held: what a model has of one layer, as a plan may leave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.search.layer_profiles import LayerProfile
from onnxdecomp.search.tied_layers import Pick

Numbers: TypeAlias = float | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Held:
    """What a model has of a layer: numbers, or arrays of them where channels around it are cut.

    Attributes:
        layer: The layer as it was.
        kept: Nothing is done to it but to its channels.
        macs: Multiply-accumulates.
        stored: The numbers that the model holds for it.
        part: Its share of the original's latency.
    """

    layer: LayerProfile
    kept: bool
    macs: Numbers
    stored: Numbers
    part: Numbers


def held(layer: LayerProfile, pick: Pick) -> Held:
    """What is held of a layer as it is picked."""
    if pick.candidate is None:
        return Held(layer, True, layer.dense.macs, pick.stored, layer.part)
    part = layer.parts[pick.candidate] if layer.parts else layer.part
    return Held(layer, False, layer.candidates[pick.candidate].outline.cost.macs, pick.stored, part)
