"""What became of a channel that was cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxdecomp.core.layer import Array


@dataclass(frozen=True, eq=False)
class ChannelCut:
    """A channel of which some units are left.

    Attributes:
        channel: Its name.
        producers, readers: The names of the layers that make and read it.
        units: The units that stay, sorted.
        loss: E|y - V x|² / E|y|² of what reads it, the sum over its readers; None where the units were
            chosen by the weights alone.
        held_out: The same on held-out rows, of fits to the others; None where there were none.
        check: How far the readers' outputs are, relative, from those before the cut with the units that went
            set to zero; None where that was not looked at.
        biased: The readers that got a bias and had none, with its numbers.
        unfitted: Why no rows were looked at although there was calibration, a phrase for people.
    """

    channel: str
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    units: Array
    loss: float | None = None
    held_out: float | None = None
    check: float | None = None
    biased: Mapping[str, int] = field(default_factory=dict)
    unfitted: str = ""
