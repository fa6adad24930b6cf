"""What a record says of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxdecomp.core.json_values import Json


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One pass over the data; number 0 is what came in.

    Attributes:
        train: The objective's mean over the steps.
        held_out: The objective on the held-out samples.
        accuracy: Top-1 accuracy on the held-out samples; null without labels.
        train_accuracy: That on the samples of the steps, as they were drawn and augmented.
    """

    number: int
    train: float | None
    held_out: float
    accuracy: float | None
    train_accuracy: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SampleCount:
    """Samples to train on, those held out, and whether there were labels."""

    train: int
    held_out: int
    labels: bool


@dataclass(frozen=True, kw_only=True)
class Training:
    """How initializers were trained.

    Attributes:
        settings: As onnxdecomp finetune has them.
        objective: In words.
        tensors: Initializers trained.
        parameters: Numbers in them.
        device: Of torch.
        agreement: Largest relative L2 difference of torch's outputs from ONNX Runtime's before the training.
        best: The epoch whose weights were kept.
    """

    settings: Mapping[str, Json]
    objective: str
    from_scratch: bool
    tensors: int
    parameters: int
    samples: SampleCount
    device: str
    agreement: float
    epochs: tuple[EpochRecord, ...]
    best: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingVerdict:
    """Whether an epoch was better than what came in."""

    worth: bool
    text: str
    because: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RefinedBlock:
    """Layers whose weights were refined together.

    Attributes:
        ends: The values that the block was compared by.
        layers: The rewritten layers in it.
        tensors: Initializers refined.
        before, after: Mean of E|new - original|² / E|original|² over these values, on inputs held out.
        epoch: The pass over the inputs after which the numbers were best; 0: those from before stay.
    """

    ends: tuple[str, ...]
    layers: tuple[str, ...]
    tensors: int
    before: float
    after: float
    epoch: int


@dataclass(frozen=True, kw_only=True)
class RefinementRecord:
    """How blocks were refined.

    Attributes:
        blocks: In order; the model as a whole comes last.
        samples, held_out: Calibration inputs that were fitted to, and those that decided.
        before, after: Relative L2 error of the worst output on inputs held out.
        kept: Whether the new numbers stayed: not where that error did not fall.
    """

    blocks: tuple[RefinedBlock, ...]
    samples: int
    held_out: int
    before: float
    after: float
    kept: bool
    seconds: float
