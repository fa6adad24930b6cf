"""What is asked of a quantized model, and what a run remembers of how much of it that allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxdecomp.quantization.kinds import BLOCKS, DYNAMIC, INT4, STATIC

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.data.mask import Mask

HARMED = 0.5
"""Relative L2 distance of the worst output from which on a quantized model is taken for broken."""

ENOUGH = {STATIC: 0.02, DYNAMIC: 0.02, BLOCKS: 0.02, INT4: 0.1, "fp16": 0.005}
"""Errors below which nothing else is tried; one or the other is usual for the kind."""

_MUCH = 0.5
"""What is left of the error where leaving more of the model in floating point is worth its time."""

_BETTER = 0.9
"""The same where the error is more than may be."""

_SHARE = 0.5
"""The part of the error allowed that quantization may take; squares add up, so 0.87 is left to the rest."""

_WORSE = 1.25
"""By what the error of a model may be larger than that of the run's model before, where neither is small."""


@dataclass(frozen=True)
class Judged:
    """What a quantized model loses.

    Attributes:
        error: The relative L2 distance of its worst output.
        fall: What the metric of the task loses; 0 where none is asked for.
    """

    error: float
    fall: float = 0.0


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is asked of a quantized model.

    Attributes:
        limit: The error that is allowed in all, or None.
        drop: The loss of the metric of the task that is allowed in all, or None.
        fall: Gives what a model has lost of it; needed for a `drop`.
        mask: Which positions are padding, and not compared.
    """

    limit: float | None = None
    drop: float | None = None
    fall: Callable[[ir.Model], float] | None = None
    mask: Mask | None = None

    def enough(self, kind: str) -> float:
        """The error below which nothing else is tried."""
        return ENOUGH[kind] if self.limit is None else self.limit * _SHARE

    def met(self, kind: str, found: Judged) -> bool:
        """Whether nothing else need be tried."""
        return found.error <= self.enough(kind) and self.right(found)

    def right(self, found: Judged) -> bool:
        """Whether the metric is as good as is asked for."""
        return self.drop is None or found.fall <= self.drop

    def better(self, kind: str, new: Judged, old: Judged) -> bool:
        """Whether a model is to be taken in place of one that has less in floating point."""
        if not (self.right(old) and self.right(new)) and new.error <= HARMED:
            return new.fall < old.fall
        needed = (self.limit is not None and old.error > self.enough(kind)) or old.error > HARMED
        return new.error < (_BETTER if needed else _MUCH) * old.error

    def as_good(self, kind: str, new: Judged, old: Judged) -> bool:
        """Whether a model loses no more than another of the run did with as much in floating point."""
        small = new.error <= max(self.enough(kind), _WORSE * old.error)
        return small and new.error <= HARMED and (self.right(new) or new.fall <= old.fall)


@dataclass(eq=False)
class Memory:
    """What a run has found of how much of its model survives; its later models begin with that.

    Attributes:
        rung: What stayed in floating point, or None where nothing survived.
        judged: What that model lost.
        tried: All that was tried for it, as `Guarded.tried`; () before anything was.
        first: What the first of them lost.
    """

    rung: str | None = None
    judged: Judged = Judged(math.inf)
    tried: tuple[tuple[str, float], ...] = ()
    first: Judged = Judged(math.inf)
