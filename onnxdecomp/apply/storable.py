"""What is put in a layer's place: a chain in the layer's type, and the ways that lead to one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.apply.sibling_group import SiblingGroup
from onnxdecomp.apply.table_group import TableGroup
from onnxdecomp.core.chain import Chain, mirrored
from onnxdecomp.core.layer import Factors, Layer, Ranks
from onnxdecomp.core.weight_error import weight_error
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.errors import DefectError
from onnxdecomp.fitting.fit import Fit, in_working_type, stored
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Share


@dataclass(frozen=True, eq=False)
class Storable:
    """A chain in the layer's type, with what it has lost of the weight and of the outputs."""

    chain: Chain
    error: float
    loss: float | None
    share: Share | None = None
    unfitted: str = ""


def mended(fitting: Fitter, match: LayerMatch, pending: set[ir.Node]) -> Storable | None:
    """Other numbers for a layer that is kept, where they are of use."""
    found = fitting.repair(match, pending)
    return None if found is None else _storable(found, match)


def fitted(
    fitting: Fitter | None,
    match: LayerMatch,
    method: Decomposition,
    ranks: Ranks,
    seed: int,
    pending: set[ir.Node],
    share: Share | None,
    shared_factors: dict[Hashable, Factors],
    hidden: str | None,
) -> Storable:
    """A chain fitted to what the layer sees, or to its weight alone: then perhaps of shared factors."""
    found = None if fitting is None else fitting.fit(match, method, ranks, seed, pending)
    if isinstance(found, Fit):
        return _storable(found, match)
    factors = shared_factors.get(share.key) if share is not None else None
    chain, factors = _plain(match.layer, method, ranks, seed, share, factors)
    if share is not None:
        shared_factors[share.key] = factors
    return replace(_storable(chain, match), share=share, unfitted=found or hidden or "")


def of_table(
    table: TableGroup,
    fitter: Fitter,
    match: LayerMatch,
    pending: set[ir.Node],
    share: Share | None,
    plainly: Callable[[], Storable],
) -> Storable:
    """A chain of the factors that its table has for all of its uses."""
    found = table.chain(match, fitter, pending)
    if isinstance(found, str):
        return replace(plainly(), unfitted=found)
    chain, loss = found
    return replace(_storable(chain, match), share=share, loss=loss)


def with_siblings(
    group: SiblingGroup,
    fitting: Fitter | None,
    match: LayerMatch,
    method: Decomposition,
    pending: set[ir.Node],
    hidden: str | None,
) -> Storable:
    """A chain whose first factor is that of its siblings, too."""
    found = group.chain(match, method, fitting, pending)
    if isinstance(found, Fit):
        return _storable(found, match, in_working_type(found.chain, match.layer))
    return replace(_storable(found, match), unfitted=hidden or group.unfitted)


def _storable(found: Fit | Chain, match: LayerMatch, cast: Chain | None = None) -> Storable:
    """What was found, in the layer's type: as `cast`, or with the norms of its factors balanced."""
    chain = cast or (stored(found.chain, match.layer) if isinstance(found, Fit) else found)
    _check_range(chain, match)
    loss = found.loss if isinstance(found, Fit) else None
    return Storable(chain, weight_error(chain, match.layer), loss)


def _plain(
    layer: Layer, method: Decomposition, ranks: Ranks, seed: int, share: Share | None, factors: Factors | None
) -> tuple[Chain, Factors]:
    """The chain that is fitted to the weight alone, of factors that another layer may have brought."""
    first = layer
    if share is not None and share.flipped:
        first = replace(layer, weight=layer.weight.T, bias=None)
    factors = factors or method.fit(first, ranks, seed)
    chain = method.assemble(first, factors)
    return (chain if first is layer else mirrored(chain, layer.bias)), factors


def _check_range(chain: Chain, match: LayerMatch) -> None:
    limit = {"float16": 65504.0}.get(match.layer.dtype, np.inf)
    factors = [step.weight for step in chain.weighted]
    largest = max((float(np.abs(factor).max()) for factor in factors if factor.size), default=0.0)
    if not largest < limit:
        raise DefectError(f"its factors reach {largest:.3g}, too large for {match.layer.dtype}")
