"""The verdict on a result: what it bought, what it cost, and whether that is worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]


def verdict_on_run(record: Record) -> dict[str, Any]:
    """Of a compression, from the other parts of its record.

    Returns:
        `worth`: true, false, or null where nothing was measured yet (a dry run); `text`: the verdict as a
        sentence; `because`: why it is not worth it, or what else to know; and the numbers of the sentence:
        `speedup` (the first setting's, with `provider`, `batch` and `threads`), `smaller`, `fewer_params` and
        `fewer_macs` (factors), `accuracy` (change, as a fraction), `error` (relative L2, all outputs).
    """
    totals, checked = record["totals"], record["verify"] or {}
    accuracy = checked.get("accuracy")
    numbers: dict[str, Any] = {
        "speedup": _first_speedup(record["settings"]),
        "smaller": totals.get("bytes", {}).get("ratio"),
        "fewer_params": totals["params"]["ratio"],
        "fewer_macs": totals["macs"]["ratio"],
        "accuracy": None if accuracy is None else accuracy["change"],
        "error": checked.get("rel_l2"),
    }
    decomposed = [layer for layer in record["layers"] if layer["method"] is not None]
    if not decomposed:
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
    return judged(numbers)


def judged(numbers: dict[str, Any]) -> dict[str, Any]:
    """The verdict that numbers as those of `verdict_on_run` give."""
    speed, because = numbers["speedup"], []
    smaller = (numbers["smaller"] or numbers["fewer_params"] or 1.0) > 1.0
    if speed is None:
        worth = smaller
        because.append("latency was not measured")
    elif speed["low"] is not None and speed["low"] > 1.0:
        worth = True
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
    phrases = _phrases(numbers)
    text = f"{phrases[0].upper()}{phrases[1:]}." if worth else f"Not worth it for speed: {phrases}."
    return {"worth": worth, "text": text, "because": because} | numbers


def _first_speedup(settings: Sequence[Record] | None) -> dict[str, Any] | None:
    if not settings:
        return None
    return speedup_in(settings[0], 1)


def speedup_in(setting: Record, index: int) -> dict[str, Any] | None:
    """How many times as fast as the first model the one at `index` is, and where."""
    timing = setting["models"][index]
    if timing["speedup"] is None:
        return None
    where = {"provider": setting["provider"], "batch": timing["batch"], "threads": setting["threads"]}
    return {**timing["speedup"], **where}


def _phrases(numbers: Record) -> str:
    """ "2.41x as fast on cpu, 1.90x smaller, 0.6 points less accurate" ."""
    found = []
    if speed := numbers["speedup"]:
        found.append(f"{speed['value']:.2f}x as fast on {speed['provider'].upper()}")
    if numbers["smaller"]:
        found.append(_times(numbers["smaller"], "smaller", "larger"))
    elif numbers["fewer_params"]:
        found.append(_times(numbers["fewer_params"], "fewer parameters", "more parameters"))
    if numbers["fewer_macs"]:
        found.append(_times(numbers["fewer_macs"], "fewer MACs", "more MACs"))
    if numbers["accuracy"] is not None:
        found.append(f"{100 * numbers['accuracy']:+.2f} points of accuracy".replace("-", "−"))
    elif numbers["error"] is not None:
        found.append(f"output error {numbers['error']:.3g}")
    return ", ".join(found) or "nothing was measured"


def _times(ratio: float, less: str, more: str) -> str:
    return f"{ratio:.2f}x {less}" if ratio >= 1 else f"{1 / ratio:.2f}x {more}"
