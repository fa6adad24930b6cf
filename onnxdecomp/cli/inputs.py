"""Options that several commands share: the inputs that models run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from onnxdecomp.core.options import help_of
from onnxdecomp.data.preprocess import NAMES
from onnxdecomp.workflow.config import CompressConfig

F = TypeVar("F", bound=Callable[..., Any])


_HELP = {name: help_of(CompressConfig, name) for name in ("seed", "input_shapes", "mask")}

seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    show_default=True,
    help=f"{_HELP['seed']}.",
)
input_shape_option = click.option(
    "--input-shape", multiple=True, metavar="NAME:1x3x224x224", help=f"{_HELP['input_shapes']}."
)
preprocess_option = click.option(
    "--preprocess",
    metavar="NAME",
    help=f"How images in the data become inputs: {' | '.join(NAMES)}; with changes such as "
    "imagenet:size=288:crop=1, or mean=0.5:std=0.25:bgr.",
)


mask_option = click.option(
    "--mask",
    default="",
    metavar="NAME",
    help=f"{_HELP['mask']}  [default: attention_mask, input_mask and their like].",
)


metric_option = click.option(
    "--metric",
    metavar="NAME",
    help="A metric of the task to measure on DATA too: top1 | psnr | spearman | token-agreement | kl | wer | "
    "cer, or a function of yours, module:callable or file.py:callable (docs/guides/metrics.md).",
)


def data_options(function: F) -> F:
    """--data, --input-shape, --mask and --seed."""
    for option in (
        seed_option,
        mask_option,
        input_shape_option,
        click.option(
            "--data",
            metavar="DATA",
            help="Inputs: a .npz file, a folder of them, ONNX test data (test_data_set_*), or "
            "module:callable.",
        ),
    ):
        function = option(function)
    return function
