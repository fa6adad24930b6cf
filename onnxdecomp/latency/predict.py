"""From latencies of chains alone to the latency of a whole model."""

from __future__ import annotations

from collections.abc import Sequence

from onnxdecomp.latency.layer_shares import Share, Shares
from onnxdecomp.latency.measure import Timing


def part_of_whole(share: Share, timing: Timing | None) -> float:
    """The part of the original's latency that a layer takes with a chain in its place.

    Fetching weights takes as long as there are numbers, the rest as long as the chain takes when its
    weights are near, each against the dense layer. A layer that stays (None) or that could not be measured
    takes what it took.
    """
    if timing is None or timing.reason:
        return share.part
    return share.part * ((1.0 - share.cold) * timing.ratio + share.cold * timing.numbers)


def predicted_ratio(shares: Shares, timings: Sequence[Timing | None]) -> float:
    """The latency over the original's with these chains, one for each of `shares.layers`; None: it stays.

    What the original takes beside its layers stays.
    """
    saved = (
        share.part - part_of_whole(share, timing)
        for share, timing in zip(shares.layers, timings, strict=True)
    )
    return 1.0 - sum(saved)


def predicted_ms(shares: Shares, timings: Sequence[Timing | None]) -> float:
    """`predicted_ratio` in milliseconds."""
    return shares.whole_ms * predicted_ratio(shares, timings)


def prediction_error(predicted: float, measured: float) -> float:
    """|predicted - measured| / measured, of two latencies or of two ratios."""
    return abs(predicted - measured) / measured
