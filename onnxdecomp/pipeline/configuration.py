"""Which passes run with which options: read from a file, checked, and built."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from onnxdecomp.core.options import convert, describe, option_fields, suggest
from onnxdecomp.core.plugins import line
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.installed import PassInfo, discover
from onnxdecomp.runtime.toml_file import read_toml

if TYPE_CHECKING:
    from onnxdecomp.pipeline.base import Pass

DEFAULT = ("simplify", "normalise", "decompose", "refine", "merge", "quantize", "annotate", "check")


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
    if isinstance(source, str | Path):
        settings = read_toml(Path(source), "a configuration", f"the configuration {Path(source)}")
    else:
        settings = dict(source or {})
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
