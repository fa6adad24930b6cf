"""Options that are made from dataclasses: those of CompressConfig, and those of the methods."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import click

from onnxdecomp.cli.fleet import BatchType
from onnxdecomp.cli.shapes import parse_pairs, parse_shapes
from onnxdecomp.core.options import Described, default_of, described, option_fields, spelled
from onnxdecomp.search.plan_options import PlanOptions
from onnxdecomp.workflow.config import CompressConfig, Group, hints

F = TypeVar("F", bound=Callable[..., Any])

_METAVAR = {str: "TEXT", int: "N", float: "NUMBER", bool: "true|false"}


def configured(group: Group, names: Iterable[str] = ()) -> Callable[[F], F]:
    """The options of CompressConfig that belong to a group; only these names, where some are given."""
    chosen = set(names)
    fields = [
        field
        for field in option_fields(CompressConfig)
        if described(field).group == group and (not chosen or field.name in chosen)
    ]

    def decorate(function: F) -> F:
        for field in reversed(fields):
            if described(field).flag is not None:
                function = option_of(field, hints()[field.name])(function)
        return function

    return decorate


def decomposition(group: Group) -> Callable[[F], F]:
    """Those of a group that say what is decomposed, and how: of inspect."""
    return configured(group, (*(field.name for field in option_fields(PlanOptions)), "simplify"))


def option_of(field: dataclasses.Field[Any], hint: object) -> Callable[[F], F]:
    """A field as an option of the command line."""
    known, default = described(field), default_of(field)
    flag = known.flag if known.flag and "/" in known.flag else spelled(field)
    otherwise = f"  [default: {known.otherwise}]" if known.otherwise else ""
    shown = not known.otherwise and default is not False and default not in (None, "", ())
    several = isinstance(default, tuple) or field.name in ("input_shapes", "provider_options")
    return click.option(
        flag,
        field.name,
        is_flag=True if isinstance(default, bool) and "/" not in flag else None,
        type=BatchType() if field.name == "batch" else _type(known, hint),
        multiple=several,
        default=() if several else default,
        show_default=shown,
        metavar=known.metavar,
        help=f"{known.help}{otherwise}.",
    )


def _type(known: Described, hint: object) -> click.ParamType[Any] | None:
    (kind, *_) = [one for one in typing.get_args(hint) or (hint,) if one not in (type(None), Ellipsis)]
    for chosen in (hint, kind):
        if typing.get_origin(chosen) is Literal:
            return click.Choice(typing.get_args(chosen))
    if kind is int:
        return click.IntRange(min=None if known.at_least is None else int(known.at_least))
    if kind is float:
        return click.FloatRange(min=known.at_least)
    return click.Path() if known.metavar in ("FILE", "DATA") else None


def methods(function: F) -> F:
    """The methods' own options, --METHOD-OPTION, made from their classes.

    Those of a broken package are left out: it is an error only for who names one of its methods.
    """
    from onnxdecomp.core.options import describe
    from onnxdecomp.decompositions.registry import names, problem_of
    from onnxdecomp.decompositions.registry import options as options_of

    for method in reversed([name for name in names() if problem_of(name) is None]):
        for option in reversed(options_of(method)):
            default = str(option.default).lower() if isinstance(option.default, bool) else option.default
            shown = f"  [default: {default}]" if default != "" else ""
            function = click.option(
                f"--{method}-{option.name.replace('_', '-')}",
                _parameter(method, option.name),
                metavar=_METAVAR.get(option.type) or describe(option.type),
                help=f"{option.help}.{shown}",
            )(function)
    return function


def _parameter(method: str, option: str) -> str:
    return f"{method}__{option}"


def said(context: click.Context) -> dict[str, Any]:
    """The options of CompressConfig that the user gave: defaults must not override a pipeline's file.

    The methods' own options come as {"options": {method: {option: text}}}.
    """
    from click.core import ParameterSource

    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    found = {
        field.name: context.params[field.name]
        for field in option_fields(CompressConfig)
        if field.name in context.params and context.get_parameter_source(field.name) not in default
    }
    if "input_shapes" in found:
        found["input_shapes"] = parse_shapes(found["input_shapes"])
    if "provider_options" in found:
        found["provider_options"] = parse_pairs(found["provider_options"])
    own: dict[str, dict[str, str]] = {}
    for name, value in context.params.items():
        method, separator, option = name.partition("__")
        if separator and value is not None:
            own.setdefault(method, {})[option] = value
    return {**found, "options": own} if own else found


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Pipeline as TOML: which passes, with which options; or, as *.json, a configuration of all options "
    "(see docs/reference/options.md). Options given here win.",
)


def _recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """What a shell completes."""
    from onnxdecomp.workflow.recipes.registry import names

    return [name for name in names() if name.startswith(incomplete)]


recipe_option = click.option(
    "--recipe",
    metavar="NAME",
    shell_complete=_recipes,
    help="Begin with a named configuration, such as cnn-cpu; 'onnxdecomp recipes' lists them. Options given "
    "here win.",
)


def written(options: Mapping[str, object]) -> str:
    """Options by their names in Python, as they are typed: {"max_error": 0.01} is "--max-error 0.01"."""
    fields = {field.name: field for field in option_fields(CompressConfig)}
    parts = []
    for name, value in options.items():
        yes, _, no = (described(fields[name]).flag or "").partition("/")
        if isinstance(value, bool) and no:
            parts.append(yes if value else no)
        else:
            parts.append(spelled(fields[name]) if value is True else f"{spelled(fields[name])} {value}")
    return " ".join(parts)
