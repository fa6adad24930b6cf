"""Files that scripts of this folder make: written, or with --check compared with what is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def write_or_check(texts: Mapping[Path, str]) -> int:
    """Write the files; with --check on the command line 1 where one of them is out of date, else 0."""
    if "--check" in sys.argv[1:]:
        return int(
            any(not file.is_file() or file.read_text(encoding="utf-8") != texts[file] for file in texts)
        )
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    return 0
