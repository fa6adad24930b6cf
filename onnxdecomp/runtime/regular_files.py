"""Files that are read are regular files: a named pipe may never be written to, and a device may never end."""

from __future__ import annotations

from pathlib import Path

from onnxdecomp.errors import ModelError, OnnxDecompError, UsageError

_OPENED_BY_SHELL = (Path("/dev/fd"), Path("/proc/self/fd"))
"""Where a shell has its pipes, which somebody does write to."""


def require_regular(path: Path, what: str = "a model", error: type[OnnxDecompError] = ModelError) -> None:
    """Refuse pipes and devices, before anything waits for them; what is missing is another's to say.

    Raises:
        OnnxDecompError: There is something else than a regular file or a folder; of the kind of `error`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise error(f"{path}: {what} must be a regular file, no pipe or device")


def require_text(path: Path, what: str) -> None:
    """Refuse what `require_regular` refuses, but for a shell's pipes: a text is read once only.

    Raises:
        UsageError: There is something else than a regular file, a folder, or such a pipe.
    """
    shells = path == Path("/dev/stdin") or path.parent in _OPENED_BY_SHELL
    if not (shells and path.is_fifo()):
        require_regular(path, what, UsageError)
