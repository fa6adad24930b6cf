"""Tables of layers and channels; of many repeated ones a row for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxdecomp.cli import console
from onnxdecomp.record.families import channel_families, layer_families
from onnxdecomp.record.schema.layers import Change
from onnxdecomp.record.text import count, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from onnxdecomp.record.schema.families import ChannelFamily, FamilyResult, LayerFamily, Range
    from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord

_LONGEST = 48
"""Characters that are shown of the name of a layer at the other end of a channel."""


def layer_table(
    layers: Sequence[LayerRecord], *, shapes: bool = False, every: bool = False
) -> list[RenderableType]:
    """A row for each layer, or for each family of layers where most are repeated.

    Args:
        layers: What happened to each.
        shapes: With the shapes of weights and activations.
        every: A row for each of them however many there are.
    """
    if not layers:
        return ["no layer of this model can be decomposed: it has no operator with a constant weight"]
    families = None if every else layer_families(layers)
    if families is not None:
        return [_of_families(families, shapes)]
    params = _arrows([layer.params for layer in layers])
    macs = _arrows([layer.macs for layer in layers])
    errors = any(layer.rel_error is not None for layer in layers)
    where = ("weight", "input") if shapes else ()
    columns = ("layer", "op", *where, "result", "parameters", "MACs", *(("weight error",) if errors else ()))
    rows = [
        (
            whole_name(layer),
            layer.op,
            *((_shape(layer.weight), _shape(layer.input or (None,))) if shapes else ()),
            _result(layer),
            params[index],
            "?" if _unsized(layer) else macs[index],
            *(("" if layer.rel_error is None else f"{layer.rel_error:.2g}",) if errors else ()),
        )
        for index, layer in enumerate(layers)
    ]
    kept = [index for index, layer in enumerate(layers) if not layer.method and not layer.left]
    return [console.table(None, columns, rows, whole=set(columns) - {"layer", "result"}, dim=kept)]


def _of_families(families: Sequence[LayerFamily], shapes: bool) -> Table:
    params, macs = _arrows([one.params for one in families]), _arrows([one.macs for one in families])
    errors = any(one.rel_error is not None for one in families)
    where = ("input",) if shapes else ()
    columns = (
        *("layer", "op", "layers", "weight", *where, "result", "parameters", "MACs"),
        *(("weight error",) if errors else ()),
    )
    rows = [
        (
            *(one.name, one.op, one.layers, _shape(one.weight)),
            *((_shape(one.input or (None,)),) if shapes else ()),
            _results(one.results),
            params[index],
            "?" if one.params.before is not None and one.macs.before is None else macs[index],
            *((_spread(one.rel_error),) if errors else ()),
        )
        for index, one in enumerate(families)
    ]
    kept = [index for index, one in enumerate(families) if not _changed(one.results)]
    return console.table(None, columns, rows, whole=set(columns) - {"layer", "result"}, dim=kept)


def _of_channel_families(families: Sequence[ChannelFamily]) -> Table:
    losses = any(one.loss is not None for one in families)
    columns = ("channel", "channels", "made by", "read by", "units", "result", *(("loss",) if losses else ()))
    rows = [
        (
            *(one.name, one.channels, shortened(one.producers, _LONGEST)),
            *(shortened(one.readers, _LONGEST) or "a product", one.width, _results(one.results, "whole")),
            *((_spread(one.loss),) if losses else ()),
        )
        for one in families
    ]
    kept = [index for index, one in enumerate(families) if not _changed(one.results)]
    names = {"channel", "made by", "read by", "result"}
    return console.table(None, columns, rows, whole=set(columns) - names, dim=kept)


def _changed(results: Sequence[FamilyResult]) -> bool:
    return any(result.method or result.left for result in results)


def _results(results: Sequence[FamilyResult], otherwise: str = "kept") -> str:
    """What happened to how many: "6 svd 96-192, 18 kept"; without the number where it is one thing."""
    told: dict[str, int] = {}
    for result in results:
        left = f"to {'x'.join(map(_spread, result.left))}" if result.left else ""
        if result.method and result.ranks:
            what = f"{result.method} {','.join(map(_spread, result.ranks))}{', cut ' if left else ''}{left}"
        elif left:
            what = f"{result.method or 'cut'} {left}"
        else:
            what = result.method or (f"{otherwise}, repaired" if result.repaired else otherwise)
        told[what] = result.members
    return next(iter(told)) if len(told) == 1 else ", ".join(f"{many} {what}" for what, many in told.items())


def _spread(value: Range | None) -> str:
    if value is None:
        return ""
    low, high = (f"{end:.2g}" if end % 1 else f"{end:.0f}" for end in (value.low, value.high))
    return low if low == high else f"{low}-{high}"


def _result(layer: LayerRecord) -> str:
    cut = f"cut to {_shape(layer.left)}" if layer.left else ""
    if layer.method:
        return f"{layer.method} {','.join(map(str, layer.ranks))}{f', {cut}' if cut else ''}"
    return cut or ("kept, repaired" if layer.repaired else "kept")


def channel_table(channels: Sequence[ChannelRecord], *, every: bool = False) -> list[RenderableType]:
    """Those that could be cut, see `layer_table`; what something breaks is named among the reasons."""
    shown = [channel for channel in channels if channel.width > 1]
    if not shown:
        return []
    families = None if every else channel_families(channels)
    if families is not None:
        return [_of_channel_families(families)]
    several = any(len(channel.producers) > 1 for channel in shown)
    losses = any(channel.loss is not None for channel in shown)
    columns = (
        *("channel", *(("made with",) if several else ()), "read by", "result", "units"),
        *(("loss",) if losses else ()),
    )
    units = _arrows([Change(channel.width, channel.kept) for channel in shown])
    rows = [
        (
            channel.name,
            *((_few(channel.producers[1:]),) if several else ()),
            _few(channel.readers) or "a product",
            channel.method or "whole",
            units[index],
            *(("" if channel.loss is None else f"{channel.loss:.2g}",) if losses else ()),
        )
        for index, channel in enumerate(shown)
    ]
    whole = [index for index, channel in enumerate(shown) if not channel.method]
    names = {"channel", "made with", "read by"}
    return [console.table(None, columns, rows, whole=set(columns) - names, dim=whole)]


def _few(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{shortened(names[0], _LONGEST)}{more}" if names else ""


def _unsized(layer: LayerRecord) -> bool:
    """Whether a weight that was read meets an activation of unknown size."""
    return layer.params.before is not None and layer.macs.before is None


def _shape(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def whole_name(layer: LayerRecord) -> str:
    """With the subgraph or function that it stands in."""
    return f"{layer.graph}/{layer.name}" if layer.graph else layer.name


def _arrows(changes: Sequence[Change]) -> list[str]:
    """Quantities before and after, the arrows one below the other."""
    before = ["" if change.before is None else count(change.before) for change in changes]
    width = max(map(len, before))
    return [
        f"{text:>{width}}"
        + ("" if change.after in (None, change.before) else f" -> {count(change.after or 0)}")
        for text, change in zip(before, changes, strict=True)
    ]
