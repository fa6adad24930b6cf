"""What a pass of the pipeline is: its options, what a run gives it, and what it says of what it did.

A pass is an onnx_ir pass (its contract: `requires`, `ensures`, an honest `modified`) written as a frozen
dataclass. Its fields are its options, in the pipeline's configuration and on the command line, and nothing
else: all that only a run can know comes in a `PassContext`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import onnx_ir as ir

from onnxdecomp.core.options import option
from onnxdecomp.errors import DefectError
from onnxdecomp.graph.inferred import forget_inferred
from onnxdecomp.search.plan import FREE, Cost
from onnxdecomp.search.plan_options import PlanOptions

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from onnxdecomp.calibration.statistics import Calibration
    from onnxdecomp.channels.channel_cut import ChannelCut
    from onnxdecomp.core.refinement import Refinement
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask
    from onnxdecomp.evaluate.task_metrics.measure import Task
    from onnxdecomp.latency.quantum import Blocked
    from onnxdecomp.layers.adapter import LayerMatch
    from onnxdecomp.layers.replace import Rewritten
    from onnxdecomp.quantization.bounds import Memory
    from onnxdecomp.runtime.deadline import Deadline
    from onnxdecomp.search.latency_model import Stopwatch
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.search.search import SearchResult
    from onnxdecomp.search.search_record import SearchRecord
    from onnxdecomp.search.spectra import LayerSpectra
    from onnxdecomp.tasks.course import Course

__all__ = [
    "Interface",
    "Need",
    "Pass",
    "PassContext",
    "PassResult",
    "PlanFailedError",
    "Planner",
    "Progress",
    "Quantization",
    "Quantizer",
    "option",
]

Progress: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all or 0 where unknown)"""

Need: TypeAlias = Literal[
    "plan",
    "calibration",
    "evaluation",
    "latency",
    "kernels",
    "original",
    "original_bytes",
    "decided",
    "held_out",
    "quantization",
    "memory",
    "interface",
]
"""What a run gives to the passes that ask for it, by its name in `PassContext`."""


@dataclass(frozen=True)
class Interface:
    """What has to be the same at the end of a pipeline as it was at its beginning."""

    ir_version: int | None
    opsets: Mapping[str, int]
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    shared_names: frozenset[str]
    """Node names that occur more than once: not valid, but not our doing."""


@dataclass(frozen=True, eq=False)
class Quantization:
    """What a later pass will do to the result; a target that was named is one for that.

    Attributes:
        precision: The kernels that it is then for.
        quantized: Makes a quantized copy; a plain one where quantization breaks the model.
    """

    precision: str
    quantized: Callable[[ir.Model], ir.Model]


@dataclass(frozen=True, eq=False)
class PassContext:
    """What a run gives to its passes: what is not there is None, as in a pass that is called by itself.

    Attributes:
        plan: The plan to carry out; without one the pass plans by itself.
        calibration: Inputs that factors are fitted to, and ranges of activations found on.
        held_out: Calibration inputs that nothing is fitted to: set apart where a pass asks for them.
        evaluation: Inputs that results are judged by, with labels where there are some.
        latency: Measures what layers and plans take.
        kernels: Measures the multiples of channels that the card's kernels work in; None on a processor.
        original: The model as it was before the pass that plans; for the passes behind that.
        original_bytes: The size of the file that came in, with its external data.
        decided: The plan that was carried out; for the passes behind that.
        quantization: What a later pass does to the result.
        memory: How much of the model survives quantization, as far as the run has found out.
        interface: What came into the pipeline.
        task: The metric of the task on those of them that choices are judged by, where one is asked for.
        max_error, max_drop: The error of an output and the loss of the metric that the result may have.
        mask: The inputs that say what is padding.
        shapes: Shapes of inputs by name, for random inputs.
        provider: Where the result will run; "" where nobody says.
        seed: Of everything random.
        spectra: Whether the spectra of what is decomposed are recorded.
        progress: Called as the work goes on.
        deadline: When the run is to end, or None.
        course: What is kept of the run in its work folder, or None.
        pool: Computes tasks beside this process, or None.
    """

    plan: Plan | None = None
    calibration: Calibration | None = None
    held_out: Feeds | None = None
    evaluation: Feeds | None = None
    task: Task | None = None
    latency: Stopwatch | None = None
    kernels: Callable[[], Mapping[Blocked, int]] | None = None
    original: ir.Model | None = None
    original_bytes: int | None = None
    decided: Plan | None = None
    quantization: Quantization | None = None
    memory: Memory | None = None
    interface: Interface | None = None
    max_error: float | None = None
    max_drop: float | None = None
    mask: Mask | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    provider: str = ""
    seed: int = 0
    spectra: bool = False
    progress: Progress | None = None
    deadline: Deadline | None = None
    course: Course | None = None
    pool: Executor | None = None

    def only(self, asked: Iterable[Need]) -> PassContext:
        """The same without what a pass has not asked for."""
        kept: frozenset[str] = frozenset(asked)
        return replace(
            self,
            plan=self.plan if "plan" in kept else None,
            calibration=self.calibration if "calibration" in kept else None,
            evaluation=self.evaluation if "evaluation" in kept else None,
            task=self.task if "evaluation" in kept else None,
            latency=self.latency if "latency" in kept else None,
            kernels=self.kernels if "kernels" in kept else None,
            original=self.original if "original" in kept else None,
            original_bytes=self.original_bytes if "original_bytes" in kept else None,
            decided=self.decided if "decided" in kept else None,
            held_out=self.held_out if "held_out" in kept else None,
            quantization=self.quantization if "quantization" in kept else None,
            memory=self.memory if "memory" in kept else None,
            interface=self.interface if "interface" in kept else None,
        )


@dataclass
class PassResult(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        model, modified: As in onnx_ir.
        notes: What a user should know, a sentence each; shown as warnings and kept in the record.
        rewritten: The layers that were replaced, for the lowering check.
        cuts: What became of the channels that were cut.
        record: JSON-serialisable facts for the run's record, under the pass's name.
        plan: The decision for every layer as it was carried out, of a pass that decides it.
        search: How that plan was found, where it was searched for.
        search_notes: What the search has said, for later runs with a plan of its.
        spectra: Of the layers that were decomposed, where they were asked for.
        saved: What the model has less than its layers' chains say.
        precision: The kind of fewer bits that the model has got, such as "int4"; "" for none.
        refinement: What became of the blocks that were refined together, or None.
        opset: The opset that it had to be raised to, or None.
        imports: The domains of operators that it has brought in, with their versions.
    """

    notes: tuple[str, ...] = ()
    rewritten: tuple[Rewritten, ...] = ()
    cuts: tuple[ChannelCut, ...] = ()
    record: dict[str, object] = field(default_factory=dict)
    plan: Plan | None = None
    search: SearchRecord | None = None
    search_notes: tuple[str, ...] = ()
    spectra: Sequence[LayerSpectra] = ()
    saved: Cost = FREE
    precision: str = ""
    refinement: Refinement | None = None
    opset: int | None = None
    imports: Mapping[str, int] = field(default_factory=dict)


class PlanFailedError(DefectError):
    """An error of ours met a plan that was carried out, or the passes after it.

    Attributes:
        layer: As in DefectError.
        plan, search: What was being carried out, and how it was found.
    """

    def __init__(self, error: DefectError, plan: Plan, search: SearchRecord | None) -> None:
        super().__init__(str(error), layer=error.layer)
        self.plan, self.search = plan, search


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """A pass of the pipeline. Subclasses are frozen dataclasses that set `name` and `summary`.

    `needs` is what it cannot do without, `uses` what it takes where the run has it; both may follow from the
    options. Whatever is in neither does not reach it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def needs(self) -> frozenset[Need]:
        """What the run has to give it."""
        return frozenset()

    @property
    def uses(self) -> frozenset[Need]:
        """What it takes where the run has it."""
        return frozenset()

    @property
    def idle(self) -> bool:
        """Whether it does nothing with these options: a run leaves it out."""
        return False

    @abstractmethod
    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Change the model in place and say what was done."""

    def call(self, model: ir.Model) -> PassResult:
        """The same by itself, outside of a run."""
        return self.run(model, PassContext())

    def apply(self, model: ir.Model, context: PassContext) -> PassResult:
        """Run it with what it asks for of a context, and check the contract of onnx_ir's passes."""
        result = _InContext(self, context.only(self.needs | self.uses))(model)
        assert isinstance(result, PassResult)
        return result


class _InContext(ir.passes.InPlacePass):
    """A pass with its context: onnx_ir calls passes with a model alone."""

    def __init__(self, inner: Pass, context: PassContext) -> None:
        self.inner, self.context = inner, context

    def requires(self, model: ir.Model) -> None:
        self.inner.requires(model)

    def call(self, model: ir.Model) -> PassResult:
        done = self.inner.run(model, self.context)
        if not isinstance(done, PassResult):
            kind = f"{type(done).__name__} of {type(done).__module__.partition('.')[0]}"
            raise TypeError(f"{type(self.inner).__name__}.run returns a {kind}, no PassResult of onnxdecomp")
        if done.modified:
            forget_inferred(done.model)
        return done

    def ensures(self, model: ir.Model) -> None:
        self.inner.ensures(model)


@dataclass(frozen=True)
class Planner(PlanOptions, Pass):
    """A pass that decides which layers are replaced, as its options say.

    What a run asks of it is declared by this class: an option of another pass may have any name.
    """

    @abstractmethod
    def plan(self, model: ir.Model, context: PassContext) -> tuple[SearchResult, Sequence[LayerMatch]]:
        """What would be done, without doing it, and the layers that there are."""


class Quantizer(Pass):
    """A pass that stores weights and activations in fewer bits."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """The kind of fewer bits, such as "int8" or "fp16", or "none" for no change."""

    def kinds(self, *, calibrated: bool) -> tuple[str, ...]:
        """What the precision stands for, of which a run chooses by measurement; () for itself alone.

        Without a timing it is "int8-dynamic" of a model of matrix products where that is among them, else
        the first.

        Args:
            calibrated: Whether there are calibration inputs.
        """
        return ()

    @property
    def kernels(self) -> str:
        """What decides how long the result takes: the precision, and what else it hangs on."""
        return self.precision

    @property
    def idle(self) -> bool:
        """Whether it is to change nothing."""
        return self.precision == "none"

    @abstractmethod
    def quantized(self, model: ir.Model, context: PassContext) -> ir.Model:
        """A quantized copy; a plain one where quantization breaks the model."""
