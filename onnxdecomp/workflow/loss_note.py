"""What is said of losses: that a target on costs alone does not pay, or that more inputs would lose less."""

from __future__ import annotations

from collections.abc import Iterable

from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.evaluate.verify import Verification
from onnxdecomp.record.schema.training import Training
from onnxdecomp.runtime.metrics import OutputError
from onnxdecomp.search.search_record import SearchRecord
from onnxdecomp.search.targets import parse_budgets

_CHANGED = 0.1
"""Of the inputs: where the first class changes for more of them, a target does not pay. A MobileNet of which
7 % changed found as many right as before."""

_MUCH = 0.5
"""The same of an output without classes: its relative error. Embeddings bear 0.35 without harm."""

LITTLE = 0.1
"""Relative error of the outputs that is not doubted: at it it is said what could be had."""

_FEW = 1.5
"""Loss on inputs held out over that on all: 1.0 to 1.2 where there are enough."""


def said_of_few(cuts: Iterable[ChannelCut]) -> tuple[str, ...]:
    """That there are few calibration inputs, where what reads cut channels loses much more on others."""
    pairs = [(cut.loss, cut.held_out) for cut in cuts if cut.loss is not None and cut.held_out is not None]
    loss, held_out = (sum(own) for own in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    if not held_out > _FEW * loss > 0:
        return ()
    times = held_out / loss
    return (
        f"few calibration inputs: on those held out, what reads cut channels loses {times:.1f} times as "
        "much as on those that it was fitted to; more inputs would help",
    )


def said_of_loss(
    target: str | None, max_error: float | None, verified: Verification | None, search: SearchRecord | None
) -> tuple[str, ...]:
    """That a target does not pay, and what could be had, where one on costs alone was met.

    Args:
        target, max_error: What was asked for.
        verified: The result against the original.
        search: What was weighed.
    """
    if target is None or max_error is not None or search is None or verified is None:
        return ()
    if any(budget.on_loss for budget in parse_budgets(target)):
        return ()
    lost = _lost(verified, _MUCH, "the outputs' relative error is {:.2g}")
    if not lost:
        return ()
    within = [point for point in search.frontier if point.loss <= LITTLE**2]
    timed = [point.latency for point in within if point.latency is not None]
    least = min(timed or [point.macs for point in within], default=1.0)
    what = "in latency" if timed else "fewer MACs"
    gain = f"about {1 / least:.2f}x {what}" if least < 0.995 else "nothing"
    return (f"{target} does not pay: {lost}; {gain} is to be had at an error of {LITTLE:g}",)


def said_of_bits(kind: str, max_error: float | None, verified: Verification | None) -> tuple[str, ...]:
    """That fewer bits lose much, where nobody has limited that, and how to have less of it.

    Args:
        kind: Of fewer bits, where these are all that was done; else "".
        max_error: What was asked for.
        verified: The result against the original.
    """
    if not kind or max_error is not None or verified is None:
        return ()
    lost = _lost(verified, LITTLE, "the outputs are off by {:.2g} of their norm")
    if not lost:
        return ()
    return (f"{kind} loses much here: {lost}; with --max-error {LITTLE:g} more stays in floating point",)


def _lost(verified: Verification, most: float, told: str) -> str:
    """What is lost beyond what is borne: first classes, or more than `most` where there are none; else ""."""
    agreed = [one.top1_agreement for one in verified.outputs if one.top1_agreement is not None]
    if agreed:
        changed = 1 - min(agreed)
        return f"the first class changes for {changed:.1%} of the inputs" if changed > _CHANGED else ""
    worst = off_most(verified)
    if worst is None or not worst.rel_l2 > most:
        return ""
    which = f" ({worst.name!r})" if len(verified.outputs) > 1 else ""
    return told.format(worst.rel_l2) + which


def off_most(verified: Verification) -> OutputError | None:
    """The floating-point output with the largest relative error: states may be larger than what counts."""
    floats = (one for one in verified.outputs if one.agreement is None)
    return max(floats, key=lambda one: one.rel_l2, default=None)


def said_of_training(learnt: Training | None) -> tuple[str, ...]:
    """That a training changed nothing, where no epoch was better."""
    if learnt is None or learnt.best:
        return ()
    return ("finetune: no epoch was better on the held-out samples: the numbers are those from before it",)
