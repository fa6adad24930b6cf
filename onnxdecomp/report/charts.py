"""The charts of a report, each from the part of the record that it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxdecomp.record import text
from onnxdecomp.report.facts import Fact, pointer, raw
from onnxdecomp.report.figure import (
    FAINT,
    INK,
    LINES,
    MARKERS,
    PAPER,
    SERIES,
    figure,
    logarithmic,
    svg,
    traced,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS = 12
"""Layers of a bar chart; the rest is one bar."""

_BINS = 48


def distributions(setting: Fact, labels: Sequence[str], salt: str) -> str:
    """How the latencies of each model are distributed in one setting."""
    value = raw(setting)
    quantiles = [np.asarray(model["latency"]["quantiles"], np.float64) for model in value["models"]]
    # The slowest runs of a shared machine are far out: they are in the table.
    low, high = min(q[0] for q in quantiles), max(q[98] for q in quantiles)
    wide = high > 20 * low > 0
    edges = np.geomspace(low, high, _BINS) if wide else np.linspace(low, high, _BINS)
    legend = 0.12 + 0.18 * math.ceil(len(labels) / 2)
    with figure(height=2.0 + legend, margins=(0.55, 0.1, 0.45, legend)) as (made, axes):
        for index, (spread, label) in enumerate(zip(quantiles, labels, strict=True)):
            place = index % len(SERIES)
            share = np.diff(np.interp(edges, spread, np.linspace(0, 100, len(spread))))
            axes.stairs(share, edges, fill=True, color=SERIES[place], alpha=0.22)
            axes.stairs(share, edges, color=SERIES[place], linestyle=LINES[place], label=label, linewidth=1.3)
            axes.axvline(float(spread[50]), color=SERIES[place], linestyle=LINES[place], linewidth=1)
        if wide:
            logarithmic(axes, "x")
        axes.set_xlabel("latency of a run, ms (upright line: median)")
        axes.set_ylabel("runs, %")
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return svg(made, f"Distribution of latencies: {_setting(value)}", salt)


def speedups(settings: Fact, labels: Sequence[str], salt: str) -> str:
    """How many times as fast as the first model the others are, with intervals, in every setting."""
    rows = [
        (raw(setting), index, model)
        for setting in settings
        for index, model in enumerate(setting["models"])
        if raw(model["speedup"]) is not None
    ]
    with figure(height=0.75 + 0.3 * len(rows)) as (made, axes):
        names = []
        for row, (setting, index, model) in enumerate(rows):
            found, place = raw(model["speedup"]), index % len(SERIES)
            value = found["value"]
            low, high = (found[end] if found[end] is not None else value for end in ("low", "high"))
            axes.errorbar(
                [value],
                [-row],
                xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                color=SERIES[place],
                marker=MARKERS[place],
                markersize=5,
                capsize=3,
                linestyle="none",
            )
            note = axes.annotate(
                text.times(value), (high, -row), (6, 0), textcoords="offset points", va="center"
            )
            traced(note, pointer(model["speedup"]["value"]))
            who = f"{text.shortened(labels[index], 18)}, " if len(labels) > 2 else ""
            names.append(f"{who}{_setting(setting)}")
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_yticks([-row for row in range(len(rows))], names)
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        axes.margins(x=0.25)
        axes.set_xlim(left=min(0.9, axes.get_xlim()[0]))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("times as fast as the original")
        return svg(made, "Speed against the original in every setting, with confidence intervals", salt)


def _setting(value: Mapping[str, Any]) -> str:
    own = (value.get("precision", ""), value.get("profile", ""), value.get("graph", False))
    return text.setting(value["provider"], value["batch"], value["threads"], *own)


def tradeoff(record: Fact, salt: str) -> str:
    """Speed against loss: single candidates, the frontier of whole plans, and the plan that was chosen."""
    search, measured = raw(record["search"]), raw(record["verify"])
    timed = search["expected"]["latency"] is not None
    unit = "latency" if timed else "MACs"
    alone = [
        (_cost_alone(candidate, layer, raw(record["totals"]), timed), math.sqrt(candidate["output_loss"]))
        for layer in search["layers"]
        for candidate in layer["candidates"]
        if candidate["output_loss"] > 0
    ]
    plans = [
        (point["latency"] if timed else point["macs"], math.sqrt(point["loss"]))
        for point in search["frontier"]
        if point["loss"] > 0
    ]
    with figure(height=3.1) as (made, axes):
        _scatter(axes, alone, "one layer changed", FAINT, ".", 9)
        if plans:
            x, y = zip(*sorted(plans), strict=True)
            axes.plot(
                x, y, "o-", color=SERIES[0], markersize=3.2, linewidth=1.2, label="best whole plans, expected"
            )
        _scatter(axes, _tried(search, timed), "plans tried, error measured", SERIES[2], "^", 34)
        chosen = _chosen(search, raw(record["totals"]), timed)
        if chosen is not None:
            _scatter(axes, [chosen], "chosen plan, expected", SERIES[1], "D", 42)
        result = _result(record, measured, timed)
        if result is not None:
            _scatter(axes, [result], "result, measured", SERIES[1], "*", 150)
        logarithmic(axes, "y")
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_xlabel(f"{unit} over the original's")
        axes.set_ylabel("relative error of the output")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, fontsize=7.5)
        return svg(made, "Speed against loss of all candidates, with the chosen plan marked", salt)


def _scatter(
    axes: Axes, points: Sequence[tuple[float, float]], label: str, colour: str, marker: str, size: float
) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=size, marker=marker, color=colour, label=label, linewidths=0.4, edgecolors=PAPER)


def _cost_alone(
    candidate: Mapping[str, Any], layer: Mapping[str, Any], totals: Mapping[str, Any], timed: bool
) -> float:
    """The whole model's cost over the original's with one layer changed."""
    if timed and candidate["part"] is not None and layer["part"] is not None:
        return float(1 - layer["part"] + candidate["part"])
    before = totals["macs"]["before"] or 1
    return float(1 - (layer["macs"] - candidate["macs"]) / before)


def _tried(search: Mapping[str, Any], timed: bool) -> list[tuple[float, float]]:
    return [
        (cost, entry["error"])
        for entry in search["tries"]
        if entry.get("error") and (cost := entry.get("latency" if timed else "macs")) is not None
    ]


def _chosen(search: Mapping[str, Any], totals: Mapping[str, Any], timed: bool) -> tuple[float, float] | None:
    loss = search["expected"]["loss"]
    cost = (
        search["expected"]["latency"] if timed else totals["macs"]["after"] / (totals["macs"]["before"] or 1)
    )
    return None if not loss or cost is None else (cost, math.sqrt(loss))


def _result(record: Fact, measured: Mapping[str, Any] | None, timed: bool) -> tuple[float, float] | None:
    error = measured["rel_l2"] if measured else None
    if not error:
        return None
    if not timed:
        totals = raw(record["totals"]["macs"])
        return totals["after"] / (totals["before"] or 1), error
    settings = raw(record["settings"])
    ratio = settings[0]["models"][1]["ratio"] if settings else None
    return None if ratio is None else (ratio["value"], error)


def before_and_after(
    layers: Fact, what: str, label: str, rest: tuple[float, float] | None, salt: str
) -> str | None:
    """What every layer took and takes of something; None where that is known of no layer.

    Args:
        layers: The record's.
        what: "latency_ms", "macs" or "params".
        label: The axis.
        rest: What is neither layer's, before and after.
        salt: See `figure.svg`.
    """
    rows: list[tuple[str, float, float]] = [
        (text.shortened(str(layer["name"]), 24), found["before"] or 0.0, found["after"] or 0.0)
        for layer in layers
        if (found := raw(layer[what])) is not None and found["before"] is not None
    ]
    if not rows:
        return None
    ordered = sorted(range(len(rows)), key=lambda index: -rows[index][1])
    top = sorted(ordered[:_BARS])
    shown = [rows[index] for index in top]
    if left := ordered[_BARS:]:
        before, after = sum(rows[index][1] for index in left), sum(rows[index][2] for index in left)
        shown.append((f"{len(left)} smaller layers", before, after))
    if rest is not None:
        shown.append(("everything else", *rest))
    with figure(height=0.8 + 0.27 * len(shown)) as (made, axes):
        places = np.arange(len(shown))
        for side, (name, offset, hatch) in enumerate((("before", -0.19, "////"), ("after", 0.19, ""))):
            axes.barh(
                places + offset,
                [row[1 + side] for row in shown],
                height=0.36,
                label=name,
                facecolor=PAPER if hatch else SERIES[side],
                edgecolor=SERIES[side],
                hatch=hatch,
                linewidth=0.8,
            )
        axes.set_yticks(places, [row[0] for row in shown])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: text.count(value) if value >= 1000 else f"{value:g}")
        axes.set_xlabel(label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return svg(made, f"{label} of every layer before and after", salt)


def spectrum(spectra: Fact, salt: str) -> str:
    """The singular values of a layer's unfoldings, and where they were cut."""
    with figure(height=2.3, margins=(0.6, 0.1, 0.45, 0.45)) as (made, axes):
        lowest = 1.0
        for place, entry in enumerate(spectra):
            value, style = raw(entry), place % len(SERIES)
            pairs = [(i, v) for i, v in zip(value["index"], value["values"], strict=True) if v > 1e-6]
            lowest = min([lowest, *(v for _, v in pairs)])
            axes.plot(
                *zip(*pairs, strict=True),
                color=SERIES[style],
                linestyle=LINES[style],
                label=text.visible(value["name"], 20),
            )
            axes.axvline(value["rank"] + 0.5, color=SERIES[style], linestyle=LINES[style], linewidth=1)
            note = axes.annotate(
                str(value["rank"]),
                (value["rank"] + 0.5, 1),
                (0, 2 + 9 * place),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color=SERIES[style],
            )
            traced(note, pointer(entry["rank"]))
        logarithmic(axes, "y")
        axes.set_ylim(max(lowest, 1e-4) / 1.5, 1.5)
        axes.set_xlabel("place of the singular value (upright line: the cut)")
        axes.set_ylabel("over the largest")
        axes.legend(loc="best", fontsize=7.5)
        return svg(made, "Singular values, with the ranks that were kept", salt)


def channel(cut: Fact, salt: str) -> str:
    """A channel before and after: what makes it, its width to scale, what reads it."""
    value = raw(cut)
    ends = [_ends(value["producers"]), _ends(value["readers"] or ["a product of two activations"])]
    with figure(height=1.9, margins=(0.05, 0.05, 0.05, 0.25)) as (made, axes):
        axes.set_axis_off()
        axes.set_xlim(-1.05, 3.25)
        axes.set_ylim(-0.1, 3.1)
        for side, key in enumerate(("width", "kept")):
            middle, colour = 2.2 * side, SERIES[side]
            half = max(value[key] / value["width"], 0.01)
            for low, high in ((0.5, 1.3), (2.5, 1.7)):  # the outlines of layers narrow down to the channel
                xs = [middle - 1, middle + 1, middle + half, middle - half]
                axes.fill(xs, [low, low, high, high], facecolor=colour, alpha=0.15, linewidth=0)
            axes.barh(1.5, 2 * half, 0.4, middle - half, facecolor=PAPER, edgecolor=colour, linewidth=1.2)
            for names, place in zip(ends, (2.5, 0.0), strict=True):
                axes.barh(place + 0.25, 2, 0.5, middle - 1, facecolor=PAPER, edgecolor=FAINT, linewidth=0.8)
                axes.text(middle, place + 0.25, names, ha="center", va="center", fontsize=7)
            number = axes.text(middle, 1.5, str(value[key]), ha="center", va="center", color=INK)
            traced(number, pointer(cut[key]))
            axes.text(middle, 3.1, ("units before", "after")[side], ha="center", va="bottom", color=colour)
        label = f"The channel {text.visible(value['name'], 60)} before and after its cut"
        return svg(made, label, salt)


def _ends(names: Sequence[str]) -> str:
    """The first layer at an end of a channel, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{text.shortened(text.visible(names[0]), 36 - len(more))}{more}"


def learning(training: Fact, accuracy: bool, salt: str) -> str:
    """Loss or accuracy over the epochs, of what was trained on and what was held out."""
    epochs = raw(training["epochs"])
    keys = ("train_accuracy", "accuracy") if accuracy else ("train", "held_out")
    scale = 100 if accuracy else 1
    with figure(height=2.3, margins=(0.6, 0.1, 0.45, 0.3)) as (made, axes):
        for place, (key, label) in enumerate(zip(keys, ("trained on", "held out"), strict=True)):
            _curve(axes, epochs, key, scale, place, label)
        axes.axvline(raw(training["best"]), color=FAINT, linewidth=1)
        if not accuracy and all(e[key] is None or e[key] > 0 for e in epochs for key in keys):
            logarithmic(axes, "y")
        axes.set_xlabel("epoch (upright line: kept)")
        axes.set_ylabel("accuracy, %" if accuracy else "loss")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return svg(made, f"{'Accuracy' if accuracy else 'Loss'} over the epochs", salt)


def trainings(every: Fact, labels: Sequence[str], key: str, salt: str) -> str:
    """One number over the epochs, a line per training."""
    accuracy = "accuracy" in key
    scale = 100 if accuracy else 1
    legend = 0.12 + 0.18 * math.ceil(len(labels) / 2)
    shown: list[float] = []
    with figure(height=2.2 + legend, margins=(0.6, 0.1, 0.45, legend)) as (made, axes):
        for index, (run, label) in enumerate(zip(raw(every), labels, strict=True)):
            epochs = run["training"]["epochs"]
            shown += _curve(axes, epochs, key, scale, index % len(SERIES), label)
        if not accuracy and shown and min(shown) > 0:
            logarithmic(axes, "y")
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy, %" if accuracy else "loss")
        if shown:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        side = "trained on" if key.startswith("train") else "held out"
        return svg(made, f"{'Accuracy' if accuracy else 'Loss'} over the epochs, {side}", salt)


def _curve(
    axes: Axes, epochs: Sequence[Mapping[str, Any]], key: str, scale: float, place: int, label: str
) -> list[float]:
    """A line over the epochs that have the number; what it shows."""
    points = [(e["number"], scale * e[key]) for e in epochs if e[key] is not None]
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=SERIES[place],
            linestyle=LINES[place],
            marker=MARKERS[place],
            markersize=3,
            label=label,
        )
    return [value for _, value in points]
