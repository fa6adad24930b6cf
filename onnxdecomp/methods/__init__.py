"""The decompositions, by name; adding one is one file here and one line in METHODS."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from onnxdecomp.errors import UsageError
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


def get(name: str, **options: Any) -> Method:
    """The method of that name with these options (the fields of its class).

    Raises:
        UsageError: No such method, or the method has no such option.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    known = [f.name for f in dataclasses.fields(cls)]
    for option in options:
        if option not in known:
            raise UsageError(f"method {name} has no option {option!r}: it has {', '.join(known) or 'none'}")
    method: Method = cls(**options)
    return method


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
    described = []
    for name in METHODS:
        method = get(name)
        options = {field.name: field.default for field in dataclasses.fields(method)}  # type: ignore[arg-type]
        described.append(
            {
                "name": name,
                "summary": method.summary,
                "ranks": list(method.rank_names),
                "takes": list(method.takes),
                "options": options,
                "paper": method.paper,
            }
        )
    return described
