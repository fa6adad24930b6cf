"""Stages of a plan that was begun before: what was kept of them stands for doing them again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.apply.cut_channels import Selected, channel_to_cut
from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.apply.storable import Storable
from onnxdecomp.calibration.activation_cache import Moved
from onnxdecomp.channels.new_numbers import NewNumbers
from onnxdecomp.core import steps
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec
from onnxdecomp.fitting.select_units import RefittedReader
from onnxdecomp.layers.emitter import Share
from onnxdecomp.search.plan import Cut
from onnxdecomp.tasks.journal import Journal
from onnxdecomp.tasks.values import Codec

CODEC = Codec(
    (
        *(Storable, Chain, ConvSpec, NewNumbers, RefittedReader),
        *(kind for kind in vars(steps).values() if isinstance(kind, type)),
    )
)
"""Packs what stages give."""


@dataclass(frozen=True, eq=False)
class KeptStages:
    """The stages of one plan.

    Attributes:
        journal: Keeps them; without one each is done anew.
    """

    journal: Journal | None

    def layer(
        self,
        make: Callable[[], Storable | None],
        fitter: Fitter | None,
        pending: Collection[ir.Node],
        share: Share | None,
        *,
        joint: bool,
    ) -> Storable | None:
        """What is put in a layer's place; of a `joint` one something is left for the layers after it."""
        if self.journal is None:
            return make()

        def call() -> tuple[Storable, bool] | None:
            made = make()
            return None if made is None else (replace(made, share=None), made.share is not None)

        def kind(value: object) -> tuple[Storable, bool] | None:
            match value:
                case None:
                    return None
                case (Storable() as stored, bool(shared)):
                    return stored, shared
            raise ValueError("is no layer's chain")

        found = self.journal.call(call, kind, _windows(fitter, pending), again=joint)
        if found is None:
            return None
        return replace(found[0], share=share) if found[1] else found[0]

    def cut(
        self,
        make: Callable[[], Selected],
        model: ir.Model,
        cut: Cut,
        fitter: Fitter | None,
        pending: Collection[ir.Node],
    ) -> Selected:
        """What a cut leaves of a channel, of the model as it is by now."""
        if self.journal is None:
            return make()

        def call() -> tuple[object, ...]:
            made = make()
            return made.numbers, made.fitted, made.unfitted, made.loss, made.held_out

        def kind(value: object) -> tuple[object, ...]:
            assert isinstance(value, tuple)
            return value

        match self.journal.call(call, kind, _windows(fitter, pending)):
            case (NewNumbers() as numbers, bool(fitted), str(unfitted), loss, held):
                known = [one if isinstance(one, float) else None for one in (loss, held)]
                return Selected(channel_to_cut(model, cut), numbers, fitted, unfitted, *known)
        raise ValueError("is no cut")

    def statistics(
        self, make: Callable[[], tuple[Array, Array] | None], fitter: Fitter, pending: Collection[ir.Node]
    ) -> tuple[Array, Array] | None:
        """What becomes of a normalisation."""
        if self.journal is None:
            return make()

        def kind(value: object) -> tuple[Array, Array] | None:
            match value:
                case None:
                    return None
                case (np.ndarray() as mean, np.ndarray() as variance):
                    return mean, variance
            raise ValueError("are no statistics")

        return self.journal.call(make, kind, _windows(fitter, pending))

    def end(self) -> None:
        """The plan was carried out."""
        if self.journal is not None:
            self.journal.end()


def _windows(fitter: Fitter | None, pending: Collection[ir.Node]) -> list[Moved]:
    if fitter is None:
        return []
    return [Moved(fitter.now, pending), Moved(fitter.original, fitter.original.counterparts(pending))]
