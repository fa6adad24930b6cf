"""Stage: what a pass of the pipeline is, for our own passes and for those of other packages.

A stage is an onnx_ir pass (its contract: `requires`, `call`, `ensures`, an honest `modified`) written as a
frozen dataclass; its fields are its options, in the pipeline's configuration and on the command line.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxdecomp.layers.replace import Rewritten


@dataclass
class StageResult(ir.passes.PassResult):
    """What a stage did.

    Attributes:
        model, modified: As in onnx_ir.
        notes: What a user should know, a sentence each; shown as warnings and kept in the record.
        rewritten: The layers that were replaced, for the lowering check.
        record: JSON-serialisable facts for the run's record, under the stage's name.
    """

    notes: tuple[str, ...] = ()
    rewritten: tuple[Rewritten, ...] = ()
    record: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage(ir.passes.InPlacePass):
    """A pass of the pipeline. Subclasses are frozen dataclasses that set `name` and `summary`."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def call(self, model: ir.Model) -> StageResult:
        """Change the model in place and say what was done."""


class Planner(Stage):
    """A stage that decides which layers are replaced: a run gives it data, a plan and a stopwatch.

    What a run asks of it is declared by this class: an option of another stage may have any name.
    """

    method: str
    rank: str
    target: str
    layers: tuple[str, ...]
    mask: str
    seed: int

    @property
    @abstractmethod
    def searches(self) -> bool:
        """Whether ranks are found for a target, and not given."""

    @property
    @abstractmethod
    def goal(self) -> str:
        """The target, or what it is where none is named."""


class Quantizer(Stage):
    """A stage that stores weights and activations in fewer bits: a run gives it calibration inputs."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """What it stores them in: "int8", "fp16", or "none" for no change."""

    @abstractmethod
    def quantized(self, model: ir.Model) -> ir.Model:
        """A quantized copy; a plain one where quantization breaks the model."""


def option(default: Any, help: str) -> Any:
    """A field of a stage or a method with the help text that the command line and `passes` show."""
    return field(default=default, metadata={"help": help})
