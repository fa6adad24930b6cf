"""The picture of docs/benchmarks/widths.md: what is lost at how many times fewer MACs, by way.

`python -m bench.pages` writes it, docs/benchmarks/joint-curves.svg, from bench/results/joint.json: a panel
for each model with at least two goals. Right is fewer MACs, up is less lost; bars are the 95 % intervals of
the paired differences from the original. It follows the reader's light or dark.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.joint import LESS_IS_BETTER
from bench.provenance import RESULTS, ROOT

FILE = ROOT / "docs" / "benchmarks" / "joint-curves.svg"
WAYS = ("chains", "widths", "both", "widths, then int8")

_ACROSS, _WIDTH, _HEIGHT = 3, 300, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 40
_LEGEND, _LINE = 30, 12
_TICKS, _STEPS = 5, (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_STYLE = (
    "text{font:13px sans-serif;fill:#1f2937}.small{font-size:11px;fill:#6b7280}"
    "line{stroke:#d1d5db}path{fill:none;stroke-width:2}"
    ".c0{stroke:#6b7280}.c1{stroke:#0d9488}.c2{stroke:#4f46e5}.c3{stroke:#d97706}circle{stroke:none}"
    "circle.c0{fill:#6b7280}circle.c1{fill:#0d9488}circle.c2{fill:#4f46e5}circle.c3{fill:#d97706}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.small{fill:#9ca3af}line{stroke:#374151}"
    ".c2{stroke:#a5b4fc}circle.c2{fill:#a5b4fc}}"
)


@dataclass(frozen=True)
class Point:
    """A file: times fewer MACs, what it gains (less than 0: loses), and the interval of that, if known."""

    fewer: float
    gain: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """A model's curves by way, and what the gain is measured in."""

    model: str
    unit: str
    curves: Mapping[str, Sequence[Point]]


def panels(rows: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    """Of each model with two goals or more that make fewer MACs, in the order of the rows."""
    for model in dict.fromkeys(row["model"] for row in rows):
        own = _of_one_kind([row for row in rows if row["model"] == model])
        macs = {(row["goal"], row["way"]): row["fewer_macs"] for row in own if row.get("fewer_macs")}
        found: dict[str, list[Point]] = {}
        for row in own:
            way = row["way"] + (", then int8" if row["int8"] else "")
            fewer = macs.get((row["goal"], row["way"]), 1.0)
            if way in WAYS and "metric" in row and fewer > 1.05:
                found.setdefault(way, []).append(_point(row, fewer))
        curves = {way: sorted(found[way], key=lambda one: one.fewer) for way in WAYS if way in found}
        if any(len(points) > 1 for points in curves.values()):
            yield Panel(model, _unit(own), curves)


def _of_one_kind(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the goals that there are most of: on latency, on MACs, or on the error."""
    kinds = Counter(row["goal"].partition("=")[0] for row in rows if row["goal"])
    kind = kinds.most_common(1)[0][0] if kinds else ""
    return [row for row in rows if row["goal"].partition("=")[0] in ("", kind)]


def svg(shown: Sequence[Panel]) -> str:
    """The picture."""
    down = -(-len(shown) // _ACROSS)
    width, height = _ACROSS * _WIDTH, down * _HEIGHT + _LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>What is lost at how many times fewer MACs</title><style>{_STYLE}</style>",
    ]
    for number, way in enumerate(WAYS):
        x = _LEFT + 190 * number
        parts.append(f'<circle class="c{number}" cx="{x}" cy="16" r="5"/>{_text(x + 10, 20, way)}')
    for number, panel in enumerate(shown):
        at = number % _ACROSS * _WIDTH, number // _ACROSS * _HEIGHT + _LEGEND
        parts += [f'<g transform="translate({at[0]} {at[1]})">', *_drawn(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def drawn(results: Path = RESULTS) -> str:
    """The picture of what was measured last."""
    return svg([*panels(json.loads((results / "joint.json").read_text(encoding="utf-8"))["rows"])])


def _point(row: Mapping[str, Any], fewer: float) -> Point:
    if row["change"] is None:
        return Point(fewer, -row["rel_l2"])
    scale = _scale(row)
    low, mean, high = (scale * row["change"][key] for key in ("low", "mean", "high"))
    return Point(fewer, mean, (min(low, high), max(low, high)))


def _scale(row: Mapping[str, Any]) -> float:
    """Shares are shown in points, and what is better the less it is turned around."""
    name, value = next(iter(row["metric"].items()))
    sign = -1.0 if name in LESS_IS_BETTER else 1.0
    return 100.0 * sign if 0 <= value <= 1 else sign


def _unit(rows: Sequence[Mapping[str, Any]]) -> str:
    row = next(row for row in rows if "metric" in row)
    if row["change"] is None:
        return "relative error, less than 0"
    name = next(iter(row["metric"]))
    return f"{'points of ' if abs(_scale(row)) > 1 else ''}{name}"


def _drawn(panel: Panel) -> Iterator[str]:
    """One panel, its corner at the origin."""
    points = [point for curve in panel.curves.values() for point in curve]
    ends: list[float] = [0.0, *(value for point in points for value in (point.gain, *(point.interval or ())))]
    low, high = min(ends), max(ends)
    most = 1 + 1.08 * (max(point.fewer for point in points) - 1)

    def x(fewer: float) -> float:
        return _LEFT + (fewer - 1) / (most - 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(gain: float) -> float:
        return _TOP + (high - gain) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    yield _text(_LEFT, 14, panel.model) + _text(_LEFT, 28, panel.unit, "small")
    apart = [gain for gain in (low, high) if abs(y(gain) - y(0.0)) > _LINE]
    for gain in (0.0, *apart):
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(gain):.1f}" y2="{y(gain):.1f}"/>'
        yield _text(_LEFT - 6, y(gain) + 4, f"{gain:.2g}", "small", "end")
    step = next(step for step in _STEPS if (most - 1) / step <= _TICKS)
    for number in range(int((most - 1) / step) + 1):
        fewer = 1 + number * step
        yield _text(x(fewer), _HEIGHT - _BOTTOM + 18, f"{fewer:g}x", "small", "middle")
    for way, curve in panel.curves.items():
        kind = f"c{WAYS.index(way)}"
        line = " L".join(f"{x(one.fewer):.1f},{y(one.gain):.1f}" for one in curve)
        yield f'<path class="{kind}" d="M{line}"/>'
        for one in curve:
            if one.interval is not None:
                low_end, high_end = map(y, one.interval)
                bar = f"M{x(one.fewer):.1f},{low_end:.1f} V{high_end:.1f}"
                yield f'<path class="{kind}" stroke-opacity="0.4" d="{bar}"/>'
            yield f'<circle class="{kind}" cx="{x(one.fewer):.1f}" cy="{y(one.gain):.1f}" r="4"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
