"""A look at one layer: rows of what it sees now, and what the original makes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.calibration.nonlinearity import Aim
from onnxdecomp.calibration.pinned_values import loose
from onnxdecomp.calibration.residual import branch
from onnxdecomp.calibration.row_gatherer import Draw, Places, RowGatherer
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.moments import Moments, features, merged
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.session import Feed

_HELD = 1 << 28
"""Bytes of rows that are held for further looks."""


_WIDE = 4
"""As many times more outputs than features has a layer whose outputs are not computed row by row."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A layer as it was in the original, where a cut has left less of it.

    Attributes:
        match: The layer in the original.
        outputs: Which of its outputs are left, int [T'], or what they are mapped by, float [T', T]; None:
            they are as they were.
    """

    match: LayerMatch
    outputs: Array | None = None

    def left(self, outputs: Array) -> Array:
        """What is left of outputs [n, T] of the original."""
        if self.outputs is None:
            return outputs
        if self.outputs.ndim == 2:
            return np.asarray(outputs @ self.outputs.T.astype(outputs.dtype))
        return np.asarray(outputs[:, self.outputs])

    def then(self, outputs: Array) -> Reference:
        """The same after one more change, of what is left by now."""
        first = self.outputs
        if first is None:
            return Reference(self.match, outputs)
        if outputs.ndim == 1:
            return Reference(self.match, first[outputs])
        if first.ndim == 2:
            return Reference(self.match, outputs @ first)
        whole = np.zeros((len(outputs), self.match.layer.outputs))
        whole[:, first] = outputs
        return Reference(self.match, whole)


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows [g, n, D], the outputs wanted and what is added to them, both [n, T]."""

    index: int
    rows: Array
    wanted: Array
    added: Array | None


class Look:
    """What is gathered of one layer in a walk over the inputs.

    Args:
        match: The layer as it stands now.
        reference: The layer in the original, where that is another one by now.
        draw: How rows are drawn.
        aim: Changes the wanted outputs; second moments are left out then.
        alone: What another branch has lost that an output is added to is not wanted.
        hold: Keep the rows, where they are not too many, for `aimed`.
    """

    def __init__(
        self,
        match: LayerMatch,
        reference: Reference | None,
        draw: Draw,
        aim: Aim | None = None,
        *,
        alone: bool = False,
        hold: bool = False,
    ) -> None:
        self._other = None if alone else branch(match)
        self._match, self._reference, self._draw, self._aim = match, reference, draw, aim
        self.names = [match.x.name or ""]
        if self._other is not None:
            self.names.append(self._other.name or "")
        self._gather = RowGatherer(match, draw, second=aim is None)
        self._original = self._gather
        of = match if reference is None else reference.match
        if reference is not None:
            self._original = RowGatherer(of, draw, second=False)
        self._apart = loose(match.x) or (self._other is not None and loose(self._other))
        # What a convolution makes is there to be read; it need not be computed once more from its rows.
        self._reads = not self._apart and _gives_out_what_it_makes(of)
        self.original_names = [*self.names, of.output.name or ""] if self._reads else self.names
        plain = aim is None and not hold and self._other is None and reference is None and not self._reads
        self._through = plain and wide(match.layer)
        if self._through:
            self._gather = RowGatherer(match, draw, through=True)
        self._held: list[_Part] | None = [] if hold else None
        self._size = 0

    def add(self, index: int, looked: Sequence[Array], meant: Sequence[Array], feed: Feed) -> None:
        """The values of `names` now, and of `original_names` in the original, for one batch."""
        gather, reference = self._gather, self._reference
        # Rows that are no counterparts, chosen by other scores or drawn anew, say nothing about each other.
        unlike = self._apart or any(
            self._positions(one) != self._positions(two)
            for one, two in zip(looked, meant[: len(looked)], strict=True)
        )
        if unlike and reference is not None:
            return
        seen = meant[: len(looked)] if unlike else looked
        for at in gather.places(seen[0], feed):
            if self._through:
                gather.add_through(index, gather.rows(seen[0], at), gather.rows(meant[0], at))
                continue
            rows, wanted = gather.rows(seen[0], at), self._wanted(meant, at)
            wanted = wanted if reference is None else reference.left(wanted)
            added = None
            if self._other is not None:
                # The branch may be the layer's own input, which is then tapped once.
                added, then = gather.outputs(seen[-1], at), gather.outputs(meant[len(looked) - 1], at)
                wanted = wanted + (then if reference is None else reference.left(then)) - added
            if self._aim is not None:
                wanted = self._aimed(self._aim, rows, wanted, added)
            self._hold(_Part(index, rows, wanted, added))
            gather.add(index, rows, wanted)

    def _wanted(self, meant: Sequence[Array], at: Places) -> Array:
        """What the original layer makes at these places, [n, T]."""
        if self._reads:
            return self._original.outputs(meant[-1], at)
        return self._original.wanted(self._original.rows(meant[0], at))

    def halves(self) -> tuple[Moments, Moments | None]:
        """The moments of the rows, and of held-out ones."""
        return self._gather.halves()

    def aimed(self, aim: Aim) -> Moments | None:
        """The moments of all rows, but for second ones, where others are wanted; None where none are held."""
        if not self._held:
            return None
        gather = RowGatherer(self._match, self._draw, second=False)
        for part in self._held:
            gather.add(part.index, part.rows, self._aimed(aim, part.rows, part.wanted, part.added))
        return merged(*gather.halves())

    def _aimed(self, aim: Aim, rows: Array, wanted: Array, added: Array | None) -> Array:
        return aim.wanted(self._gather.made(rows, aim.weight, aim.bias), wanted, added)

    def _hold(self, part: _Part) -> None:
        if self._held is not None:
            self._size += part.rows.nbytes + part.wanted.nbytes
            self._size += 0 if part.added is None else part.added.nbytes
            self._held.append(part)
            if self._size > _HELD:
                self._held = None

    def _positions(self, x: Array) -> tuple[int, ...]:
        """The shape without the axis of the features, whose number a cut changes."""
        if self._reference is None:
            return x.shape
        if self._match.layer.conv is not None:
            return (*x.shape[:1], *x.shape[2:])
        return self._match.adapter.rows(x).shape[:-1]


def wide(layer: Layer) -> bool:
    """Whether what the layer makes of rows is so much more than they are that its moments follow from theirs.

    Of convolutions rows lie in another order.
    """
    return layer.conv is None and layer.outputs >= _WIDE * layer.groups * features(layer)


def _gives_out_what_it_makes(match: LayerMatch) -> bool:
    """Whether a layer's output can be read instead of computed from its rows, without more rounding."""
    layer = match.layer
    plain = layer.conv is not None and match.adapter.is_plain and not match.quantized
    return plain and layer.dtype in ("float32", "float64")
