"""The pipeline: finding the stages that are installed, building them from a configuration, running them.

Stages come from the entry points of the group `onnxdecomp.passes` (see onnxdecomp.core.plugins).
"""

from __future__ import annotations

import dataclasses
import gc
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxdecomp.core import plugins
from onnxdecomp.core.options import convert, default_of, describe, suggest
from onnxdecomp.core.plugins import Plugin, line
from onnxdecomp.errors import DefectError, OnnxDecompError, UsageError
from onnxdecomp.runtime.regular_files import require_text

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.layers.lowering_check import LoweringCheck
    from onnxdecomp.layers.replace import Rewritten
    from onnxdecomp.pipeline.base import Stage

GROUP = "onnxdecomp.passes"
DEFAULT = ("simplify", "normalise", "decompose", "quantize", "annotate", "check")

# Stands in for our own entry point in a checkout that is on the path but not installed.
_BUILTIN = EntryPoint("builtin", "onnxdecomp_passes:PASSES", GROUP)


@dataclass(frozen=True)
class PassInfo(Plugin):
    """A stage that can be named in a pipeline."""

    kind: ClassVar[str] = "pass"

    def load(self) -> type[Stage]:
        """The stage's class, a frozen dataclass.

        Raises:
            UsageError: Two packages register the name, or the class cannot be imported or is no Stage.
        """
        from onnxdecomp.pipeline.base import Stage

        loaded = self.imported()
        if not (isinstance(loaded, type) and issubclass(loaded, Stage) and dataclasses.is_dataclass(loaded)):
            raise UsageError(
                f"{self.label} is not a dataclass derived from onnxdecomp.pipeline.base.Stage: {self.target}"
            )
        return loaded

    @property
    def summary(self) -> str:
        """What the stage does, in a sentence; raises as `load` does."""
        return self.load().summary


@dataclass(frozen=True)
class OptionInfo:
    """An option of a stage, as a configuration may set it."""

    name: str
    type: str
    default: object
    help: str


@dataclass(frozen=True)
class PipelineResult:
    """What a run of the pipeline did.

    Attributes:
        model: The model after the last stage; the object that came in if every stage works in place.
        notes: What a user should know, each led by its stage's name.
        rewritten: The layers that were replaced, in the order of their replacement.
        record: Facts for the run's record, by stage.
        modified: The stages that changed the model.
        checks: The lowering checks of the layers that were replaced, where they were made.
    """

    model: ir.Model
    notes: tuple[str, ...] = ()
    rewritten: tuple[Rewritten, ...] = ()
    record: dict[str, dict[str, object]] = field(default_factory=dict)
    modified: tuple[str, ...] = ()
    checks: tuple[LoweringCheck, ...] = ()


@dataclass(frozen=True)
class CameIn:
    """What is remembered of a model as it came into the pipeline, for the check at the end."""

    ir_version: int | None
    opsets: Mapping[str, int]
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    shared_names: frozenset[str]
    """Node names that occur more than once: not valid, but not our doing."""


CAME_IN = "onnxdecomp.came_in"
"""The key of a CameIn in `model.meta`, which is never written to a file."""


def discover() -> tuple[Mapping[str, PassInfo], tuple[str, ...]]:
    """The stages that are installed, by name, and a line for every broken entry point."""
    return plugins.discover(_BUILTIN, PassInfo)


def available() -> Mapping[str, PassInfo]:
    """The stages that are installed, by name. A package whose entry point is broken is left out."""
    return discover()[0]


def options(stage: type[Stage]) -> tuple[OptionInfo, ...]:
    """The options of a stage for people: the fields of its dataclass that have a help text."""
    hints = typing.get_type_hints(stage)
    return tuple(
        OptionInfo(f.name, describe(hints[f.name]), default_of(f), str(f.metadata["help"]))
        for f in dataclasses.fields(stage)
        if "help" in f.metadata
    )


def build(
    config: Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Stage, ...]:
    """The stages of a pipeline with their options set.

    Args:
        config: A TOML file, or what stands in one: `pipeline`, a list of names (DEFAULT if absent), and
            a table of options per stage.
        overrides: Options by stage that win over the configuration's (the command line's); those of
            stages that the pipeline lacks are ignored.

    Raises:
        UsageError: The file cannot be read, or a stage, an option or a value is not valid.
    """
    settings = _read(Path(config)) if isinstance(config, str | Path) else dict(config or {})
    names = settings.pop("pipeline", list(DEFAULT))
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError("'pipeline' must be a list of pass names, such as " + repr(list(DEFAULT)))
    passes, problems = discover()
    for name in (*names, *settings, *(overrides or {})):
        if name not in passes:
            broken = f" ({'; '.join(problems)})" if problems else ""
            raise UsageError(f"unknown pass {name!r}{suggest(name, passes)}{broken}")
    for name, table in settings.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"'{name}' must be a table of options: [{name}]")
        if name not in names:
            raise UsageError(
                f"options are given for pass {name!r}, which the pipeline lacks: {', '.join(names)}"
            )
    chosen = {name: {**settings.get(name, {}), **(overrides or {}).get(name, {})} for name in names}
    return tuple(_instantiate(passes[name], chosen[name]) for name in names)


def run(
    model: ir.Model, stages: Iterable[Stage], on_stage: Callable[[str], None] | None = None
) -> PipelineResult:
    """Run the stages one after the other, on the model itself.

    Args:
        model: Changed in place; work on a clone to keep the original.
        stages: As `build` returns them.
        on_stage: Called with a stage's name before it starts.

    Raises:
        OnnxDecompError: A stage gave up, with its own line; DefectError for anything it did not foresee.
    """
    from onnxdecomp.pipeline.base import StageResult

    model.meta[CAME_IN] = _came_in(model)
    notes: list[str] = []
    rewritten: list[Rewritten] = []
    record: dict[str, dict[str, object]] = {}
    modified: list[str] = []
    for stage in stages:
        if on_stage is not None:
            on_stage(stage.name)
        try:
            result = stage(model)
        except Exception as error:
            shown = _translated(stage.name, error)
            if isinstance(shown, DefectError) and shown.decompose is None:
                shown.decompose = record.get("decompose")
            raise shown from error
        if result.model is not model:
            result.model.meta.setdefault(CAME_IN, model.meta[CAME_IN])
            model = result.model
        if result.modified:
            modified.append(stage.name)
            # Nodes and values refer to each other in circles: weights that were replaced live until this.
            gc.collect()
        if isinstance(result, StageResult):
            notes.extend(f"{stage.name}: {note}" for note in result.notes)
            rewritten.extend(result.rewritten)
            record.setdefault(stage.name, {}).update(result.record)
    return PipelineResult(model, tuple(notes), tuple(rewritten), record, tuple(modified))


def _came_in(model: ir.Model) -> CameIn:
    from onnxdecomp.graph.traversal import places

    seen: set[str] = set()
    shared: set[str] = set()
    for place in places(model):
        for node in place.graph:
            if node.name:
                (shared if node.name in seen else seen).add(node.name)
    graph = model.graph
    return CameIn(
        ir_version=model.ir_version,
        opsets=dict(model.opset_imports),
        inputs=tuple(v.name for v in graph.inputs if v.name not in graph.initializers),
        outputs=tuple(v.name for v in graph.outputs),
        shared_names=frozenset(shared),
    )


def _translated(name: str, error: Exception) -> OnnxDecompError:
    """The error to show: our own from inside onnx_ir's wrapping, else one that names the pass."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OnnxDecompError):
            return inner
        inner = inner.__cause__
    return DefectError(f"pass {name} failed: {line(error)} (run with --debug for the traceback)")


def _read(path: Path) -> dict[str, Any]:
    try:
        require_text(path, "a configuration")
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _instantiate(info: PassInfo, values: Mapping[str, object]) -> Stage:
    stage = info.load()
    hints = typing.get_type_hints(stage)
    # Fields without a help text are for what a run gives the stage, not for its user.
    known = [f.name for f in dataclasses.fields(stage) if f.init and "help" in f.metadata]
    arguments: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"pass {info.name!r} has no option {name!r}{suggest(name, known)}")
        try:
            arguments[name] = convert(value, hints[name])
        except ValueError:
            expected = describe(hints[name])
            raise UsageError(
                f"option {name!r} of pass {info.name!r} must be {expected}, not {value!r}"
            ) from None
    try:
        return stage(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"pass {info.name!r}: {line(error)}") from error
