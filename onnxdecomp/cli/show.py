"""Results of compress and inspect as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxdecomp import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxdecomp.api import Result
    from onnxdecomp.record import Change, LayerRecord


def show_plan(result: Result) -> None:
    """The layers with their cost and what would be done."""
    out = console.stdout_console()
    out.print(_layer_table(result.layers))
    out.print(_totals(result))


def show_result(result: Result) -> None:
    """The layers, then the totals, the verification and the timing, a line each."""
    out = console.stdout_console()
    out.print(_layer_table(result.layers))
    for line in (_totals(result), *_checks(result), *_latency(result)):
        out.print(line)
    if result.path is not None:
        out.print(f"wrote      {result.path}")


def _layer_table(layers: Sequence[LayerRecord]) -> object:
    rows = [
        (
            f"{layer.graph}/{layer.name}" if layer.graph else layer.name,
            layer.op,
            _what(layer),
            _arrow(layer.params),
            _arrow(layer.macs),
            "" if layer.rel_error is None else f"{layer.rel_error:.2g}",
        )
        for layer in layers
    ]
    return console.table(None, ("layer", "op", "result", "parameters", "MACs", "weight error"), rows)


def _what(layer: LayerRecord) -> str:
    if layer.method:
        return f"{layer.method} {','.join(map(str, layer.ranks))}"
    return f"kept: {layer.reason}"


def _arrow(change: Change) -> str:
    if change.before is None:
        return ""
    if change.after is None or change.after == change.before:
        return count(change.before)
    return f"{count(change.before)} → {count(change.after)}"


def count(number: float) -> str:
    """A count with three digits: 1.23M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def _totals(result: Result) -> str:
    totals = result.record["totals"]
    parts = []
    for what, label in (("params", "parameters"), ("macs", "MACs"), ("bytes", "bytes")):
        if what in totals:
            before, after = totals[what]["before"], totals[what]["after"]
            ratio = f" ({before / after:.2f}x)" if after and after != before else ""
            parts.append(f"{label} {count(before)} → {count(after)}{ratio}")
    return f"cost       {', '.join(parts)}"


def _checks(result: Result) -> list[str]:
    lines = []
    ran = [check.rel_error for check in result.lowering if check.rel_error is not None]
    if ran:
        lines.append(f"lowering   {len(ran)} layers equal their own weight, at worst to {max(ran):.1e}")
    checked = result.verification
    if checked is None:
        return lines
    if checked.rel_l2 is None:
        lines.append(f"verify     {checked.status}: {checked.reason or 'no floating-point output'}")
    else:
        lines.append(
            f"verify     {checked.status}: relative L2 error {checked.rel_l2:.3g} "
            f"over {checked.samples} samples ({checked.data})"
        )
    if checked.accuracy is not None:
        accuracy = checked.accuracy
        change = 100 * (accuracy.new - accuracy.original)
        lines.append(
            f"accuracy   {100 * accuracy.original:.2f} % → {100 * accuracy.new:.2f} % "
            f"({change:+.2f} points, {accuracy.samples} samples)"
        )
    return lines


def _latency(result: Result) -> list[str]:
    if result.latency is None:
        return []
    lines = []
    for setting in result.latency.settings:
        original, new = setting.models
        ratio = new.ratio
        assert ratio is not None
        lines.append(
            f"latency    {original.latency.p50:.3f} → {new.latency.p50:.3f} ms, "
            f"{1 / ratio.value:.2f}x [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}] "
            f"({setting.provider}, batch {new.batch}, threads {setting.threads}, "
            f"{setting.rounds} interleaved runs)"
        )
    return lines
