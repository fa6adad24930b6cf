"""CompressConfig: every option of `compress`, described once.

From it come the options of the command line, the keywords of `compress`, the options that passes are given,
the record's `request` and docs/reference/options.md. Importing it imports nothing slow.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from onnxdecomp.core.options import (
    convert,
    default_of,
    describe,
    described,
    is_default,
    option,
    option_fields,
    spelled,
    suggest,
)
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.configuration import PipelineConfig, PipelineSource, build, read
from onnxdecomp.workflow.runtime_options import RuntimeOptions

if TYPE_CHECKING:
    from onnxdecomp.data.read import Data
    from onnxdecomp.evaluate.task_metrics.registry import MetricSource
    from onnxdecomp.pipeline.base import Pass
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.training.settings import Settings

    PlanSource: TypeAlias = Plan | Mapping[str, object] | str | Path
    Training: TypeAlias = Settings | Mapping[str, object] | str

Group: TypeAlias = Literal["goal", "methods", "data", "runtime", "after", "output"]

GROUPS: Mapping[Group, str] = {
    "goal": "How far to go",
    "methods": "By which methods, in which layers",
    "data": "Inputs",
    "runtime": "Where it is measured",
    "after": "What is done with the result",
    "output": "What is written",
}
"""The groups of the options, in the order in which they are shown."""

METRIC_TARGET = "drop=1%"
"""What is reached where a metric is named, and neither a target nor ranks are."""

_LARGE_TYPES = ("Data", "MetricSource", "PlanSource", "Training")
"""Types whose modules are slow to import; they take too many forms to be checked here."""


@dataclass(frozen=True)
class CompressConfig(RuntimeOptions):
    """What `compress` is asked for.

    Attributes:
        pipeline: Which passes run, and options of theirs that are none of these.
        origins: Where an option was said: by the caller, or in the pipeline's file. One that is in neither,
            and not its default, is the caller's too.
    """

    max_error: float | None = option(
        None,
        "Largest relative L2 error of an output. Where ranks are searched for, layers give way until it "
        "holds; with ranks given: exit with 1, writing nothing, if it is above this. With neither --rank nor "
        "--target also what the search may use up",
        group="goal",
        metavar="ERROR",
        at_least=0,
    )
    metric: MetricSource | None = option(
        None,
        "What the model is good for, as a number: top1 | psnr | spearman | token-agreement | kl | wer | cer, "
        "or a function of yours, module:callable or file.py:callable (docs/guides/metrics.md). Targets of "
        "drop and metric are about it, and it is reported with its interval",
        group="goal",
        metavar="NAME",
        otherwise="top1 where the target is a drop",
    )
    plan: PlanSource | None = option(
        None,
        "Carry out the plan in this file: the --json of a --dry-run or of another run",
        group="goal",
        metavar="FILE",
    )
    allow_slower: bool | None = option(
        None,
        "Whether the result may be no faster than the original; else layers are put back",
        group="goal",
        flag="--allow-slower/--never-slower",
        otherwise="only if --rank, --plan, or a target of MACs, parameters or size asks for it",
    )
    simplify: Literal["onnxsim", "onnxscript", "none"] = option(
        "onnxsim",
        "Simplifier to run first",
        group="methods",
        otherwise="onnxsim; inspect: none",
        places=(("simplify", "tool"),),
    )
    calib: Data | None = option(
        None,
        "Inputs without labels that factors are fitted to, of the same forms as --eval",
        group="data",
        metavar="DATA",
    )
    data: Data | None = option(
        None,
        "Inputs to verify with, and labels for accuracy: a .npz file, a folder of them, ONNX test data "
        "(test_data_set_*), a folder of images, or module:callable. Those of --calib, or random ones, if not "
        "given",
        group="data",
        flag="--eval",
        metavar="DATA",
    )
    samples: int | None = option(
        None, "Use at most so many samples of the data", group="data", metavar="N", at_least=1
    )
    input_shapes: Mapping[str, Sequence[int]] | None = option(
        None,
        "Shape of an input whose dimensions the model leaves free: the model is timed at it, whatever the "
        "calibration inputs have. Repeatable",
        group="data",
        flag="--input-shape",
        metavar="NAME:1x3x224x224",
    )
    quantize: Literal["int8", "int8-static", "int8-dynamic", "int8-block", "int4", "fp16", "none"] = option(
        "none",
        "Store the model in fewer bits, alone where nothing says how far to decompose, else after that; a "
        "target is then one for the quantized model. int8 takes what is fastest of: activations rounded by "
        "ranges (int8-static, needs --calib) or as they come (int8-dynamic), and weights in blocks "
        "(int8-block). int4: weights of 4 bits in blocks",
        group="after",
        places=(("quantize", "kind"),),
    )
    block_size: Literal[16, 32, 64, 128, 256] = option(
        32,
        "Numbers of a weight that share a scale, for int4 and int8-block",
        group="after",
        places=(("quantize", "block_size"),),
    )
    table_bits: Literal["auto", "4", "8"] = option(
        "auto",
        "Bits of the numbers in tables of embeddings, for int8 and int4",
        group="after",
        otherwise="as many as other weights have",
        places=(("quantize", "table_bits"),),
    )
    finetune: Training | None = option(
        None,
        "Train the result on --calib against the original: settings of 'onnxdecomp finetune', such as "
        "'epochs=2,train=all'. Needs the extra 'train' (torch)",
        group="after",
        metavar="SETTINGS",
    )
    refine: bool = option(
        False,
        "Refine the factors of whole blocks together, each against the original's block, on --calib. Needs "
        "the extra 'train' (torch)",
        group="after",
        flag="--refine/--no-refine",
        places=(("refine", "enabled"),),
    )
    verify: bool = option(
        True, "Compare the outputs with the original's", group="after", flag="--verify/--no-verify"
    )
    dry_run: bool = option(False, "Show the plan and write nothing", group="output")
    details: bool = option(
        False,
        "Put into the record what a report shows: spectra, the graph around every rewritten layer, where the "
        "time goes",
        group="output",
        flag=None,
    )
    overwrite: bool = option(False, "Replace the output if it exists", group="output")
    fail_if_unchanged: bool = option(False, "Exit with 5 if nothing was decomposed", group="output")
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    origins: Mapping[str, Literal["caller", "file"]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Bring the options to their types: whole numbers to floats, lists to tuples.

        Raises:
            UsageError: One of them is of another type.
        """
        for known in option_fields(CompressConfig):
            object.__setattr__(self, known.name, _converted(known, getattr(self, known.name)))

    @classmethod
    def of(cls, source: CompressConfig | PipelineSource, options: Mapping[str, object]) -> CompressConfig:
        """What a caller asks for: a configuration, and options that win over it.

        What a pipeline's file says of ranks gives way to a target that the caller names.

        Args:
            source: Another configuration, or a pipeline's file.
            options: By name; None says nothing.

        Raises:
            UsageError: The file or an option is not valid. Whether they go together says
                onnxdecomp.workflow.config_checks.checked.
        """
        given = {name: value for name, value in options.items() if value is not None}
        known = [f.name for f in option_fields(cls)]
        flags = {spelled(f).removeprefix("--").replace("-", "_"): f.name for f in option_fields(cls)}
        for name in given:
            if name not in known:
                hint = f"; did you mean {flags[name]!r}?" if name in flags else suggest(name, known)
                raise UsageError(f"compress has no option {name!r}{hint}")
        base = source if isinstance(source, CompressConfig) else _of_file(read(source))
        if "target" in given:
            in_file = [name for name, origin in base.origins.items() if origin == "file"]
            reset = [name for name in ("rank", "layers", "must_save") if name in in_file]
            given = {f.name: default_of(f) for f in option_fields(cls) if f.name in reset} | given
        origins = {**base.origins, **dict.fromkeys(given, "caller")}
        return _made({**_values(base), **given, "origins": origins})

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """The passes with their options; those that are to do nothing are left out.

        Raises:
            UsageError: An option is not valid.
        """
        from onnxdecomp.pipeline.base import Quantizer

        passes = build(self.pipeline, self._overrides())
        if self.quantize != "none" and not any(isinstance(each, Quantizer) for each in passes):
            raise UsageError("the pipeline has no quantize pass: name it in 'pipeline', after decompose")
        if self.refine and "refine" not in {each.name for each in passes}:
            raise UsageError("the pipeline has no refine pass: name it in 'pipeline', after decompose")
        return tuple(each for each in passes if not each.idle)

    @property
    def plans(self) -> bool:
        """Whether a pass decides which layers are decomposed."""
        from onnxdecomp.pipeline.base import Planner

        return any(isinstance(each, Planner) for each in self.passes)

    @property
    def fewer_bits(self) -> str:
        """The kind of fewer bits that the result is stored in, such as "int8", or "" as the original."""
        from onnxdecomp.pipeline.base import Quantizer

        return next((each.precision for each in self.passes if isinstance(each, Quantizer)), "")

    @property
    def derived_target(self) -> str:
        """The target that the largest error or the metric stands for where none is named; else ""."""
        if self.plan is not None or self.target or not self.searches:
            return ""
        if self.max_error is not None:
            return f"error={self.max_error}"
        return "" if self.metric is None else METRIC_TARGET

    @property
    def sought(self) -> str | None:
        """The target that ranks are searched for; None where they are given."""
        if self.plan is not None or not self.searches or not self.plans:
            return None
        return self.derived_target or self.goal

    @property
    def about_size(self) -> bool:
        """Whether what is asked for is ranks, a plan, or a target of MACs, parameters or bytes: not speed.

        Quantization alone is about speed.
        """
        from onnxdecomp.search.targets import about_speed

        if self.fewer_bits and not self.plans and self.plan is None:
            return False
        return self.sought is None or not about_speed(self.sought, self.objective)

    def said(self, name: str) -> bool:
        """Whether the caller has set an option to something else than its default."""
        known = next(f for f in option_fields(CompressConfig) if f.name == name)
        return self.origins.get(name) != "file" and not is_default(known, getattr(self, name))

    def in_file(self, name: str) -> bool:
        """Whether the pipeline's file has set an option to something else than its default."""
        known = next(f for f in option_fields(CompressConfig) if f.name == name)
        return self.origins.get(name) == "file" and not is_default(known, getattr(self, name))

    def _overrides(self) -> dict[str, dict[str, object]]:
        """The options of passes that the pipeline's file does not say itself."""
        found: dict[str, dict[str, object]] = {}
        for known in option_fields(CompressConfig):
            value = getattr(self, known.name)
            for name, own in described(known).places:
                written = own in self.pipeline.options.get(name, {})
                if self.origins.get(known.name) != "file" and (written or value != default_of(known)):
                    found.setdefault(name, {})[own] = value
        if self.derived_target:
            found.setdefault("decompose", {})["target"] = self.derived_target
        return found


@cache
def hints() -> Mapping[str, object]:
    """The types of the options; those that take many forms are `object`."""
    names: dict[str, object] = dict.fromkeys(_LARGE_TYPES, object)
    return typing.get_type_hints(CompressConfig, localns=names)


def _of_file(pipeline: PipelineConfig) -> CompressConfig:
    """What a pipeline's file says of the options, and the rest of it."""
    found: dict[str, object] = {}
    for known in option_fields(CompressConfig):
        for name, own in described(known).places[:1]:
            if own in pipeline.options.get(name, {}):
                found[known.name] = pipeline.options[name][own]
    return _made({**found, "pipeline": pipeline, "origins": dict.fromkeys(found, "file")})


def _values(config: CompressConfig) -> dict[str, object]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def _made(values: Mapping[str, object]) -> CompressConfig:
    kind: type = CompressConfig  # its types were checked, by names that only a run knows
    made = kind(**values)
    assert isinstance(made, CompressConfig)
    return made


def _converted(known: dataclasses.Field[object], value: object) -> object:
    """An option's value as its type says; what is wrong with one of a pass is said with the pass's name."""
    hint = hints()[known.name]
    try:
        return convert(value, hint)
    except ValueError:
        if described(known).places:
            return value
        raise UsageError(f"{known.name} must be {describe(hint)}, not {value!r}") from None
