"""Options that several commands share: the inputs that models run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from onnxdecomp.data.preprocess import NAMES

F = TypeVar("F", bound=Callable[..., Any])


seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="N", show_default=True, help="Of all randomness."
)
input_shape_option = click.option(
    "--input-shape",
    multiple=True,
    metavar="NAME:1x3x224x224",
    help="Shape of an input whose dimensions the model leaves free. Repeatable.",
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
    help="Input that is 0 where a position is padding, which counts neither in fits nor in errors. Several "
    "with commas; none: no input is  [default: attention_mask, input_mask and their like].",
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


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """{"x": (1, 3, 224, 224)} from ["x:1x3x224x224"]; names may hold colons, a scalar is "x:".

    Raises:
        UsageError: A text is not of that form.
    """
    from onnxdecomp.errors import UsageError

    shapes = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.replace(",", "x").split("x") if size)
        except ValueError:
            colon = ""
        if not colon or not name:
            raise UsageError(f"--input-shape {text!r} is not of the form NAME:1x3x224x224")
        shapes[name] = shape
    return shapes
