"""Draw the folders of onnxdecomp/ and what they import: python docs/rooms.py writes docs/rooms.svg.

Floors are the contract of pyproject.toml that the tests hold; arrows are the imports of the code, left out
where they follow from others. With --check nothing is written, and the exit code is 1 where the figure is
out of date.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from generated import write_or_check

ROOT = Path(__file__).resolve().parent.parent
FIGURE = ROOT / "docs" / "rooms.svg"
WIDTH, HEIGHT, GAP, MARGIN = 160, 30, 28, 20
STYLE = (
    "text{font:13px sans-serif;fill:#1f2937}"
    "rect{fill:#eef2ff;stroke:#6366f1}path{stroke:#9ca3af;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}rect{fill:#1e1b4b}}"
)


def floors() -> list[list[str]]:
    """The folders of each floor, the top one first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "floors")
    rows = [[name.strip() for name in layer.split("|")] for layer in layers]
    return [kept for row in rows if (kept := [name for name in row if (ROOT / "onnxdecomp" / name).is_dir()])]


def imports(rooms: list[str]) -> dict[str, set[str]]:
    """Which folders each folder imports from, without those that it reaches through another one."""
    import grimp

    graph = grimp.build_graph("onnxdecomp")
    direct: dict[str, set[str]] = {room: set() for room in rooms}
    for module in graph.modules:
        room = module.split(".")[1] if "." in module else ""
        for target in graph.find_modules_directly_imported_by(module) if room in direct else ():
            other = target.split(".")[1] if "." in target else ""
            if other in direct and other != room:
                direct[room].add(other)
    return {
        room: {other for other in targets if not any(other in _below(direct, o) for o in targets - {other})}
        for room, targets in direct.items()
    }


def _below(direct: Mapping[str, set[str]], room: str) -> set[str]:
    found: set[str] = set()
    todo = [room]
    while todo:
        for other in direct[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found


def svg() -> str:
    """The figure."""
    rows = floors()
    widest = max(len(row) for row in rows)
    width = 2 * MARGIN + widest * WIDTH + (widest - 1) * GAP
    height = 2 * MARGIN + len(rows) * HEIGHT + (len(rows) - 1) * GAP
    corner = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * WIDTH - (len(row) - 1) * GAP) / 2
        for index, room in enumerate(row):
            corner[room] = (left + index * (WIDTH + GAP), MARGIN + level * (HEIGHT + GAP))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>The folders of onnxdecomp and what they import</title><style>{STYLE}</style>",
    ]
    for room, targets in imports(list(corner)).items():
        x, y = corner[room]
        for other in sorted(targets):
            to_x, to_y = corner[other]
            start, end = (x + WIDTH / 2, y + HEIGHT), (to_x + WIDTH / 2, to_y)
            bend = (start[1] + end[1]) / 2
            parts.append(
                f'<path d="M{start[0]:g},{start[1]:g} C{start[0]:g},{bend:g} {end[0]:g},{bend:g} '
                f'{end[0]:g},{end[1]:g}"/>'
            )
    for room, (x, y) in corner.items():
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{x + 12:g}" y="{y + 20:g}">{escape(room)}/</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(write_or_check({FIGURE: svg()}))
