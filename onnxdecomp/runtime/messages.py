"""ONNX Runtime's messages as people read them."""

from __future__ import annotations

import re

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SIGNATURE = r"(?: [\w:&*<>,~ ]*?[\w>~]\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])?)?"
_SOURCE = re.compile(rf"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+{_SIGNATURE}\s*")
_WHERE = re.compile(r"\s*; (?:hostname|file|line|expr)=[^;]*")


def one_line(error: BaseException) -> str:
    """The message without codes and places in ONNX Runtime's source, on one line of bounded length."""
    text = str(error).strip() or type(error).__name__
    for pattern in (_CODE, _SOURCE, _WHERE):
        text = pattern.sub("", text)
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."
