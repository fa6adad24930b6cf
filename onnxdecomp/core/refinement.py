"""What a refinement of blocks did, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockOutcome:
    """What became of a block.

    Attributes:
        ends: Names of the values that it was compared by.
        layers: Names of the rewritten layers in it.
        tensors: Initializers that were refined.
        before, after: Mean of E|new - original|² / E|original|² over these values, on samples held out.
        epoch: The pass over the samples after which the numbers were best; 0: those of before stay.
    """

    ends: tuple[str, ...]
    layers: tuple[str, ...]
    tensors: int
    before: float
    after: float
    epoch: int


@dataclass(frozen=True)
class Refinement:
    """What became of a model.

    Attributes:
        blocks: In order; last, where there are several, the model as a whole.
        samples, held_out: Calibration samples that were fitted to, and those held out of it.
        before, after: Relative L2 error of the worst output on samples held out.
        kept: Whether the new numbers stay: they do not where the error is no lower.
        seconds: How long it took.
    """

    blocks: tuple[BlockOutcome, ...]
    samples: int
    held_out: int
    before: float
    after: float
    kept: bool
    seconds: float
