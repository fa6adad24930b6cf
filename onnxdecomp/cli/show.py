"""Results of compress and inspect as text: the tables, then a line for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxdecomp.cli import console
from onnxdecomp.cli.tables import channel_table, layer_table, whole_name
from onnxdecomp.core.names import MOST, alike, some, told_together
from onnxdecomp.record.text import as_fast, count, fed, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxdecomp.evaluate.task_metrics.measure import MetricChange
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord
    from onnxdecomp.workflow.result import Result

Line = tuple[str, str]

_FEW = 12
"""Layers that are listed though all of them stay: of more the reasons say it."""

_BROKEN = 4
"""Reasons that are shown why the outputs of layers are no channels: most name a node of their own."""


def show_plan(result: Result, *, all_layers: bool = False, step: str = "") -> None:
    """The layers with their cost and what would be done, and what to type next."""
    console.show(
        *layer_table(result.layers, shapes=True, every=all_layers),
        *channel_table(result.channels, every=all_layers),
        console.pairs([*_cost(result), *_next(step)]),
    )


def show_result(result: Result, *, all_layers: bool = False, step: str = "") -> None:
    """The layers, then cost, checks and timing, the file, and what to type next."""
    rows = all_layers or result.changed or len(result.layers) <= _FEW
    lines = [*_cost(result), *_checks(result), *_latency(result)]
    if not rows:
        lines[0] = ("layers", f"{lines[0][1]}; --all-layers lists them")
    if result.path is not None:
        copy = "" if result.changed else ", a copy of the original: nothing was decomposed"
        lines.append(("wrote", f"{result.path}{copy}"))
    console.show(
        *(layer_table(result.layers, every=all_layers) if rows and _looked(result) else ()),
        *(channel_table(result.channels, every=all_layers) if rows else ()),
        console.pairs([*lines, *_next(step)]),
    )


def _looked(result: Result) -> bool:
    """Whether a pass looked at layers: where fewer bits alone are asked for, none does, whatever there is."""
    return bool(result.layers) or "decompose" in result.record["passes"]


def _next(step: str) -> list[Line]:
    return [("next", step)] if step else []


def _reasons(layers: Sequence[LayerRecord], channels: Sequence[ChannelRecord]) -> list[Line]:
    """Why layers and channels stay, or were fitted to weights alone; what has the same reason in one line."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        if layer.reason or not (layer.method or layer.left):
            what = "note" if layer.method else "kept"
            reasons.setdefault((what, layer.reason), []).append(whole_name(layer))
    broken: dict[str, list[str]] = {}
    for channel in channels:
        if channel.reason and channel.width > 1:
            reasons.setdefault(("note" if channel.method else "whole", channel.reason), []).append(
                channel.name
            )
        elif channel.reason:
            broken.setdefault(channel.reason, []).append(channel.name)
    lines: list[Line] = []
    for what in dict.fromkeys(what for what, _ in reasons):
        own = {reason: names for (one, reason), names in reasons.items() if one == what}
        lines += [(what, line) for line in _together(own)]
    told = _together(broken)
    more = [f"and {len(told) - _BROKEN} more reasons for others"] if len(told) > _BROKEN + 1 else []
    shown = told[: _BROKEN if more else None]
    return [*lines, *([("whole", "; ".join([*shown, *more]))] if shown else [])]


def _together(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason; of many reasons those in one that differ in numbers alone."""
    if len(reasons) <= MOST:
        return [f"{some(names)}: {reason}" for reason, names in reasons.items()]
    lines = []
    for places in alike(list(reasons)):
        several = [reason for at, reason in enumerate(reasons) if at in places]
        names = [name for reason in several for name in reasons[reason]]
        told = some(names) if len(several) == 1 else some(names, least=len(several))
        lines.append(f"{told}: {told_together(several)[0]}")
    return lines


def _cost(result: Result) -> list[Line]:
    totals = result.record["totals"]
    would = "would be " if any(layer.status == "planned" for layer in result.layers) else ""
    number = totals["layers"]
    cut = f", {number['cut']} {would}smaller behind cuts" if number["cut"] else ""
    lines: list[Line] = []
    if _looked(result):
        lines.append(("layers", f"{number['decomposed']} of {number['all']} {would}decomposed{cut}"))
    if "channels" in totals:
        lines.append(("channels", f"{totals['channels']['cut']} of {totals['channels']['all']} {would}cut"))
    lines += _reasons(result.layers, result.channels)
    parts = []
    for what, label, unit in (("params", "parameters", ""), ("macs", "MACs", ""), ("bytes", "file", "B")):
        if what in totals and (totals[what]["before"] or _looked(result)):
            before, after = totals[what]["before"], totals[what]["after"]
            change = f" -> {count(after, unit)} ({before / after:.2f}x)" if after and after != before else ""
            parts.append(f"{label} {count(before, unit)}{change}")
    return [*lines, ("cost", "; ".join(parts))]


def _of_worst(checked: Verification) -> str:
    """The error of the worst of several outputs: a large one hides it in the error of all together."""
    if checked.worst is None or checked.rel_l2 is None or f"{checked.worst:.3g}" == f"{checked.rel_l2:.3g}":
        return ""
    return f", of {visible(str(checked.worst_output))} {checked.worst:.3g},"


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
        lines.append(("verify", f"relative L2 error {checked.rel_l2:.3g}{_of_worst(checked)} {over}"))
    else:
        lines.append(
            (
                "verify",
                f"{checked.status}: largest relative L2 error {checked.worst:.3g}, "
                f"at most {checked.max_error:g} allowed, {over}",
            )
        )
    if checked.metric is not None:
        lines.append(("metric", metric_line(checked.metric)))
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


def metric_line(found: MetricChange) -> str:
    """What a metric says of both models: "wer 0.298 -> 0.303 (+0.005 [-0.002, +0.012], 24 samples)"."""
    ends = (
        "no interval" if found.low is None or found.high is None else f"[{found.low:+.4g}, {found.high:+.4g}]"
    )
    better = "; lower is better" if found.lower_is_better else ""
    return (
        f"{found.name} {found.original:.4g} -> {found.new:.4g} ({found.new - found.original:+.4g} {ends}, "
        f"{found.samples} samples{better})"
    )


def _latency(result: Result) -> list[Line]:
    if result.latency is None:
        return []
    lines = []
    for setting in result.latency.settings:
        original, new = setting.models
        ratio = new.ratio
        assert ratio is not None
        low, high = 1 / ratio.high, 1 / ratio.low
        lines.append(
            (
                "latency",
                f"{original.latency.p50:.3f} -> {new.latency.p50:.3f} ms, "
                f"{as_fast(1 / ratio.value, low, high)} [{low:.2f}, {high:.2f}] "
                f"({setting.provider}, batch {new.batch}, "
                f"threads {setting.threads}, {fed(new.shapes)}, {setting.rounds} interleaved runs)",
            )
        )
    return lines
