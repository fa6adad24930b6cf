"""Fewer bits for the weights of products of matrices and of tables, activations rounded as they come.

No calibration is needed. Everything else stays as it is: convolutions too, for which ONNX Runtime's integer
kernel for activations that are rounded as they come (ConvInteger) is slower than the one for floats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.dynamic_int8 import OLDEST_OPSET
from onnxdecomp.layers.emitter import Share
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter
from onnxdecomp.layers.scope import MICROSOFT
from onnxdecomp.layers.storage import Storage
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.quantization.prepare import raised, require_float

PART = "pkg.onnxdecomp.part"
_OWN = "pkg.onnxdecomp."


def products(model: ir.Model) -> list[LayerMatch]:
    """The layers that take fewer bits so: products with a constant matrix on the right, and tables."""
    return [match for match in find(model)[0] if _is_product(match)]


def _is_product(match: LayerMatch) -> bool:
    layer, adapter = match.layer, match.adapter
    if match.place.function is not None or match.quantized or layer.dtype != "float32":
        return False
    if layer.weight.ndim != 2 or adapter.left:
        return False
    plain = layer.op_type in adapter.per_channel and layer.conv is None and adapter.feature_axis == -1
    return layer.lookup or plain


def stored(model: ir.Model, storage: Storage, keep: Collection[str] = ()) -> ir.Model:
    """The model with the weights of products and tables in a storage; it stays as it is.

    Layers that read one weight, or its transpose, share what is stored.

    Args:
        model: In float32; its opset is raised to 11 where it is older.
        storage: How.
        keep: Outputs of nodes, by name, and names of nodes that stay in floating point.

    Raises:
        ModelError: The model has fewer bits already, or its opset cannot be raised.
    """
    require_float(model, storage.name)
    copy = model.clone()
    if copy.opset_imports.get("", 1) < OLDEST_OPSET:
        copy = raised(copy, OLDEST_OPSET)
    _store(copy, [match for match in products(copy) if not kept(match, keep)], storage)
    return copy


def tables(model: ir.Model) -> list[LayerMatch]:
    """Lookups, and the products that read their tables as well: tied heads."""
    matched = products(model)
    found: set[int] = set()
    for tie in ties(matched):
        if any(matched[member].layer.lookup for member in tie.members):
            found |= {*tie.members}
    return [match for index, match in enumerate(matched) if index in found]


def store_tables(model: ir.Model, storage: Storage, keep: Collection[str] = ()) -> None:
    """Put the weights of tables, and of what is tied to them, in a storage, in place; see `stored`.

    The model may have fewer bits elsewhere.
    """
    _store(model, [match for match in tables(model) if not kept(match, keep)], storage)


def _store(model: ir.Model, matched: Sequence[LayerMatch], storage: Storage) -> None:
    rewriter = Rewriter(model)
    for match, share in zip(matched, _shares(matched), strict=True):
        last = match.nodes[-1]
        own = {key: value for key, value in last.metadata_props.items() if key.startswith(_OWN)}
        new = rewriter.replace(
            replace(match, storage=storage), dense_chain(match.layer), own, share, quantize=True
        )
        if PART in own:  # they are all of one factor's
            for node in new.nodes:
                node.metadata_props[PART] = own[PART]
    if any(node.domain == MICROSOFT for place in places(model) for node in place.graph):
        model.graph.opset_imports.setdefault(MICROSOFT, 1)


def kept(match: LayerMatch, names: Collection[str]) -> bool:
    """Whether a layer is among nodes that are named, by themselves or their outputs."""
    own = {str(node.name) for node in match.nodes} | {str(v.name) for n in match.nodes for v in n.outputs}
    return not own.isdisjoint(names)


def _shares(matched: Sequence[LayerMatch]) -> Iterator[Share | None]:
    """What each layer shares its weight by; None for one that is alone with it."""
    found: dict[int, Share] = {}
    for tie in ties(matched):
        if len(tie.members) > 1:
            for member, kin in zip(tie.members, tie.kin, strict=True):
                found[member] = Share((id(tie.root), kin.family), kin.flipped, kin.turned)
    return (found.get(index) for index in range(len(matched)))
