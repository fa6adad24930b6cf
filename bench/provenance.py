"""Where a result comes from: what every file in bench/results/ says beside its numbers."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdecomp.runtime import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Date (UTC), command, machine and versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(
            ("python", "-m", f"bench.{Path(sys.argv[0]).stem}", *map(_named, sys.argv[1:]))
        ),
        "tool": environment.tool(),
        "device": {"cpu": environment.cpu(), "cores": environment.cores()},
        "versions": environment.versions(),
    }


def _named(argument: str) -> str:
    """An argument without the machine's own folders."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def write(name: str, result: Mapping[str, Any], table: str) -> None:
    """Write results/<name>.json and the table as results/<name>.md, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / f"{name}.md").write_text(table + "\n")
    print(table)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
