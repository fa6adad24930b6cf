"""The decompositions, by name; adding one is one file here and one line in METHODS."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from onnxdecomp.core.layer import Layer
from onnxdecomp.core.options import convert, default_of, from_text, suggest
from onnxdecomp.core.options import describe as describe_type
from onnxdecomp.decompositions.base import Method
from onnxdecomp.errors import UsageError

METHODS: Mapping[str, str] = {
    "svd": "onnxdecomp.decompositions.svd:Svd",
    "tucker": "onnxdecomp.decompositions.tucker:Tucker",
    "cp": "onnxdecomp.decompositions.cp:Cp",
    "tt": "onnxdecomp.decompositions.tt:Tt",
    "tr": "onnxdecomp.decompositions.tr:Tr",
    "ht": "onnxdecomp.decompositions.ht:Ht",
    "spatial": "onnxdecomp.decompositions.spatial:Spatial",
    "kronecker": "onnxdecomp.decompositions.kronecker:Kronecker",
    "btt": "onnxdecomp.decompositions.btt:Btt",
    "tproduct": "onnxdecomp.decompositions.tproduct:Tproduct",
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


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a method: a field of its class.

    Attributes:
        name, default: The field's.
        type: Its type.
        help: The first sentence that the class's docstring has on it.
    """

    name: str
    type: Any
    default: object
    help: str


def options(name: str) -> tuple[Option, ...]:
    """The options of the method of that name."""
    method = cls(name)
    hints = typing.get_type_hints(method)
    text = inspect.getdoc(method) or ""
    return tuple(
        Option(f.name, hints[f.name], default_of(f), _sentence(text, f.name))
        for f in dataclasses.fields(method)  # type: ignore[arg-type]
    )


def _sentence(docstring: str, field: str) -> str:
    """The first sentence on a field in the Attributes section of a docstring."""
    found = re.search(rf"^    {field}: (.*?)(?=^    \w+: |^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    words = " ".join(found[1].split()) if found else ""
    return re.split(r"(?<=\.)\s(?=[A-Z])", words)[0].rstrip(".")


def get(name: str, **values: Any) -> Method:
    """The method of that name with these options: values, or the text that a command line has for them.

    Raises:
        UsageError: No such method, or the method has no such option, or not this value for it.
    """
    known = {option.name: option.type for option in options(name)}
    arguments: dict[str, object] = {}
    for option, value in values.items():
        if option not in known:
            raise UsageError(f"method {name} has no option {option!r}{suggest(option, known)}")
        hint = known[option]
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
    channel form of a 1x1 convolution's tensor train.
    """
    matrix = layer.conv is None or layer.is_matrix
    channel_train = method.name == "tt" and getattr(method, "form", "") == "channel"
    if (method.name in ("tucker", "cp") and matrix) or (channel_train and matrix and layer.conv):
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
            "options": {option.name: option.default for option in options(name)},
            "paper": method.paper,
        }
        for name, method in ((name, cls(name)) for name in METHODS)
    ]
