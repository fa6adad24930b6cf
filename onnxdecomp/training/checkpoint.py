"""Checkpoints: all that a run needs to go on after it was killed, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.output_path import landing
from onnxdecomp.runtime.regular_files import require_regular
from onnxdecomp.training.samples import Samples
from onnxdecomp.training.settings import Settings


def digest(samples: Iterable[Samples]) -> str:
    """SHA-256 of all numbers and labels, in their order: the same settings on other data are another run."""
    found = hashlib.sha256()
    for part in samples:
        for feed in part.feeds:
            for name, array in feed.items():
                found.update(repr((name, array.dtype.str, array.shape)).encode())
                text = array.dtype.hasobject
                found.update(repr(array.tolist()).encode() if text else np.ascontiguousarray(array).data)
        labels = part.labels
        found.update(b"none" if labels is None else repr(labels.shape).encode() + labels.tobytes())
    return found.hexdigest()


def fingerprint(settings: Settings, **about: Any) -> str:
    """Tells whether a checkpoint is of the same run."""
    text = json.dumps({**asdict(settings), **about}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, state: Mapping[str, Any], mark: str) -> None:
    """Write a checkpoint beside its place and move it there.

    Raises:
        UsageError: The place cannot be written to.
    """
    path = landing(path)
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
    require_regular(path, "a checkpoint", UsageError)
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
