"""Inputs that users give: files of arrays, images, ONNX test data, their own Python, as feeds of a model.

`decode` is what users call in their own Python (docs/guides/decoders.md); it is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxdecomp.data.decoding import decode

__all__ = ["decode"]


def __getattr__(name: str) -> Any:
    if name == "decode":
        from onnxdecomp.data.decoding import decode

        return decode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
