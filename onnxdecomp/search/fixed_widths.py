"""The plain plan of channels: units by a rule, the same for every channel whose name a pattern fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnxdecomp.calibration.attention_scores import unrotatable
from onnxdecomp.channels.channel import Channel, ChannelSkip
from onnxdecomp.channels.find_channels import BLOCKS
from onnxdecomp.core.patterns import names_of, selected
from onnxdecomp.ranks.rounding import round_to_multiple
from onnxdecomp.ranks.spec import RankSpec
from onnxdecomp.search.fixed_ranks import Request
from onnxdecomp.search.keep_layers import uncut
from onnxdecomp.search.plan import Cut

_QUANTA = 4
"""Times what kernels work in, that a block must hold for its width to be rounded to that."""


def plan_widths(
    channels: Sequence[Channel], skips: Sequence[ChannelSkip], request: Request
) -> tuple[Cut, ...]:
    """What the rules say of channels; what that costs is still to be counted.

    A channel is cut if its first producer's rule names a joint method that takes it, and no layer that the
    cut would change is asked to stay: such layers stay bit for bit.

    Args:
        channels, skips: As `find_channels` gives them; those that something breaks are named with the reason.
        request: What is asked for, with names read literally.
    """
    cuts = [_cut(channel, request) for channel in channels]
    inside = [cut for cut in cuts if cut.method is not None and not cut.channel.endswith(BLOCKS)]
    smaller = {name for cut in inside for name in cut.producers}
    cuts = [
        uncut(cut, "its blocks are made smaller")
        if cut.channel.endswith(BLOCKS) and smaller & set(cut.producers)
        else cut
        for cut in cuts
    ]
    broken = [Cut(skip.name, None, 1, 1, (skip.name,), reason=skip.reason) for skip in skips]
    return (*cuts, *broken)


def width_multiple(channel: Channel, multiple: int, quantum: int) -> int:
    """What the units that stay in each block of a channel are a multiple of.

    A width is rounded to what kernels work in where there is a choice left, whatever the target is on: a
    layer that fills its last block in part takes as long as with all of it. Convolutions compute their
    groups one by one; products of matrices compute all heads together. What is blocked are features: where a
    unit is a whole head, heads are left that have such a multiple of features.

    Args:
        channel: The channel.
        multiple: What ranks are multiples of; above 1 so are widths.
        quantum: What the kernels work in; 1 where any width is wanted.
    """
    ends = [*(own.match for own in channel.producers), *(own.match for own in channel.readers)]
    if all(match.layer.conv is None for match in ends):
        quantum //= math.gcd(quantum, channel.blocks)
    features = channel.features
    multiple, quantum = (number // math.gcd(number, features) for number in (multiple, quantum))
    rounds = multiple == 1 and channel.width // channel.blocks >= _QUANTA * quantum
    return quantum if rounds else multiple


def _cut(channel: Channel, request: Request) -> Cut:
    """What happens to one channel."""
    makers = [producer.match.layer for producer in channel.producers]
    readers = [reader.match.layer for reader in channel.readers]
    # Those that stand between are made smaller, too.
    own = [*makers, *readers, *(match.layer for match in channel.layers.values())]
    made, read = (tuple(layer.name for layer in ends) for ends in (makers, readers))
    stays = Cut(channel.name, None, channel.width, channel.width, made, read)
    rules = [next((rule for rule in request.rules if rule.fits(names_of(layer))), None) for layer in own]
    for layer, rule in zip(own, rules, strict=True):
        if not selected(names_of(layer), request.include, request.exclude):
            return replace(stays, reason=f"{layer.name} is excluded by name")
        if rule is None or not (rule.methods or rule.joint):
            return replace(stays, reason=f"{layer.name} is kept as asked")
    rule = rules[0]
    assert rule is not None  # else the layer is kept
    method = next((name for name in methods_of(channel) if name in rule.joint), None)
    if method is None:
        return replace(stays, reason="no method that is named cuts it")
    kept = _kept(channel, rule.rank, request)
    if isinstance(kept, str):
        return replace(stays, reason=kept)
    if kept == channel.width:
        return replace(stays, reason="every unit stays")
    return replace(stays, method=method, kept=kept)


def methods_of(channel: Channel) -> tuple[str, ...]:
    """The joint methods that can cut a channel, the best first."""
    linear = () if unrotatable(channel) else ("attention",)
    return (*linear, "width") if channel.readers and not channel.products else linear


def _kept(channel: Channel, rank: RankSpec, request: Request) -> int | str:
    """How many units stay, in equal numbers in every block, or why nothing is said of it.

    Fractions fill what kernels work in, where blocks are large enough to have a choice.
    """
    size, multiple = channel.width // channel.blocks, request.multiple
    if rank.rule == "fraction":
        wanted = max(channel.fewest, round(rank.amount * size))
        multiple = width_multiple(channel, multiple, request.quantum)
    elif rank.rule == "ranks" and len(rank.ranks) == 1:
        wanted = max(channel.fewest, min(rank.ranks[0] // channel.blocks, size))
    else:
        return f"how many units stay is said by one number or a fraction, not by {rank}"
    return round_to_multiple(wanted, multiple, size) * channel.blocks
