"""Results of compress and inspect as text: tables of layers and channels, then a line for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxdecomp.cli import console
from onnxdecomp.core.names import some
from onnxdecomp.record.schema.layers import Change
from onnxdecomp.record.text import count, fed, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord
    from onnxdecomp.workflow.result import Result

Line = tuple[str, str]

_LONGEST = 48
"""Characters that are shown of the name of a layer at the other end of a channel."""

_BROKEN = 4
"""Reasons that are shown why the outputs of layers are no channels: most name a node of their own."""


def show_plan(result: Result) -> None:
    """The layers with their cost and what would be done."""
    console.show(
        *_layers(result.layers, shapes=True), *_channels(result.channels), console.pairs(_cost(result))
    )


def show_result(result: Result) -> None:
    """The layers, then cost, checks and timing, and last the file."""
    lines = [*_cost(result), *_checks(result), *_latency(result)]
    if result.path is not None:
        copy = "" if result.changed else ", a copy of the original: nothing was decomposed"
        lines.append(("wrote", f"{result.path}{copy}"))
    console.show(*_layers(result.layers), *_channels(result.channels), console.pairs(lines))


def _layers(layers: Sequence[LayerRecord], *, shapes: bool = False) -> list[RenderableType]:
    if not layers:
        return ["no layer of this model can be decomposed: it has no operator with a constant weight"]
    params = _arrows([layer.params for layer in layers])
    macs = _arrows([layer.macs for layer in layers])
    errors = any(layer.rel_error is not None for layer in layers)
    where = ("weight", "input") if shapes else ()
    columns = ("layer", "op", *where, "result", "parameters", "MACs", *(("weight error",) if errors else ()))
    rows = [
        (
            _name(layer),
            layer.op,
            *((_shape(layer.weight), _shape(layer.input or (None,))) if shapes else ()),
            _result(layer),
            params[index],
            "?" if _unsized(layer) else macs[index],
            *(("" if layer.rel_error is None else f"{layer.rel_error:.2g}",) if errors else ()),
        )
        for index, layer in enumerate(layers)
    ]
    kept = [index for index, layer in enumerate(layers) if not layer.method and not layer.left]
    return [console.table(None, columns, rows, whole=set(columns) - {"layer", "result"}, dim=kept)]


def _result(layer: LayerRecord) -> str:
    cut = f"cut to {_shape(layer.left)}" if layer.left else ""
    if layer.method:
        return f"{layer.method} {','.join(map(str, layer.ranks))}{f', {cut}' if cut else ''}"
    return cut or ("kept, repaired" if layer.repaired else "kept")


def _channels(channels: Sequence[ChannelRecord]) -> list[RenderableType]:
    """Those that could be cut; what something breaks is named among the reasons."""
    shown = [channel for channel in channels if channel.width > 1]
    if not shown:
        return []
    several = any(len(channel.producers) > 1 for channel in shown)
    losses = any(channel.loss is not None for channel in shown)
    columns = (
        *("channel", *(("made with",) if several else ()), "read by", "result", "units"),
        *(("loss",) if losses else ()),
    )
    units = _arrows([Change(channel.width, channel.kept) for channel in shown])
    rows = [
        (
            channel.name,
            *((_few(channel.producers[1:]),) if several else ()),
            _few(channel.readers) or "a product",
            channel.method or "whole",
            units[index],
            *(("" if channel.loss is None else f"{channel.loss:.2g}",) if losses else ()),
        )
        for index, channel in enumerate(shown)
    ]
    whole = [index for index, channel in enumerate(shown) if not channel.method]
    names = {"channel", "made with", "read by"}
    return [console.table(None, columns, rows, whole=set(columns) - names, dim=whole)]


def _few(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{shortened(names[0], _LONGEST)}{more}" if names else ""


def _unsized(layer: LayerRecord) -> bool:
    """Whether a weight that was read meets an activation of unknown size."""
    return layer.params.before is not None and layer.macs.before is None


def _shape(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _name(layer: LayerRecord) -> str:
    return f"{layer.graph}/{layer.name}" if layer.graph else layer.name


def _reasons(layers: Sequence[LayerRecord], channels: Sequence[ChannelRecord]) -> list[Line]:
    """Why layers and channels stay, or were fitted to weights alone; what has the same reason in one line."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        if layer.reason or not (layer.method or layer.left):
            what = "note" if layer.method else "kept"
            reasons.setdefault((what, layer.reason), []).append(_name(layer))
    broken: dict[str, list[str]] = {}
    for channel in channels:
        if channel.reason and channel.width > 1:
            reasons.setdefault(("note" if channel.method else "whole", channel.reason), []).append(
                channel.name
            )
        elif channel.reason:
            broken.setdefault(channel.reason, []).append(channel.name)
    lines = [(what, f"{some(names)}: {reason}") for (what, reason), names in reasons.items()]
    told = [f"{some(names)}: {reason}" for reason, names in broken.items()]
    more = [f"and {len(told) - _BROKEN} more reasons for others"] if len(told) > _BROKEN + 1 else []
    shown = told[: _BROKEN if more else None]
    return [*lines, *([("whole", "; ".join([*shown, *more]))] if shown else [])]


def _arrows(changes: Sequence[Change]) -> list[str]:
    """Quantities before and after, the arrows one below the other."""
    before = ["" if change.before is None else count(change.before) for change in changes]
    width = max(map(len, before))
    return [
        f"{text:>{width}}"
        + ("" if change.after in (None, change.before) else f" -> {count(change.after or 0)}")
        for text, change in zip(before, changes, strict=True)
    ]


def _cost(result: Result) -> list[Line]:
    totals = result.record["totals"]
    would = "would be " if any(layer.status == "planned" for layer in result.layers) else ""
    number = totals["layers"]
    cut = f", {number['cut']} {would}smaller behind cuts" if number["cut"] else ""
    lines = [("layers", f"{number['decomposed']} of {number['all']} {would}decomposed{cut}")]
    if "channels" in totals:
        lines.append(("channels", f"{totals['channels']['cut']} of {totals['channels']['all']} {would}cut"))
    lines += _reasons(result.layers, result.channels)
    parts = []
    for what, label, unit in (("params", "parameters", ""), ("macs", "MACs", ""), ("bytes", "file", "B")):
        if what in totals:
            before, after = totals[what]["before"], totals[what]["after"]
            change = f" -> {count(after, unit)} ({before / after:.2f}x)" if after and after != before else ""
            parts.append(f"{label} {count(before, unit)}{change}")
    return [*lines, ("cost", "; ".join(parts))]


def _checks(result: Result) -> list[Line]:
    lines = []
    ran = [check.rel_error for check in result.lowering if check.rel_error is not None]
    if ran:
        worst = f"to {max(ran):.1e}" if len(ran) == 1 else f"at worst to {max(ran):.1e}"
        what = "factors" if any(layer.method for layer in result.layers) else "new numbers"
        lines.append(
            ("lowering", f"{len(ran)} rewritten layers compute what their {what} stand for, {worst}")
        )
    cuts = [channel.check for channel in result.channels if channel.check is not None]
    if cuts:
        worst = f"to {max(cuts):.1e}" if len(cuts) == 1 else f"at worst to {max(cuts):.1e}"
        lines.append(("cuts", f"{len(cuts)} checked against the model without their units, {worst}"))
    checked = result.verification
    if checked is None:
        return lines
    over = f"over {checked.samples} samples ({checked.data})"
    if checked.status == "skipped":
        lines.append(("verify", f"skipped: {checked.reason}"))
    elif checked.rel_l2 is None:
        lines.append(("verify", f"{checked.status} {over}: no floating-point output"))
    elif checked.max_error is None:
        lines.append(("verify", f"relative L2 error {checked.rel_l2:.3g} {over}"))
    else:
        lines.append(
            (
                "verify",
                f"{checked.status}: largest relative L2 error {checked.worst:.3g}, "
                f"at most {checked.max_error:g} allowed, {over}",
            )
        )
    if checked.accuracy is not None:
        accuracy = checked.accuracy
        change = 100 * (accuracy.new - accuracy.original)
        lines.append(
            (
                "accuracy",
                f"{100 * accuracy.original:.2f} % -> {100 * accuracy.new:.2f} % "
                f"({change:+.2f} points, {accuracy.samples} samples)",
            )
        )
    return lines


def _latency(result: Result) -> list[Line]:
    if result.latency is None:
        return []
    lines = []
    for setting in result.latency.settings:
        original, new = setting.models
        ratio = new.ratio
        assert ratio is not None
        lines.append(
            (
                "latency",
                f"{original.latency.p50:.3f} -> {new.latency.p50:.3f} ms, {1 / ratio.value:.2f}x as fast "
                f"[{1 / ratio.high:.2f}, {1 / ratio.low:.2f}] ({setting.provider}, batch {new.batch}, "
                f"threads {setting.threads}, {fed(new.shapes)}, {setting.rounds} interleaved runs)",
            )
        )
    return lines
