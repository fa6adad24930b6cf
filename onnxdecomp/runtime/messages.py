"""ONNX Runtime's messages as people read them."""

from __future__ import annotations

import re

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"^\S+\.(?:cc|cpp|cu|h):\d+ [^(]*\([^)]*\)\s*(?:const )?")


def one_line(error: BaseException) -> str:
    """The message without its code and the place in ONNX Runtime's source, on one line of bounded length."""
    text = str(error).strip() or type(error).__name__
    line = " ".join(_SOURCE.sub("", _CODE.sub("", text)).split())
    return line if len(line) <= 300 else line[:297] + "..."
