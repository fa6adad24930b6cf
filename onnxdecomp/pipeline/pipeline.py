"""The pipeline: finding the passes that are installed, building them from a configuration, running them.

Passes come from the entry points of the group `onnxdecomp.passes` (see onnxdecomp.core.plugins).
"""

from __future__ import annotations

import dataclasses
import gc
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from onnxdecomp.core import plugins
from onnxdecomp.core.options import convert, default_of, describe, option_fields, suggest
from onnxdecomp.core.plugins import Plugin, line
from onnxdecomp.errors import DefectError, OnnxDecompError, UsageError
from onnxdecomp.runtime.regular_files import require_text

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.layers.lowering_check import LoweringCheck
    from onnxdecomp.layers.replace import Rewritten
    from onnxdecomp.pipeline.base import Interface, Pass, PassContext, PassResult
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.search.search_record import SearchRecord
    from onnxdecomp.search.spectra import LayerSpectra

GROUP = "onnxdecomp.passes"
DEFAULT = ("simplify", "normalise", "decompose", "quantize", "annotate", "check")

# Stands in for our own entry point in a checkout that is on the path but not installed.
_BUILTIN = EntryPoint("builtin", "onnxdecomp_passes:PASSES", GROUP)


@dataclass(frozen=True)
class PassInfo(Plugin):
    """A pass that can be named in a pipeline."""

    kind: ClassVar[str] = "pass"

    def load(self) -> type[Pass]:
        """The pass's class, a frozen dataclass.

        Raises:
            UsageError: Two packages register the name, or the class cannot be imported or is no Pass.
        """
        from onnxdecomp.pipeline.base import Pass

        loaded = self.imported()
        if not (isinstance(loaded, type) and issubclass(loaded, Pass) and dataclasses.is_dataclass(loaded)):
            raise UsageError(
                f"{self.label} is not a dataclass derived from onnxdecomp.pipeline.base.Pass: {self.target}"
            )
        return loaded

    @property
    def summary(self) -> str:
        """What the pass does, in a sentence; raises as `load` does."""
        return self.load().summary


@dataclass(frozen=True)
class OptionInfo:
    """An option of a pass, as a configuration may set it."""

    name: str
    type: str
    default: object
    help: str


@dataclass(frozen=True)
class PipelineResult:
    """What a run of the pipeline did.

    Attributes:
        model: The model after the last pass; the object that came in if every pass works in place.
        notes: What a user should know, each led by its pass's name.
        rewritten: The layers that were replaced, in the order of their replacement.
        record: Facts for the run's record, by pass.
        modified: The passes that changed the model.
        plan: The decision for every layer as it was carried out; None where no pass plans.
        search, search_notes: How it was found, and what was said of that; None where it was given.
        spectra: Of the layers that were decomposed, where they were asked for.
        precisions: What the model was quantized to, by the pass that did it.
        checks: The lowering checks of the layers that were replaced, where they were made.
    """

    model: ir.Model
    notes: tuple[str, ...] = ()
    rewritten: tuple[Rewritten, ...] = ()
    record: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    modified: tuple[str, ...] = ()
    plan: Plan | None = None
    search: SearchRecord | None = None
    search_notes: tuple[str, ...] = ()
    spectra: Sequence[LayerSpectra] = ()
    precisions: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[LoweringCheck, ...] = ()

    @property
    def precision(self) -> str:
        """What the model was quantized to: "int8", "fp16", or "" where it was not."""
        return next(reversed(list(self.precisions.values())), "")


def discover() -> tuple[Mapping[str, PassInfo], tuple[str, ...]]:
    """The passes that are installed, by name, and a line for every broken entry point."""
    return plugins.discover(_BUILTIN, PassInfo)


def available() -> Mapping[str, PassInfo]:
    """The passes that are installed, by name. A package whose entry point is broken is left out."""
    return discover()[0]


def options(kind: type[Pass]) -> tuple[OptionInfo, ...]:
    """The options of a pass for people: the fields of its dataclass that have a help text."""
    hints = typing.get_type_hints(kind)
    return tuple(
        OptionInfo(f.name, describe(hints[f.name]), default_of(f), str(f.metadata["help"]))
        for f in option_fields(kind)
    )


@dataclass(frozen=True)
class PipelineConfig:
    """What stands in a pipeline's file.

    Attributes:
        passes: The passes that run, by name.
        options: What was set of their options, by pass.
    """

    passes: tuple[str, ...] = DEFAULT
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


PipelineSource: TypeAlias = PipelineConfig | Mapping[str, object] | str | Path | None
"""A TOML file, or what stands in one: `pipeline`, a list of names (DEFAULT if absent), and a table of options
per pass."""


def read(source: PipelineSource = None) -> PipelineConfig:
    """What a pipeline's file says, checked.

    Raises:
        UsageError: The file cannot be read, or a pass, an option or a value is not valid.
    """
    if isinstance(source, PipelineConfig):
        return source
    settings = _read(Path(source)) if isinstance(source, str | Path) else dict(source or {})
    names = settings.pop("pipeline", list(DEFAULT))
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError("'pipeline' must be a list of pass names, such as " + repr(list(DEFAULT)))
    found = _known((*names, *settings))
    options = {}
    for name, table in settings.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"'{name}' must be a table of options: [{name}]")
        if name not in names:
            raise UsageError(
                f"options are given for pass {name!r}, which the pipeline lacks: {', '.join(names)}"
            )
        options[name] = _converted(found[name], table)
    return PipelineConfig(tuple(names), options)


def build(
    source: PipelineSource = None, overrides: Mapping[str, Mapping[str, object]] | None = None
) -> tuple[Pass, ...]:
    """The passes of a pipeline with their options set.

    Args:
        source: What its file says.
        overrides: Options by pass that win over the file's (the command line's); those of passes that the
            pipeline lacks are ignored.

    Raises:
        UsageError: As `read`.
    """
    config, said = read(source), overrides or {}
    passes = _known((*config.passes, *said))
    return tuple(
        _instantiate(
            passes[name], {**config.options.get(name, {}), **_converted(passes[name], said.get(name, {}))}
        )
        for name in config.passes
    )


def _known(names: Iterable[str]) -> Mapping[str, PassInfo]:
    """The passes that are installed, these among them."""
    passes, problems = discover()
    for name in names:
        if name not in passes:
            broken = f" ({'; '.join(problems)})" if problems else ""
            raise UsageError(f"unknown pass {name!r}{suggest(name, passes)}{broken}")
    return passes


def run(
    model: ir.Model,
    passes: Iterable[Pass],
    context: PassContext | None = None,
    on_pass: Callable[[str], None] | None = None,
) -> PipelineResult:
    """Run the passes one after the other, on the model itself.

    Args:
        model: Changed in place; work on a clone to keep the original.
        passes: As `build` returns them.
        context: What the run has for them; each gets what it asks for.
        on_pass: Called with a pass's name before it starts.

    Raises:
        OnnxDecompError: A pass gave up, with its own line; DefectError for anything it did not foresee, and
            PlanFailedError where a plan had been made by then.
    """
    from onnxdecomp.pipeline.base import PassContext, PlanFailedError

    interface = _interface(model)
    known = context or PassContext()
    done = PipelineResult(model)
    for each in passes:
        if on_pass is not None:
            on_pass(each.name)
        try:
            result: PassResult = each.apply(model, replace(known, interface=interface))
        except Exception as error:
            shown = _translated(each.name, error)
            if isinstance(shown, DefectError) and not isinstance(shown, PlanFailedError) and done.plan:
                shown = PlanFailedError(shown, done.plan, done.search)
            raise shown from error
        if result.modified:
            # Nodes and values refer to each other in circles: weights that were replaced live until this.
            gc.collect()
        if result.opset is not None:
            interface = replace(interface, opsets={**interface.opsets, "": result.opset})
        done = _with(done, each.name, result)
    return done


def _with(done: PipelineResult, name: str, result: PassResult) -> PipelineResult:
    """What was done so far, and what one more pass did."""
    record = {**done.record, name: {**done.record.get(name, {}), **result.record}}
    if result.plan is not None:
        done = replace(
            done,
            plan=result.plan,
            search=result.search,
            search_notes=tuple(f"{name}: {note}" for note in result.search_notes),
            spectra=result.spectra,
        )
        if not record[name]:  # a plan has a place of its own in a run's record
            record.pop(name)
    return replace(
        done,
        notes=(*done.notes, *(f"{name}: {note}" for note in result.notes)),
        rewritten=(*done.rewritten, *result.rewritten),
        record=record,
        modified=(*done.modified, name) if result.modified else done.modified,
        precisions={**done.precisions, name: result.precision} if result.precision else done.precisions,
    )


def _interface(model: ir.Model) -> Interface:
    from onnxdecomp.graph.traversal import places
    from onnxdecomp.pipeline.base import Interface

    seen: set[str] = set()
    shared: set[str] = set()
    for place in places(model):
        for node in place.graph:
            if node.name:
                (shared if node.name in seen else seen).add(node.name)
    graph = model.graph
    return Interface(
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


def _read(path: Path) -> dict[str, object]:
    try:
        require_text(path, "a configuration")
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def _converted(info: PassInfo, values: Mapping[str, object]) -> dict[str, object]:
    """Options of a pass as their types say."""
    if not values:
        return {}
    kind = info.load()
    hints = typing.get_type_hints(kind)
    known = [f.name for f in option_fields(kind)]
    converted: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"pass {info.name!r} has no option {name!r}{suggest(name, known)}")
        try:
            converted[name] = convert(value, hints[name])
        except ValueError:
            expected = describe(hints[name])
            raise UsageError(
                f"option {name!r} of pass {info.name!r} must be {expected}, not {value!r}"
            ) from None
    return converted


def _instantiate(info: PassInfo, options: Mapping[str, object]) -> Pass:
    kind = info.load()
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"pass {info.name!r}: {line(error)}") from error
