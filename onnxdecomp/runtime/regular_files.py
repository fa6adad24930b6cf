"""Model files are regular files: a pipe is read once only, and a device may never end."""

from __future__ import annotations

from pathlib import Path

from onnxdecomp.errors import ModelError


def require_regular(model: Path) -> None:
    """Refuse pipes and devices, before anything waits for them; what is missing is another's to say.

    Raises:
        ModelError: There is something else than a regular file or a folder.
    """
    if model.exists() and not model.is_file() and not model.is_dir():
        raise ModelError(f"{model}: a model must be a regular file, no pipe or device")
