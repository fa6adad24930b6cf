"""--json: the option that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def json_option(what: str) -> Callable[[F], F]:
    """--json FILE|-, checked before the work whose result it is to hold.

    Args:
        what: What is written, for the help.
    """

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value not in (None, "-"):
            _check_writable(Path(value))
        return value

    return click.option(
        "--json",
        "json_target",
        metavar="FILE|-",
        callback=check,
        help=f"Write {what} as JSON to FILE, or to stdout in place of the text.",
    )


def _check_writable(path: Path) -> None:
    from onnxdecomp.errors import UsageError

    if path.is_dir():
        raise UsageError(f"{path}: this is a folder; name the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {str(path.parent)!r}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the folder {str(path.parent)!r} is not writable")
    if path.suffix == ".onnx":
        raise UsageError(f"{path}: --json writes JSON; -o names the model to write")
