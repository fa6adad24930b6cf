"""The plain plan of channels: units by a rule, the same for every channel whose name a pattern fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxdecomp.calibration.attention_scores import unrotatable
from onnxdecomp.channels.channel import Channel, ChannelSkip
from onnxdecomp.channels.find_channels import BLOCKS
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.patterns import names_of, selected
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.ranks.rounding import round_to_multiple
from onnxdecomp.ranks.spec import RankSpec
from onnxdecomp.search.channel_costs import behind_cuts, narrowed_layers
from onnxdecomp.search.fixed_ranks import Request
from onnxdecomp.search.keep_layers import uncut
from onnxdecomp.search.plan import Cost, Cut, Plan, cost_of


def with_channels(
    plan: Plan,
    channels: Sequence[Channel],
    skips: Sequence[ChannelSkip],
    matched: Sequence[LayerMatch],
    request: Request,
) -> Plan:
    """The plan with what its rules say of channels; the layers' costs are those behind the cuts.

    A channel is cut if its first producer's rule names a joint method that takes it, and no layer that the
    cut would change is asked to stay: such layers stay bit for bit.

    Args:
        plan: What happens to the layers.
        channels, skips: As `find_channels` gives them; those that something breaks are named with the reason.
        matched: The layers.
        request: What is asked for, with names read literally.
    """
    cuts = [_cut(channel, request, matched) for channel in channels]
    inside = [cut for cut in cuts if cut.method is not None and not cut.channel.endswith(BLOCKS)]
    smaller = {name for cut in inside for name in cut.producers}
    cuts = [
        uncut(cut, "its blocks are made smaller")
        if cut.channel.endswith(BLOCKS) and smaller & set(cut.producers)
        else cut
        for cut in cuts
    ]
    kept = {cut.channel: cut.kept for cut in cuts if cut.method is not None}
    left = narrowed_layers(matched, channels, kept)
    chosen = [behind_cuts(choice, left.get((choice.graph, choice.layer))) for choice in plan.choices]
    broken = [Cut(skip.name, None, 1, 1, (skip.name,), reason=skip.reason) for skip in skips]
    return replace(plan, choices=tuple(chosen), channels=(*cuts, *broken))


def _cut(channel: Channel, request: Request, matched: Sequence[LayerMatch]) -> Cut:
    """What happens to one channel."""
    makers = [producer.match.layer for producer in channel.producers]
    readers = [reader.match.layer for reader in channel.readers]
    ends = [*makers, *readers]
    made, read = (tuple(layer.name for layer in own) for own in (makers, readers))
    stays = Cut(channel.name, None, channel.width, channel.width, made, read)
    rules = [next((rule for rule in request.rules if rule.fits(names_of(layer))), None) for layer in ends]
    for layer, rule in zip(ends, rules, strict=True):
        if not selected(names_of(layer), request.include, request.exclude):
            return replace(stays, reason=f"{layer.name} is excluded by name")
        if rule is None or not (rule.methods or rule.joint):
            return replace(stays, reason=f"{layer.name} is kept as asked")
    rule = rules[0]
    assert rule is not None  # else the layer is kept
    method = next((name for name in methods_of(channel) if name in rule.joint), None)
    if method is None:
        return replace(stays, reason="no method that is named cuts it")
    kept = _kept(channel, rule.rank, request.multiple)
    if isinstance(kept, str):
        return replace(stays, reason=kept)
    if kept == channel.width:
        return replace(stays, reason="every unit stays")
    before, after = _costs(channel, kept, matched)
    return replace(stays, method=method, kept=kept, before=before, after=after)


def methods_of(channel: Channel) -> tuple[str, ...]:
    """The joint methods that can cut a channel, the best first."""
    linear = () if unrotatable(channel) else ("attention",)
    return (*linear, "width") if channel.readers and not channel.products else linear


def _kept(channel: Channel, rank: RankSpec, multiple: int) -> int | str:
    """How many units stay, in equal numbers in every block, or why nothing is said of it."""
    size = channel.width // channel.blocks
    if rank.rule == "fraction":
        wanted = max(1, round(rank.amount * size))
    elif rank.rule == "ranks" and len(rank.ranks) == 1:
        wanted = max(1, min(rank.ranks[0] // channel.blocks, size))
    else:
        return f"how many units stay is said by one number or a fraction, not by {rank}"
    return round_to_multiple(wanted, multiple, size) * channel.blocks


def _costs(channel: Channel, kept: int, matched: Sequence[LayerMatch]) -> tuple[Cost, Cost]:
    """What the channel's layers cost as they are, and with this channel alone cut."""
    smaller = narrowed_layers(matched, [channel], {channel.name: kept})
    before = [match.layer for match in matched if (match.layer.graph, match.layer.name) in smaller]
    return _sum(before), _sum(list(smaller.values()))


def _sum(layers: Sequence[Layer]) -> Cost:
    costs = [cost_of(dense_chain(layer), layer) for layer in layers]
    return Cost(sum(cost.params for cost in costs), sum(cost.macs for cost in costs))
