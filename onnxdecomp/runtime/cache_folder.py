"""Where what was measured or built once is kept on disk."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$ONNXDECOMP_CACHE, else $XDG_CACHE_HOME/onnxdecomp, else ~/.cache/onnxdecomp."""
    if own := os.environ.get("ONNXDECOMP_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxdecomp"
