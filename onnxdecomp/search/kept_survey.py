"""What a survey of a model has found out of its layers and channels, kept in a work folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import Moved
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.search.candidates import Candidate, Outline
from onnxdecomp.search.channel_profiles import ChannelProfile, Halves, Level
from onnxdecomp.search.sensitivity import Effect, Outputs
from onnxdecomp.tasks.journal import Journal
from onnxdecomp.tasks.values import Codec

CODEC = Codec((Moments, Effect, Level))
"""Packs what a survey finds out."""


@dataclass(frozen=True, eq=False)
class KeptSurvey:
    """One survey.

    Attributes:
        journal: Keeps what it finds out; without one nothing is.
    """

    journal: Journal | None

    def moments(self, observe: Callable[[], list[Halves]]) -> list[Halves]:
        """The moments of some layers, of rows that are fitted to and of held-out ones."""
        if self.journal is None:
            return observe()

        def kind(value: object) -> list[Halves]:
            assert isinstance(value, list)
            return [_halves(one) for one in value]

        return self.journal.call(observe, kind)

    def layer(
        self,
        weigh: Callable[[], tuple[Sequence[Candidate], Effect]],
        options: Sequence[Outline],
        outputs: Outputs,
        pending: Collection[ir.Node],
    ) -> tuple[list[Candidate], Effect]:
        """The candidates of a layer, without their numbers, and what they do to the output.

        Args:
            weigh: Finds them out.
            options: The outlines that they are of.
            outputs, pending: As for `effect`.
        """
        place = {id(option): index for index, option in enumerate(options)}

        def call() -> tuple[list[tuple[int, float]], Effect]:
            weighed, effect = weigh()
            return [(place[id(one.outline)], one.loss) for one in weighed], effect

        def kind(value: object) -> tuple[list[tuple[int, float]], Effect]:
            match value:
                case (list(losses), Effect() as effect):
                    return [(int(index), float(loss)) for index, loss in losses], effect
            raise ValueError("is no layer that was weighed")

        if self.journal is None:
            losses, effect = call()
        else:
            losses, effect = self.journal.call(call, kind, [Moved(outputs.window, pending)])
        return [Candidate(options[index], loss) for index, loss in losses], effect

    def channel(
        self,
        weigh: Callable[[], ChannelProfile],
        entry: ChannelProfile,
        outputs: Outputs,
        pending: Collection[ir.Node],
    ) -> ChannelProfile:
        """The widths of a channel with what they lose; `outputs` and `pending` as for `cut_effect`."""
        if self.journal is None:
            return weigh()

        def call() -> tuple[tuple[Level, ...], Effect]:
            found = weigh()
            return found.levels, found.effect

        def kind(value: object) -> tuple[tuple[Level, ...], Effect]:
            match value:
                case (tuple(levels), Effect() as effect):
                    return tuple(one for one in levels if isinstance(one, Level)), effect
            raise ValueError("is no channel that was weighed")

        levels, effect = self.journal.call(call, kind, [Moved(outputs.window, pending)])
        return replace(entry, levels=levels, effect=effect)

    def end(self) -> None:
        """All was weighed."""
        if self.journal is not None:
            self.journal.end()


def _halves(value: object) -> Halves:
    match value:
        case (Moments() as train, (Moments() | None) as held):
            return train, held
    raise ValueError("are no moments")
