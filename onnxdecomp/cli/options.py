"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from onnxdecomp.cli.inputs import mask_option, seed_option

F = TypeVar("F", bound=Callable[..., Any])

_METAVAR = {str: "TEXT", int: "N", float: "NUMBER", bool: "true|false"}

SAVINGS = ("macs", "params", "both", "either", "none")


def decomposition(function: F) -> F:
    """The options that say what is decomposed, and how: of compress and inspect."""
    for option in reversed(
        (
            click.option(
                "--method",
                default="auto",
                show_default=True,
                metavar="NAME",
                help="Decomposition; see 'onnxdecomp methods'. Several with commas: with --rank a layer gets "
                "the first that fits, else the best. auto: the best of all (with --rank: tucker).",
            ),
            click.option(
                "--target",
                metavar="BUDGET",
                help="What to reach; the ranks are searched for: macs=2x | params=4x | size=3x | "
                "latency=1.5x | error=0.05 (of the output) | drop=0.01 (of the accuracy on --eval); several "
                "with commas  [default: the fastest within error=0.05].",
            ),
            click.option(
                "--rank",
                metavar="SPEC",
                help="In place of a target, ranks: 16 | 16,32 | 0.5 (of full) | energy=0.95 | error=0.05 (of "
                "the weight) | evbmf.",
            ),
            click.option(
                "--layer",
                "layers",
                multiple=True,
                metavar="RULE",
                help="Other ways for some layers: PATTERN=METHOD[:rank=SPEC][:option=value] or PATTERN=keep. "
                "Repeatable; the first that fits wins.",
            ),
            click.option(
                "--rank-multiple",
                metavar="N|auto",
                help="Round ranks to multiples of N; auto: of what the provider's kernels block by  "
                "[default: auto where latency counts, else 1].",
            ),
            click.option(
                "--include",
                multiple=True,
                metavar="PATTERN",
                help="Only layers of that name, or whose name matches, such as 'conv3*'; repeatable.",
            ),
            click.option(
                "--exclude",
                multiple=True,
                metavar="PATTERN",
                help="No layer of that name, or whose name matches; repeatable.",
            ),
            click.option(
                "--must-save",
                type=click.Choice(SAVINGS),
                default="macs",
                show_default=True,
                help="What a chain must need less of than its layer, or the layer stays. 'none' decomposes "
                "every layer at any rank, full ranks (--rank 1.0) included.",
            ),
            click.option(
                "--skip-below",
                type=click.FloatRange(min=0),
                default=0.1,
                show_default=True,
                metavar="SHARE",
                help="A layer stays if both its MACs and its parameters are below this share of the average.",
            ),
            click.option(
                "--freeze-initializers",
                is_flag=True,
                help="Treat initializers that are also graph inputs as constants.",
            ),
            click.option(
                "--repair/--no-repair",
                default=True,
                show_default=True,
                help="Give layers that are kept (and not excluded) numbers that make up for what those "
                "before them have lost; with --calib.",
            ),
            click.option(
                "--requantize",
                is_flag=True,
                help="Store the factors of quantized weights as int8 again, or as MatMulNBits.",
            ),
            click.option(
                "--simplify",
                type=click.Choice(("onnxsim", "onnxscript", "none")),
                default=None,
                help="Simplifier to run first  [default: onnxsim].",
            ),
            click.option(
                "--config",
                type=click.Path(dir_okay=False),
                metavar="FILE",
                help="Pipeline as TOML: which passes, with which options. Options given here win.",
            ),
            mask_option,
            seed_option,
        )
    ):
        function = option(function)
    return function


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


def given(context: click.Context, names: Sequence[str]) -> dict[str, Any]:
    """The parameters among `names` that the user gave: defaults must not override a configuration file.

    The methods' own options come as {"options": {method: {option: text}}}.
    """
    from click.core import ParameterSource

    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    found = {
        name: context.params[name]
        for name in names
        if name in context.params and context.get_parameter_source(name) not in default
    }
    own: dict[str, dict[str, str]] = {}
    for name, value in context.params.items():
        method, separator, option = name.partition("__")
        if separator and value is not None:
            own.setdefault(method, {})[option] = value
    return {**found, "options": own} if own else found


DECOMPOSE = (
    "method",
    "options",
    "rank",
    "target",
    "layers",
    "rank_multiple",
    "include",
    "exclude",
    "must_save",
    "skip_below",
    "freeze_initializers",
    "repair",
    "requantize",
    "simplify",
    "mask",
)
