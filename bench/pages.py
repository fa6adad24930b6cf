"""Put the generated parts into README.md and the pages of docs/: results of bench/ and what the code says.

    python -m bench.pages

Between `<!-- bench/results/NAME.md -->` and `<!-- end -->` stands that file
and below it where its numbers come from, between `<!-- methods -->` and `<!-- end -->`
the table of what `onnxdecomp methods` lists. A test holds the pages against both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import curves, picture
from bench.provenance import RESULTS, ROOT
from onnxdecomp.decompositions.registry import describe

_SECTION = re.compile(
    r"(<!-- (?P<what>methods|bench/results/(?P<name>[\w.]+)\.md) -->\n).*?(<!-- end -->)", re.DOTALL
)


def pages() -> list[Path]:
    """README.md and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def methods_table() -> str:
    """The methods as a Markdown table."""
    rows = ["| method | what it does | layers | source |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{method['name']}` | {method['summary']} | {', '.join(method['takes'])} | {method['paper']} |"
        for method in describe()
    ]
    return "\n".join(rows) + "\n"


def result(name: str) -> str:
    """A result's table, and where it comes from."""
    table = (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip()
    # The page has a title of its own.
    table = re.sub(r"\A# .*\n+", "", table)
    return f"{table}\n\n{origin(name)}\n"


def origin(name: str) -> str:
    """A sentence with the date, the processor and the versions of a result, as far as its file says them."""
    file = RESULTS / f"{name}.json"
    # Some results stand in the file of another one: frontier_ranks in that of frontier.
    file = file if file.is_file() else RESULTS / f"{name.rpartition('_')[0]}.json"
    found = list(_origins(json.loads(file.read_text(encoding="utf-8"))))
    dates = sorted({one["date"] for one in found})
    if not dates:
        return f"Source: `bench/results/{file.name}`, which says no date and no device."
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    cpus = sorted({f"{one['device']['cpu']}, {one['device']['cores']} cores" for one in found})
    runtimes = sorted({_runtime(one["versions"]) for one in found})
    return f"Source: `bench/results/{file.name}`; {when}; {'; '.join(cpus)}; {', '.join(runtimes)}."


def _origins(value: Any) -> Iterator[dict[str, Any]]:
    """What bench/provenance.py wrote, of the whole file or of its parts."""
    if isinstance(value, dict):
        if {"date", "device", "versions"} <= value.keys():
            yield value
        for part in value.values():
            yield from _origins(part)
    elif isinstance(value, list):
        for part in value:
            yield from _origins(part)


def _runtime(versions: dict[str, str]) -> str:
    runtime = versions.get("onnxruntime-gpu") or versions.get("onnxruntime") or "of an unknown version"
    return f"ONNX Runtime {runtime}"


def filled(text: str) -> str:
    """A page's text with every generated section as it should be."""

    def section(found: re.Match[str]) -> str:
        content = methods_table() if found["what"] == "methods" else result(found["name"])
        return f"{found[1]}\n{content.strip()}\n\n{found[4]}"

    return _SECTION.sub(section, text)


def main() -> None:
    """Rewrite the pages, and the pictures."""
    for own in (picture, curves):
        own.FILE.write_text(own.drawn(), encoding="utf-8")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
