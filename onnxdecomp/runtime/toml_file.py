"""TOML files that a user has written."""

from __future__ import annotations

import tomllib
from pathlib import Path

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.regular_files import require_text


def read_toml(path: Path, what: str, called: str) -> dict[str, object]:
    """What a file holds.

    Args:
        path: The file.
        what: It is, "a configuration".
        called: What a file that cannot be read is called.

    Raises:
        UsageError: It is no regular file, cannot be read or is not valid TOML.
    """
    try:
        require_text(path, what)
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read {called}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
