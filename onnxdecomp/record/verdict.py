"""The verdict on a result: what it bought, what it cost, and whether that is worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from onnxdecomp.record.text import setting

Record: TypeAlias = Mapping[str, Any]

_WIDE = 1.25
"""An interval whose ends are further apart than by this factor is told in place of the value."""

_DEAR = 0.02
"""Accuracy, as a fraction, beyond whose loss speed alone does not make a result worth it."""


def verdict_on_run(record: Record) -> dict[str, Any]:
    """Of a compression, from the other parts of its record.

    Returns:
        `worth`: true, false, or null where it is open (a dry run, a noisy machine); `text`: the verdict as a
        sentence; `because`: why it is not worth it, or what else to know; and the numbers of the sentence:
        `speedup` (the first setting's, with `provider`, `batch` and `threads`), `smaller`, `fewer_params` and
        `fewer_macs` (factors), `accuracy` (change, as a fraction), `error` (relative L2, all outputs).
    """
    totals, checked = record["totals"], record["verify"] or {}
    accuracy = checked.get("accuracy")
    numbers: dict[str, Any] = {
        "speedup": next(iter(speedups(record["settings"] or (), 1)), None),
        "smaller": totals.get("bytes", {}).get("ratio"),
        "fewer_params": totals["params"]["ratio"],
        "fewer_macs": totals["macs"]["ratio"],
        "accuracy": None if accuracy is None else accuracy["change"],
        "error": checked.get("rel_l2"),
    }
    decomposed = [layer for layer in record["layers"] if layer["method"] is not None]
    if not decomposed and "quantize" not in record["passes"]:
        reasons = list(dict.fromkeys(layer["reason"] for layer in record["layers"] if layer["reason"]))
        because = reasons or ["no operator of the model has a constant weight"]
        return {
            "worth": False,
            "text": "Not worth it: every layer stays as it is.",
            "because": because,
        } | numbers
    if record["output"] is None:
        fewer = _phrases({**numbers, "smaller": None})
        text = f"A plan, not carried out: {len(decomposed)} of {len(record['layers'])} layers, {fewer}."
        return {"worth": None, "text": text, "because": []} | numbers
    return judged(numbers, speedups(record["settings"] or (), 1))


def speedups(settings: Sequence[Record], index: int) -> list[dict[str, Any]]:
    """How many times as fast as the first model the one at `index` is, and where, in every setting."""
    found = []
    for entry in settings:
        timing = entry["models"][index]
        if timing["speedup"] is not None:
            where = {"provider": entry["provider"], "batch": timing["batch"], "threads": entry["threads"]}
            found.append({**timing["speedup"], **where})
    return found


def judged(numbers: dict[str, Any], everywhere: Sequence[Record] = ()) -> dict[str, Any]:
    """The verdict that numbers as those of `verdict_on_run` give, with the speedups in all settings."""
    speed = numbers["speedup"]
    because: list[str] = []
    worth: bool | None
    smaller = (numbers["smaller"] or numbers["fewer_params"] or 1.0) > 1.0
    if speed is None:
        worth = smaller
        because.append("latency was not measured")
    elif speed["low"] is not None and speed["low"] > 1.0:
        worth = True
    elif _vague(speed) and speed["value"] > 1.0:
        worth = None
        because.append("whether it is faster is undecided: the machine was too noisy while it was timed")
    else:
        slower = speed["high"] is not None and speed["high"] < 1.0
        worth = False
        because.append(
            "it is slower than the original"
            if slower
            else "it is no faster than the original beyond the uncertainty of the measurement"
        )
        if smaller:
            because.append("what is left is the smaller file")
    if worth and (numbers["accuracy"] or 0.0) < -_DEAR:
        worth = None
        because.append(f"whether that is worth {-100 * numbers['accuracy']:.2f} points of accuracy is open")
    if worth is not None and speed is not None and _vague(speed):
        because.append("the machine was disturbed while it was timed: see how wide the interval is")
    # The first is the one that decided.
    vain = [setting(other) for other in everywhere[1:] if _vain(other)]
    if worth is not False and vain:
        because.append(f"it is not shown to be faster on {'; nor on '.join(vain)}")
    phrases = _phrases(numbers)
    text = (
        f"{phrases[0].upper()}{phrases[1:]}." if worth is not False else f"Not worth it for speed: {phrases}."
    )
    return {"worth": worth, "text": text, "because": because} | numbers


def _vague(speed: Record) -> bool:
    """Whether a speedup's interval is too wide for its value to be named alone."""
    return speed["low"] is not None and speed["high"] is not None and speed["high"] > _WIDE * speed["low"]


def _vain(speed: Record) -> bool:
    return speed["low"] is None or speed["low"] <= 1.0


def _phrases(numbers: Record) -> str:
    """The numbers that are known: "2.41x as fast on CPU, 1.90x smaller, −0.60 points of accuracy"."""
    found = []
    if speed := numbers["speedup"]:
        times = f"{speed['low']:.2f} to {speed['high']:.2f}x" if _vague(speed) else f"{speed['value']:.2f}x"
        found.append(f"{times} as fast on {speed['provider'].upper()}")
    if numbers["smaller"]:
        found += _times(numbers["smaller"], "smaller", "larger")
    elif numbers["fewer_params"]:
        found += _times(numbers["fewer_params"], "fewer parameters", "more parameters")
    if numbers["fewer_macs"]:
        found += _times(numbers["fewer_macs"], "fewer MACs", "more MACs")
    if numbers["accuracy"] is not None:
        found.append(f"{100 * numbers['accuracy']:+.2f} points of accuracy".replace("-", "−"))
    elif numbers["error"] is not None:
        found.append(f"output error {numbers['error']:.3g}")
    return ", ".join(found) or "nothing was measured"


def _times(ratio: float, less: str, more: str) -> list[str]:
    """A phrase; none where nothing has changed to two places."""
    if f"{ratio:.2f}" == "1.00":
        return []
    return [f"{ratio:.2f}x {less}" if ratio >= 1 else f"{1 / ratio:.2f}x {more}"]
