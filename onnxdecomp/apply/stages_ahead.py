"""Plans carried out by other processes before they are asked for: what they keep stands for doing it here.

A task is a function of paths and small values: the model in the work folder, whose weights lie beside it at
offsets that it names, an entry with the inputs, and the plan. All that comes back is what was kept, so a task
may be done twice, or half, and who waits for it in vain carries the plan out itself, with the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import onnx_ir as ir

from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.apply.kept_stages import CODEC as STAGES
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.json_values import Json
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.session import TensorSpec
from onnxdecomp.search.plan import Plan
from onnxdecomp.tasks.course import Course
from onnxdecomp.tasks.store import Store
from onnxdecomp.tasks.values import Codec, Packed, digest

INPUTS = Codec((Mask, TensorSpec))
"""Packs calibration inputs."""


@dataclass(frozen=True)
class StageOptions:
    """How a plan is carried out, apart from its inputs.

    Attributes:
        seed: See `carry_out`.
        freeze: See `find`.
        repair: Of the plan.
    """

    seed: int = 0
    freeze: bool = False
    repair: bool = False

    def course(self, course: Course, plan: Plan, calibration: Calibration | None) -> Course:
        """What the stages of a plan on these inputs depend on."""
        inputs = None if calibration is None else calibration.fingerprint
        return course.under("stages", self.seed, self.freeze, repr(plan.to_json()), inputs)


@dataclass(frozen=True)
class StagesTask:
    """A plan to carry out, by paths and small values.

    Attributes:
        folder, model, inputs: The work folder, the model in it, and the entry of the calibration.
        base: The hash of the course that the stages are kept under.
        plan: As JSON.
        options: How.
    """

    folder: str
    model: str
    inputs: str
    base: str
    plan: Mapping[str, Json]
    options: StageOptions


def do(task: StagesTask) -> None:
    """Carry a plan out on a model that is then of no more use, and keep its stages."""
    store = Store(Path(task.folder))
    model = load(store.folder / task.model)
    infer_shapes(model)
    matched, _ = find(model, freeze=task.options.freeze)
    packed = store.read(task.inputs)
    assert packed is not None
    carry_out(
        model,
        matched,
        Plan.from_json(task.plan),
        seed=task.options.seed,
        calibration=_calibration(packed),
        on_failure=lambda choice, error: None,
        journal=Course(store, task.base).journal(STAGES),
    )


@dataclass(frozen=True, eq=False)
class StagesAhead:
    """Plans on one model that an executor carries out ahead.

    Attributes:
        pool: Who does it; None: nobody.
        course: Where they are kept; None: nowhere, and nothing is done ahead.
        model: As a search has it.
        options: How.
    """

    pool: Executor | None
    course: Course | None
    model: ir.Model
    options: StageOptions
    _begun: dict[str, Future[None]] = field(default_factory=dict)

    @contextmanager
    def begun(self, plans: Sequence[Plan], calibration: Calibration) -> Iterator[None]:
        """Begin with these plans; what nobody has waited for is given up, and no task runs afterwards."""
        if self.pool is None or self.course is None or len(plans) < 2 or calibration.synthetic:
            yield
            return
        inputs, model = self._inputs(calibration), self._shared_model()
        for asked in plans:
            plan = replace(asked, repair=self.options.repair)
            base = self.options.course(self.course, plan, calibration).base
            folder = str(self.course.store.folder.absolute())
            task = StagesTask(folder, model, inputs, base, plan.to_json(), self.options)
            self._begun[base] = self.pool.submit(do, task)
        try:
            yield
        finally:
            running = [future for future in self._begun.values() if not future.cancel()]
            wait(running)  # nothing is timed beside them
            self._begun.clear()

    def wait_for(self, plan: Plan, calibration: Calibration | None) -> None:
        """Wait for a plan that was begun; what has become of it shows in what is kept."""
        if self.course is None or not self._begun:
            return
        future = self._begun.get(self.options.course(self.course, plan, calibration).base)
        if future is not None:
            with suppress(Exception):  # it is done here then, and raises again what is an error
                future.result()

    def _inputs(self, calibration: Calibration) -> str:
        assert self.course is not None
        key = digest("inputs", calibration.fingerprint)
        if not self.course.store.has(key):
            names = [field.name for field in fields(calibration) if field.name != "feeds"]
            settings = {name: getattr(calibration, name) for name in names}
            feeds = calibration.feeds
            packed = INPUTS.pack((settings, list(feeds), feeds.source, feeds.stackable))
            self.course.store.write(key, packed)
        return key

    def _shared_model(self) -> str:
        """The model in the work folder, its weights beside it; written once."""
        assert self.course is not None
        store = self.course.store
        place = store.folder / "models" / self.course.under("model").base
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            with temporary_files.folder(place.parent) as passing:
                made = passing / "made"
                made.mkdir()
                save(self.model, made / "model.onnx", external=True)
                with suppress(OSError):  # another process has been quicker
                    os.rename(made, place)  # noqa: PTH104  (of folders)
        return str((place / "model.onnx").relative_to(store.folder))


def _calibration(packed: Packed) -> Calibration:
    match INPUTS.unpack(packed):
        case (dict(settings), list(feeds), str(source), bool(stackable)):
            return Calibration(Feeds(feeds, source, stackable=stackable), **settings)
    raise OnnxDecompError("the inputs in the work folder are none")
