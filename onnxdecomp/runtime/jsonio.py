"""JSON in and out of values: dataclasses, NumPy numbers, paths; NaN and infinities become null."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.output_path import is_special, landing
from onnxdecomp.runtime.regular_files import require_text

LEFT_OUT = "left_out"
"""In the metadata of a dataclass's field: the JSON has no key where the value is None."""


Document: TypeAlias = dict[str, Any]
"""A record as JSON values, for readers that know what stands where."""


def plain(value: object, *, finite: bool = True) -> Any:
    """`value` as dictionaries, lists, strings, finite numbers, booleans and None.

    Args:
        value: Of what the module's docstring lists, in any depth.
        finite: Whether numbers that are not finite become None, as JSON wants it; else they stay.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() | np.floating():
            return float(value) if math.isfinite(value) or not finite else None
        case np.integer() | np.bool_():
            return value.item()
        case np.ndarray():
            return plain(value.tolist(), finite=finite)
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return {str(key): plain(item, finite=finite) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            held = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
            there = {f.name: v for f, v in held if v is not None or not f.metadata.get(LEFT_OUT)}
            return plain(there, finite=finite)
        case Iterable():
            return [plain(item, finite=finite) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dump(value: object, target: str | Path) -> None:
    """Write `value` as JSON to the file `target`, all or nothing, or to stdout if `target` is "-".

    Raises:
        UsageError: The file cannot be written.
    """
    write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n", target)


def read(source: str | Path) -> Any:
    """The JSON value in the file `source`, or on stdin if it is "-".

    Raises:
        UsageError: The file cannot be read, or is no JSON.
    """
    try:
        return json.loads(sys.stdin.read() if str(source) == "-" else _text(Path(source)))
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is no JSON: {error}") from error


def _text(path: Path) -> str:
    require_text(path, "what is read as JSON")
    return path.read_text(encoding="utf-8")


def write(text: str, target: str | Path) -> None:
    """Write `text` to the file `target`, all or nothing, or to stdout if `target` is "-".

    Raises:
        UsageError: The file cannot be written.
    """
    if str(target) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(target)
    if is_special(path):
        if _is_stdout(path):  # opened anew, the two would write over each other
            write(text, "-")
            return
        # A pipe or a device is written to: a file in its place would end it.
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        return
    path = landing(path)
    try:
        # Not tempfile's: those files are for their owner only, whatever the umask says.
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    temporary_files.expect(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)  # noqa: PTH105
    except BaseException as error:
        name.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        raise
    finally:
        temporary_files.forget(name)


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False
