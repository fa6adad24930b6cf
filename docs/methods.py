"""docs/methods/: a page and a drawing for each method, from what the methods say of themselves.

`python docs/methods.py` writes them anew; `--check` ends with 1 where one is out of date. What a method
computes, and when it pays, stands in docs/methods/notes.toml.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import joint_drawings
import numpy as np
from generated import write_or_check

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import ConvSpec, Layer
from onnxdecomp.core.steps.base import Step, WeightedStep
from onnxdecomp.decompositions.base import Refusal, outline
from onnxdecomp.decompositions.registry import describe, get, is_joint, options

FOLDER = Path(__file__).with_name("methods")
SHARE = 0.25
"""Of the full ranks, in the drawings."""

_BOX, _GAP, _HEIGHT = 150, 26, 52


def pages() -> dict[Path, str]:
    """The text of every file."""
    notes = tomllib.loads((FOLDER / "notes.toml").read_text(encoding="utf-8"))
    found: dict[Path, str] = {}
    for method in describe():
        name = method["name"]
        drawing = joint_drawings.drawing(name) if name in joint_drawings.METHODS else drawn(name)
        if drawing is not None:
            found[FOLDER / f"{name}.svg"] = drawing
        found[FOLDER / f"{name}.md"] = page(method, notes[name], pictured=drawing is not None)
    return found


def page(method: Mapping[str, Any], note: Mapping[str, str], *, pictured: bool) -> str:
    """A method's page."""
    name = method["name"]
    lines = [f"# `{name}`", "", f"{method['summary'][0].upper()}{method['summary'][1:]}.", ""]
    lines += ["```", f"onnxdecomp compress model.onnx --method {name} {note['command']}", "```", ""]
    lines += ["## What it computes", "", note["mathematics"].strip(), ""]
    if pictured:
        several = name in joint_drawings.METHODS
        what = "A graph before and after" if several else "A layer and its chain"
        lines += ["## The graph before and after", "", f"![{what}]({name}.svg)", ""]
        told = f"Above the layer, below what takes its place at {SHARE:g} of the full ranks."
        lines += [joint_drawings.TOLD if several else told, ""]
    lines += ["## Layers and ranks", "", f"- Takes: {'; '.join(method['takes'])}."]
    lines += [f"- Ranks (`--rank`): {', '.join(method['ranks'])}.", ""] if method.get("ranks") else [""]
    known = [] if is_joint(name) else list(options(name))
    if known:
        lines += ["## Options", "", "| option | default | |", "|---|---|---|"]
        for option in known:
            text = option.help.replace("|", "\\|").replace("[", "\\[")
            lines.append(f"| `--{name}-{option.name.replace('_', '-')}` | `{option.default}` | {text} |")
        lines.append("")
    lines += ["## When it pays", "", note["pays"].strip(), "", "## Source", "", f"{method['paper']}.", ""]
    return "\n".join(lines)


def drawn(name: str) -> str | None:
    """A layer and its chain, or None where the method takes neither a convolution nor a matrix of its own."""
    zeros = np.broadcast_to(np.zeros((), np.float32), (128, 128, 3, 3))
    spec = ConvSpec(strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1))
    conv = Layer("layer", "Conv", zeros, None, spec, input_shape=(1, 128, 14, 14))
    square = np.broadcast_to(np.zeros((), np.float32), (512, 512))
    matrix = Layer("layer", "MatMul", square, None, input_shape=(1, 16, 512))
    for layer in (conv, matrix):
        method = get(name).specialise(layer)
        if not isinstance(method, Refusal) and method.name == name:
            chain = outline(method, layer, method.fraction_ranks(layer, SHARE))
            return _svg(layer, chain)
    return None


def _svg(layer: Layer, chain: Chain) -> str:
    boxes = _boxes(chain)
    width = 2 * 20 + len(boxes) * _BOX + (len(boxes) - 1) * _GAP
    head = "x".join(map(str, layer.weight.shape))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 330)} 190" role="img">',
        f"<title>A {layer.op_type} and its chain</title><style>{joint_drawings.STYLE}</style>",
        _rect(20, 16, layer.op_type, head, f"{layer.weight.size:,} numbers", plain=False),
    ]
    for index, (kind, size, cost) in enumerate(boxes):
        x = 20 + index * (_BOX + _GAP)
        parts.append(_rect(x, 110, kind, size, cost, plain=not size))
        if index:
            parts.append(f'<path d="M{x - _GAP},{110 + _HEIGHT / 2} H{x}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _boxes(chain: Chain) -> list[tuple[str, str, str]]:
    found = []
    for step in chain.steps:
        size = "x".join(map(str, step.weight.shape)) if isinstance(step, WeightedStep) else ""
        cost = f"{step.params:,} numbers" if size else ""
        found.append((_kind(step), size, cost))
    return found


def _kind(step: Step) -> str:
    return f"{type(step).__name__} {step.label}".strip()


def _rect(x: float, y: float, kind: str, size: str, cost: str, *, plain: bool) -> str:
    style, tall = "plain" if plain else "step", _HEIGHT + 8
    lines = [
        f'<rect class="{style}" x="{x}" y="{y}" width="{_BOX}" height="{tall}" rx="6"/>',
        f'<text x="{x + 8}" y="{y + 18}">{escape(kind)}</text>',
        f'<text class="small" x="{x + 8}" y="{y + 35}">{escape(size)}</text>',
        f'<text class="small" x="{x + 8}" y="{y + 51}">{escape(cost)}</text>',
    ]
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(write_or_check(pages()))
