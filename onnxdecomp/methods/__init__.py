"""The decompositions, by name; adding one is one file here and one line in METHODS."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.fields import convert, default_of, from_text, suggest
from onnxdecomp.fields import describe as describe_type
from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Method

METHODS: Mapping[str, str] = {
    "svd": "onnxdecomp.methods.svd:Svd",
    "tucker": "onnxdecomp.methods.tucker:Tucker",
    "cp": "onnxdecomp.methods.cp:Cp",
    "tt": "onnxdecomp.methods.tt:Tt",
}
"""Name to "module:Class"; imported on use."""


def names() -> tuple[str, ...]:
    """The methods' names in the order in which they are listed."""
    return tuple(METHODS)


def cls(name: str) -> type[Method]:
    """The class of the method of that name, a frozen dataclass.

    Raises:
        UsageError: No such method.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}{suggest(name, METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found


def options(name: str) -> dict[str, tuple[Any, object]]:
    """A method's options: name to (type, default)."""
    method = cls(name)
    hints = typing.get_type_hints(method)
    return {f.name: (hints[f.name], default_of(f)) for f in dataclasses.fields(method)}  # type: ignore[arg-type]


def get(name: str, **values: Any) -> Method:
    """The method of that name with these options: values, or the text that a command line has for them.

    Raises:
        UsageError: No such method, or the method has no such option, or not this value for it.
    """
    known = options(name)
    arguments: dict[str, object] = {}
    for option, value in values.items():
        if option not in known:
            raise UsageError(f"method {name} has no option {option!r}{suggest(option, known)}")
        hint = known[option][0]
        try:
            arguments[option] = from_text(value, hint) if isinstance(value, str) else convert(value, hint)
        except ValueError:
            expected = describe_type(hint)
            raise UsageError(f"{option} of method {name} must be {expected}, not {value!r}") from None
    try:
        return cls(name)(**arguments)
    except ValueError as error:
        raise UsageError(f"method {name}: {error}") from error


def for_layer(method: Method, layer: Layer) -> Method:
    """The method that does `method`'s work on this layer.

    Of a matrix (Gemm, MatMul, a 1x1 convolution, a stack) Tucker and CP are its SVD, and so is the
    tensor train of a 1x1 convolution.
    """
    matrix = layer.conv is None or layer.is_matrix
    if (method.name in ("tucker", "cp") and matrix) or (method.name == "tt" and matrix and layer.conv):
        return get("svd")
    return method


def describe() -> list[dict[str, Any]]:
    """What every method is, as plain values: name, summary, ranks, layers, options, paper."""
    return [
        {
            "name": name,
            "summary": method.summary,
            "ranks": list(method.rank_names),
            "takes": list(method.takes),
            "options": {option: default for option, (_, default) in options(name).items()},
            "paper": method.paper,
        }
        for name, method in ((name, cls(name)) for name in METHODS)
    ]
