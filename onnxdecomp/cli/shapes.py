"""Shapes of inputs, and names with values, as the command line spells them."""

from __future__ import annotations

from collections.abc import Iterable


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


def parse_pairs(texts: Iterable[str], flag: str = "--provider-option") -> dict[str, str]:
    """{"prefer_nhwc": "1"} from ["prefer_nhwc=1"].

    Raises:
        UsageError: A text is not of that form.
    """
    from onnxdecomp.errors import UsageError

    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} {text!r} is not of the form NAME=VALUE")
        pairs[name] = value
    return pairs
