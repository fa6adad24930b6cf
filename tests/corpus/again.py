"""Compress in a process of its own: `python -m tests.corpus.again jobs.json`.

With another hash seed, sets are ordered differently than in the process that starts it: bytes that depend
on such an order differ. A job is a list of the model, the file to write and the options of `compress`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.workflow import compress


def run(model: str, target: str, options: dict[str, Any]) -> None:
    """Compress without verification and timing; what is refused leaves no file."""
    Path(target).parent.mkdir(parents=True)
    try:
        compress.compress(model, target, verify=False, bench=False, **options)
    except OnnxDecompError as error:
        print(f"{target}: {error}", file=sys.stderr)


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(*job)
