"""The verdict on a result: what it bought, what it cost, and whether that is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxdecomp.record.schema.checks import Numbers, RecordedMetric, RecordedVerification, Verdict
from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord, Totals
from onnxdecomp.record.schema.timing import Interval, Speedup, TimedSetting
from onnxdecomp.record.text import as_fast, change, setting, value

_WIDE = 1.25
"""An interval whose ends are further apart than by this factor is told in place of the value."""

_DEAR = 0.02
"""Accuracy, as a fraction, beyond whose loss speed alone does not make a result worth it."""


def verdict_on_run(
    parts: Sequence[LayerRecord | ChannelRecord],
    totals: Totals,
    checked: RecordedVerification | None,
    settings: Sequence[TimedSetting] | None,
    *,
    quantized: bool,
    carried_out: bool,
) -> Verdict:
    """Of a compression, from the other parts of its record.

    Args:
        parts: The layers and channels.
        totals, checked, settings: Of the record; None where it has none.
        quantized: Whether the model was quantized.
        carried_out: Whether there is a result, and not only a plan.
    """
    everywhere = speedups(settings or (), 1)
    numbers = numbers_of(
        checked,
        everywhere,
        smaller=None if totals.bytes is None else totals.bytes.ratio,
        fewer_params=totals.params.ratio,
        fewer_macs=totals.macs.ratio,
    )
    done = _done(totals)
    if not done and not quantized:
        reasons = tuple(dict.fromkeys(part.reason for part in parts if part.reason))
        return Verdict(
            worth=False,
            text="Not worth it: every layer stays as it is.",
            because=reasons or ("no operator of the model has a constant weight",),
            **vars(numbers),
        )
    if not carried_out:
        fewer = _phrases(replace(numbers, smaller=None))
        done = done or f"0 of {totals.layers.all} layers"
        text = f"A plan, not carried out: {done}, {fewer}."
        return Verdict(worth=None, text=text, because=(), **vars(numbers))
    return judged(numbers, everywhere)


def _done(totals: Totals) -> str:
    """How many layers and channels something is done to; "" where that is none."""
    layers, channels = totals.layers, totals.channels
    found = [f"{layers.decomposed} of {layers.all} layers"] if layers.decomposed else []
    if channels is not None and channels.cut:
        found.append(f"{channels.cut} of {channels.all} channels")
    return " and ".join(found)


def numbers_of(
    checked: RecordedVerification | None,
    everywhere: Sequence[Speedup],
    *,
    smaller: float | None,
    fewer_params: float | None,
    fewer_macs: float | None,
) -> Numbers:
    """The numbers of a verdict, from the comparison and from the speedups in all settings."""
    accuracy = checked.accuracy if checked else None
    return Numbers(
        speedup=everywhere[0] if everywhere else None,
        smaller=smaller,
        fewer_params=fewer_params,
        fewer_macs=fewer_macs,
        accuracy=accuracy.change if accuracy else None,
        metric=checked.metric if checked else None,
        error=checked.rel_l2 if checked else None,
    )


def speedups(settings: Sequence[TimedSetting], index: int) -> tuple[Speedup, ...]:
    """How many times as fast as the first model the one at `index` is, and where, in every setting."""
    return tuple(
        Speedup(**vars(timing.speedup), provider=one.provider, batch=timing.batch, threads=one.threads)
        for one in settings
        if (timing := one.models[index]).speedup is not None
    )


def judged(numbers: Numbers, everywhere: Sequence[Speedup] = ()) -> Verdict:
    """The verdict that numbers give, with the speedups in all settings."""
    speed = numbers.speedup
    because: list[str] = []
    worth: bool | None
    smaller = (numbers.smaller or numbers.fewer_params or 1.0) > 1.0
    if speed is None:
        worth = smaller
        because.append("latency was not measured")
    elif speed.low is not None and speed.low > 1.0:
        worth = True
    elif _vague(speed) and speed.value > 1.0:
        worth = None
        because.append("whether it is faster is undecided: the machine was too noisy while it was timed")
    else:
        slower = speed.high is not None and speed.high < 1.0
        worth = False
        because.append(
            "it is slower than the original"
            if slower
            else "it is no faster than the original beyond the uncertainty of the measurement"
        )
        if smaller:
            because.append("what is left is the smaller file")
    if worth and numbers.accuracy is not None and numbers.accuracy < -_DEAR:
        worth = None
        because.append(f"whether that is worth {-100 * numbers.accuracy:.2f} points of accuracy is open")
    metric = numbers.metric
    if worth and metric is not None and metric.loss is not None and metric.points and metric.loss > _DEAR:
        worth = None
        because.append(f"whether that is worth {100 * metric.loss:.2f} points of {metric.name} is open")
    if worth is not None and speed is not None and _vague(speed):
        because.append("the machine was disturbed while it was timed: see how wide the interval is")
    # The first is the one that decided.
    vain = [setting(o.provider, o.batch, o.threads) for o in everywhere[1:] if _vain(o)]
    if worth is not False and vain:
        because.append(f"it is not shown to be faster on {'; nor on '.join(vain)}")
    phrases = _phrases(numbers)
    text = (
        f"{phrases[0].upper()}{phrases[1:]}." if worth is not False else f"Not worth it for speed: {phrases}."
    )
    return Verdict(worth=worth, text=text, because=tuple(because), **vars(numbers))


def _vague(speed: Interval) -> bool:
    """Whether a speedup's interval is too wide for its value to be named alone."""
    return speed.low is not None and speed.high is not None and speed.high > _WIDE * speed.low


def _vain(speed: Interval) -> bool:
    return speed.low is None or speed.low <= 1.0


def _phrases(numbers: Numbers) -> str:
    """The numbers that are known: "2.41x as fast on CPU, 1.90x smaller, −0.60 points of accuracy"."""
    found = []
    if speed := numbers.speedup:
        found.append(_speed(speed))
    if numbers.smaller:
        found += _times(numbers.smaller, "smaller", "larger")
    elif numbers.fewer_params:
        found += _times(numbers.fewer_params, "fewer parameters", "more parameters")
    if numbers.fewer_macs:
        found += _times(numbers.fewer_macs, "fewer MACs", "more MACs")
    if numbers.accuracy is not None:
        found.append(f"{100 * numbers.accuracy:+.2f} points of accuracy".replace("-", "−"))
    if (metric := numbers.metric) is not None and not (
        metric.name == "top1" and numbers.accuracy is not None
    ):
        found.append(_metric(metric))
    if numbers.accuracy is None and metric is None and numbers.error is not None:
        found.append(f"output error {numbers.error:.3g}")
    return ", ".join(found) or "nothing was measured"


def _speed(found: Speedup) -> str:
    where = f" on {found.provider.upper()}"
    told = as_fast(found.value, found.low, found.high, where)
    if not _vague(found):
        return told
    ends = f"{found.low:.2f} to {found.high:.2f}x"
    return f"{told} ({ends})" if told.endswith("undecided") else f"{ends} as fast{where}"


def _metric(found: RecordedMetric) -> str:
    if found.new is None or found.change is None:
        return f"{found.name} no number"
    return f"{found.name} {value(found.new)} ({change(found.change)})"


def _times(ratio: float, less: str, more: str) -> list[str]:
    """A phrase; none where nothing has changed to two places."""
    if f"{ratio:.2f}" == "1.00":
        return []
    return [f"{ratio:.2f}x {less}" if ratio >= 1 else f"{1 / ratio:.2f}x {more}"]
