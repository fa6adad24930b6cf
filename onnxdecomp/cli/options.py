"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from onnxdecomp.cli.inputs import seed_option

F = TypeVar("F", bound=Callable[..., Any])

SAVINGS = ("macs", "params", "both", "either", "none")


def decomposition(function: F) -> F:
    """The options that say what is decomposed, and how: of compress and inspect."""
    for option in reversed(
        (
            click.option(
                "--method",
                default="tucker",
                show_default=True,
                help="Decomposition; see 'onnxdecomp methods'.",
            ),
            click.option(
                "--rank",
                default="0.5",
                show_default=True,
                metavar="SPEC",
                help="16 | 16,32 | 0.5 (of full) | energy=0.95 | error=0.05 | evbmf.",
            ),
            click.option(
                "--rank-multiple",
                default="1",
                show_default=True,
                metavar="N|auto",
                help="Round ranks to multiples of N; auto: of what the provider's kernels block by.",
            ),
            click.option(
                "--include",
                multiple=True,
                metavar="PATTERN",
                help="Only layers with such names; repeatable.",
            ),
            click.option(
                "--exclude",
                multiple=True,
                metavar="PATTERN",
                help="No layer with such a name; repeatable.",
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
            seed_option,
        )
    ):
        function = option(function)
    return function


def given(context: click.Context, names: Sequence[str]) -> dict[str, Any]:
    """The parameters among `names` that the user gave: defaults must not override a configuration file."""
    from click.core import ParameterSource

    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return {name: context.params[name] for name in names if context.get_parameter_source(name) not in default}


DECOMPOSE = (
    "method",
    "rank",
    "rank_multiple",
    "include",
    "exclude",
    "must_save",
    "skip_below",
    "freeze_initializers",
    "simplify",
)
