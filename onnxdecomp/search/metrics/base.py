"""Metric: a kind of target, what it is called, how it is written and what has how much of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.evaluate.task_metrics.measure import Task
from onnxdecomp.search.held import Held, Numbers
from onnxdecomp.search.layer_profiles import LayerProfiles
from onnxdecomp.search.sensitivity import Outputs

COUNTS: Mapping[str, float] = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
"""Suffixes of a count."""

FRACTIONS: Mapping[str, float] = {"": 1.0, "%": 0.01}
"""Suffixes of a fraction."""


@dataclass(frozen=True)
class Amount:
    """How much a finished result has of something.

    Attributes:
        own: In the unit of a limit; None where it is not known.
        factor: The original's over it; None where that is not known or makes no sense.
    """

    own: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class Change:
    """What a metric of the task says of a finished result.

    Attributes:
        original, new: Its values.
        loss: By how much it got worse, in its own unit.
        points: Whether a drop in percent is one in points.
    """

    original: float
    new: float
    loss: float
    points: bool


@dataclass(frozen=True)
class Outcome:
    """What was found of a finished result; what was not measured is None.

    Attributes:
        macs, params, bytes, latency: What it costs; latency in milliseconds.
        error: The relative L2 error of the worst output.
        accuracy: Its accuracy less the original's.
        metric: What the metric of the task says.
        agreement: The share of samples of the verification whose class is the original's.
    """

    macs: Amount = Amount()
    params: Amount = Amount()
    bytes: Amount = Amount()
    latency: Amount = Amount()
    error: float | None = None
    accuracy: float | None = None
    metric: Change | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Metric(ABC):
    """A kind of target. Subclasses are costs, which are added up over layers, or losses, which are measured.

    Attributes:
        name: What stands before the "=" of a target.
        units: Suffixes of a value in lower case, and what each multiplies by; "" where a bare number will do.
        examples: For messages: how a target is written.
        signs: What may stand between its name and a limit.
        in_percent: Whether a limit in percent is another than the fraction.
    """

    name: ClassVar[str]
    units: ClassVar[Mapping[str, float]]
    examples: ClassVar[str]
    signs: ClassVar[tuple[str, ...]] = ("=",)
    in_percent: ClassVar[bool] = False

    @abstractmethod
    def check(self, limit: float, *, relative: bool) -> str | None:
        """What is wrong with a limit, a phrase for people; None where it can be kept."""

    @abstractmethod
    def suffixes(self) -> list[str]:
        """The suffixes as messages write them."""

    @abstractmethod
    def reached(self, outcome: Outcome, *, percent: bool = False) -> Amount:
        """What a finished result has of it; `percent`: as a limit in percent says it."""

    def text(self, limit: float, *, relative: bool) -> str:
        """A target as it can be read again."""
        number = repr(limit).removesuffix(".0")
        return f"{self.name}={number}{'x' if relative else ''}"


@dataclass(frozen=True)
class Sizes:
    """What is known of the sizes of files.

    Attributes:
        original: Bytes of the file that came in, with its external data.
        whole: Bytes of the file where every layer stays: simplified, and quantized if it will be.
        each: Bytes of a number in a layer's weight; None: those of the layer's own type.
        spare: Bytes that a plan like the one that is looked for needs beyond what is expected of it.
    """

    original: int
    whole: int
    each: float | None = None
    spare: float = 0.0


class CostMetric(Metric):
    """What a model costs: a sum over its layers and a remainder that no plan changes.

    Attributes:
        timed: Timing tells it, so that a search needs a clock.
        filed: The file tells it: files are made, and what is expected of a plan is corrected by them.
        weighs: It is about what a model holds, not about what it does: candidates are laid out along their
            parameters, not their MACs.
    """

    timed: ClassVar[bool] = False
    filed: ClassVar[bool] = False
    weighs: ClassVar[bool] = False

    @abstractmethod
    def of_original(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        """What the model that came in has; budgets are on that."""

    def of_simplified(self, profiles: LayerProfiles, sizes: Sizes) -> float:
        """What is left where every layer stays."""
        return self.of_original(profiles, sizes)

    @abstractmethod
    def of_layer(self, held: Held, profiles: LayerProfiles, sizes: Sizes) -> Numbers:
        """What of it is in what is held of a layer; linear in that."""

    def adjusted(self, limit: float, *, correction: float, sizes: Sizes) -> float:
        """The limit for what is expected, where measuring showed how far that is from the truth."""
        return limit

    def check(self, limit: float, *, relative: bool) -> str | None:
        if relative and limit < 1:
            return "give a factor of 1 or more (2x: half of the original)"
        return None if limit > 0 else "give a number above 0"

    def suffixes(self) -> list[str]:
        return ["x", *(unit.upper() for unit in self.units if unit)]


@dataclass(frozen=True, eq=False)
class Reference:
    """The original, and inputs to compare other models with it on.

    Attributes:
        model: The original, simplified and normalised.
        outputs: Its outputs on calibration inputs.
        calibration: Those inputs.
        task: The metric of the task on samples to choose by, if one is asked for.
    """

    model: ir.Model
    outputs: Outputs
    calibration: Calibration
    task: Task | None = None


class LossMetric(Metric):
    """What a model loses against the original: measured of whole models.

    Attributes:
        margin: Of a limit, what may be used up on some calibration inputs: on others it may be a little more.
        power: The loss that layers add up to, a squared relative error, goes with this power of it.
        of_outputs: It is told by the outputs' numbers; where none can be compared the layers' stand for them.
    """

    margin: ClassVar[float] = 1.0
    power: ClassVar[float] = 1.0
    of_outputs: ClassVar[bool] = False

    def allowed(self, limit: float, sign: str, percent: bool, task: Task | None) -> float:
        """The most that may be lost, as `measure` tells it, of a limit as it was given.

        Raises:
            UsageError: It cannot be measured, or the original itself does not keep it; a sentence for people.
        """
        return limit

    @abstractmethod
    def expected(self, limit: float) -> float:
        """What the first plan that is tried may be expected to lose, layers added up."""

    @abstractmethod
    def measure(self, reference: Reference) -> Callable[[ir.Model], float]:
        """What tells of a model how much it has lost.

        Raises:
            UsageError: The original's outputs are not of the kind.
        """

    def check(self, limit: float, *, relative: bool) -> str | None:
        if relative:
            return f"has no factor, give {self.examples}"
        return None if 0 <= limit < 1 else f"give a fraction from 0 to below 1, {self.examples}"

    def suffixes(self) -> list[str]:
        return [unit for unit in self.units if unit]
