"""Checkpoints: all that a run needs to go on after it was killed, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from onnxdecomp.errors import UsageError
from onnxdecomp.training.settings import Settings


def fingerprint(settings: Settings, **about: Any) -> str:
    """Tells whether a checkpoint is of the same run."""
    text = json.dumps({**asdict(settings), **about}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, state: Mapping[str, Any], mark: str) -> None:
    """Write a checkpoint beside its place and move it there.

    Raises:
        UsageError: The place cannot be written to.
    """
    passing = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({"mark": mark, **state}, passing)
        passing.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write the checkpoint {path}: {error.strerror or error}") from error
    finally:
        passing.unlink(missing_ok=True)


def read(path: Path, mark: str) -> dict[str, Any] | None:
    """The state in a checkpoint, or None where there is no file.

    Raises:
        UsageError: The file is of another run, or no checkpoint.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["mark"]
    except Exception as error:  # torch raises what unpickling raises
        raise UsageError(f"{path} is no checkpoint of a training run: remove it, or name another") from error
    if found != mark:
        raise UsageError(
            f"the checkpoint {path} is of a run with another model, data or settings: remove it, or name "
            "another"
        )
    return state
