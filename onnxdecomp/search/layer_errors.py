"""Errors of our own cost a layer and not the run: the layer is kept, and its reason says why."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from onnxdecomp.core.names import some
from onnxdecomp.errors import DefectError, OnnxDecompError
from onnxdecomp.search.keep_layers import Key, key_of, uncut
from onnxdecomp.search.plan import Choice, Cut, Plan

_KEPT = "kept for an error of onnxdecomp: "
_LONGEST = 300
_ADVICE = re.compile(r" \((this is a bug|run with --debug)[^)]*\)$")
"""What an error says at its end to those whose run it has cost."""

_log = logging.getLogger(__name__)


def foreseen(error: Exception) -> bool:
    """Whether an error is the user's to know: of the request, the data or the model, and not ours."""
    return isinstance(error, OnnxDecompError) and not isinstance(error, DefectError)


def defect_of(error: Exception) -> DefectError:
    """An error that was not foreseen, as one of ours."""
    if isinstance(error, DefectError):
        return error
    text = " ".join(str(error).split())[:_LONGEST]
    return DefectError(f"{type(error).__name__}{f': {text}' if text else ''}")


def reason_for(error: Exception, layer: str) -> str:
    """The reason why a layer is kept that an error of ours has met; the traceback is logged."""
    _log.info("the layer %r is kept", layer, exc_info=error)
    text = " ".join(str(defect_of(error)).split())
    return f"{_KEPT}{_ADVICE.sub('', text)}"


def keeping(plan: Plan, reasons: Mapping[Key, str]) -> Plan:
    """The plan with these layers kept as they are, bit for bit, for these reasons."""

    def kept(choice: Choice) -> Choice:
        if (reason := reasons.get(key_of(choice))) is None:
            return choice
        kept = replace(choice, method=None, options={}, ranks=(), group="", after=None)
        return replace(kept, reason=reason, fixed=True)

    def whole(cut: Cut) -> Cut:
        return cut if (reason := reasons.get(key_of(cut))) is None else uncut(cut, reason)

    choices, channels = tuple(map(kept, plan.choices)), tuple(map(whole, plan.channels))
    return replace(plan, choices=choices, channels=channels)


def error_notes(plan: Plan) -> tuple[str, ...]:
    """What is said of the layers of a plan that an error of ours has met."""
    layers: dict[str, list[str]] = {}
    told = [(choice.layer, choice.reason) for choice in plan.choices]
    for name, reason in (*told, *((cut.channel, cut.reason) for cut in plan.channels)):
        if reason.startswith(_KEPT):
            layers.setdefault(reason, []).append(name)
    return tuple(
        f"{some(names)}: {reason}; please report it, with the traceback that --debug shows"
        for reason, names in layers.items()
    )
