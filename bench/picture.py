"""The picture of README.md: speed against loss of one model in all ways of bench/peers.py.

`python -m bench.pages` writes it, docs/benchmarks/speed-against-loss.svg, from bench/results/peers.json.
Right is faster, by a logarithmic scale that the fastest way fits on; up is less lost, by the scale of a
hyperbolic sine, so that tenths of a point and tens of points are both seen. It follows the reader's light or
dark.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.provenance import RESULTS, ROOT

FILE = ROOT / "docs" / "benchmarks" / "speed-against-loss.svg"
MODEL = "vgg16_half_cifar10"
TITLE = "VGG-16 of half width, CIFAR-10: one CPU thread, one image at a time"
OURS = "onnxdecomp"

_WIDTH, _HEIGHT = 840, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 290, 46, 58
_LEGEND = _WIDTH - _RIGHT + 36
_LOSSES = (0, 1, 3, 10, 30)
_MARGIN = 1.1
"""Room beside the slowest and the fastest way, as a factor."""
_SCALE = 0.7
"""Points of loss up to which the scale is about even."""

_STYLE = (
    "text{font:14px sans-serif;fill:#1f2937}.small{font-size:12px;fill:#6b7280}"
    ".number{font-size:11px;fill:#fff}line{stroke:#d1d5db}.ours{fill:#4f46e5}.other{fill:#6b7280}.bar{stroke-width:2;stroke:#9ca3af}"
    ".bar.ours{stroke:#4f46e5}text.ours{font-weight:600}text.other{fill:#4b5563}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.small{fill:#9ca3af}line{stroke:#374151}"
    ".ours{fill:#a5b4fc}.bar.ours{stroke:#a5b4fc}.other{fill:#9ca3af}text.other{fill:#d1d5db}text.number{fill:#111827}}"
)


@dataclass(frozen=True)
class Point:
    """A way: how many times as fast as the original, and the points of top-1 that it loses."""

    way: str
    speed: float
    loss: float
    interval: tuple[float, float] | None
    """Of the loss; None where it was not measured."""

    @property
    def kind(self) -> str:
        return "ours" if self.way.startswith(OURS) else "other"


def points(rows: list[dict[str, Any]], model: str = MODEL) -> list[Point]:
    """Every way that made a file which was timed and judged."""
    found = []
    for row in rows:
        if (
            row["way"] == "original"
            or row["model"] != model
            or row.get("failed")
            or not row.get("latency_cpu")
            or "task" not in row
        ):
            continue
        (timed,) = [one for one in row["latency_cpu"] if (one["threads"], one["batch"]) == (1, 1)]
        change = row["task"].get("change")
        loss = row["task"]["original"]["top1"] - row["task"]["metric"]["top1"]
        interval = None if change is None else (-100 * change["high"], -100 * change["low"])
        found.append(Point(row["way"], timed["speed_up"], 100 * loss, interval))
    return found


def svg(shown: list[Point]) -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(TITLE)}</title><style>{_STYLE}</style>",
        f'<text x="{_LEFT}" y="24">{escape(TITLE)}</text>',
    ]
    low, high = _speeds(shown)
    for speed in (2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)):
        x = _x(speed, low, high)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(_text(x, _HEIGHT - _BOTTOM + 20, f"{speed:g}x", "small", "middle"))
    for loss in _LOSSES:
        y = _y(loss)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"-{loss}" if loss else "0", "small", "end"))
    parts.append(_text(_LEFT, _HEIGHT - 14, "times as fast as the original file", "small", "start"))
    parts.append(
        f'<text class="small" text-anchor="end" transform="translate(18 {_TOP}) rotate(-90)">'
        "points of top-1 accuracy</text>"
    )
    # The fastest first, which is the order of the legend.
    for number, point in enumerate(sorted(shown, key=lambda point: -point.speed), start=1):
        x, y, place = _x(point.speed, low, high), _y(point.loss), _TOP + 36 * number - 24
        if point.interval is not None:
            top, bottom = map(_y, point.interval)
            parts.append(f'<path class="bar {point.kind}" d="M{x:.1f},{top:.1f} V{bottom:.1f}"/>')
        for at, height in ((x, y), (_LEGEND, place)):
            parts.append(f'<circle class="{point.kind}" cx="{at:.1f}" cy="{height:.1f}" r="9"/>')
            parts.append(_text(at, height + 4, str(number), "number", "middle"))
        parts.append(_text(_LEGEND + 16, place - 1, point.way, point.kind, "start"))
        parts.append(_text(_LEGEND + 16, place + 14, _told(point), "small", "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _told(point: Point) -> str:
    known = "" if point.interval is None else f" [{-point.interval[1]:+.2f}, {-point.interval[0]:+.2f}]"
    return f"{point.speed:.2f}x, {0.0 - point.loss:+.2f} points{known}"


def _speeds(shown: list[Point]) -> tuple[float, float]:
    """The ends of the scale of speeds."""
    speeds = [1.0, *(point.speed for point in shown)]
    return min(speeds) / _MARGIN, max(speeds) * _MARGIN


def _x(speed: float, low: float, high: float) -> float:
    return _LEFT + math.log(speed / low) / math.log(high / low) * (_WIDTH - _LEFT - _RIGHT)


def _y(loss: float) -> float:
    low, high = (math.asinh(value / _SCALE) for value in (-0.5, 40))
    return _TOP + (math.asinh(loss / _SCALE) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def drawn(results: Path = RESULTS) -> str:
    """The picture of what was measured last."""
    return svg(points(json.loads((results / "peers.json").read_text(encoding="utf-8"))["rows"]))
