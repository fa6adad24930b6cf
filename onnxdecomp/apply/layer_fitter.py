"""Fitting the layers of a model one after the other, each to what it sees by then."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activation_cache import Window
from onnxdecomp.calibration.attention_scores import HELD, ScoreProduct, real_positions
from onnxdecomp.calibration.batchnorm import new_statistics
from onnxdecomp.calibration.look import Look, Reference
from onnxdecomp.calibration.nonlinearity import Aim, activation
from onnxdecomp.calibration.pinned_values import pins_of
from onnxdecomp.calibration.reachability import UNREACHED
from onnxdecomp.calibration.statistics import (
    Calibration,
    centred,
    draw_of,
    look_at,
    mask_feeds,
    observe_together,
    window,
)
from onnxdecomp.channels.channel import Channel, Producer
from onnxdecomp.channels.recurrent import rows_made
from onnxdecomp.core.layer import Array, Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.fitting.fit import Fit, dense_rows, fit, refit
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.fitting.refine_scores import AttentionSample
from onnxdecomp.fitting.refit_kept import repair
from onnxdecomp.fitting.shared_factor import fit_first, fit_last, refit_last
from onnxdecomp.layers.adapter import LayerMatch

ROUNDS = 2
"""Fits anew to what the activation behind a layer leaves to be wanted; one where fits are only compared."""

_AGAIN = 2
"""Rounds of the alternation of each, at most."""


_TRUSTED = 1.1
"""Loss on held-out rows over that on all, up to which a fit is taken to say what others would say."""


class Refit(Protocol):
    """Carries a fit on with other wanted outputs."""

    def __call__(self, found: Fit, layer: Layer, moments: Moments, *, centred: bool) -> Fit: ...


@dataclass(frozen=True, eq=False)
class Fitter:
    """The model that is rewritten, and the original, up to where the work stands.

    Attributes:
        calibration: The inputs.
        model: The one that is rewritten.
        now, original: Windows on what the layers see, and on what they saw.
        references: What layers were of which a cut has left less, by graph and name.
        left: Which channels a cut has left of those that a BatchNormalization had in the original.
    """

    calibration: Calibration
    model: ir.Model
    now: Window
    original: Window
    references: dict[tuple[str, str], Reference] = field(default_factory=dict)
    left: dict[ir.Node, Array] = field(default_factory=dict)

    @staticmethod
    def of(model: ir.Model, calibration: Calibration) -> Fitter:
        """For a model in which nothing was rewritten yet."""
        original = model.clone()
        seen = model if calibration.asymmetric else original
        pins = pins_of(
            original,
            calibration.feeds,
            batch=calibration.batch,
            provider=calibration.provider,
            threads=calibration.threads,
        )
        now, then = (window(of, calibration, pins, beside=2) for of in (seen, original))
        return Fitter(calibration, model, now, then)

    def fit(
        self, match: LayerMatch, method: Decomposition, ranks: Ranks, seed: int, pending: Collection[ir.Node]
    ) -> Fit | str:
        """The factors of a layer that is decomposed, or why there are none, a phrase for people.

        `pending` as for `Window.advance`.
        """
        look = self._look(match, pending)
        train, held = look.halves()
        halves = _present(train, held)
        if reason := _unusable(halves):
            return reason
        found = fit(
            method,
            match.layer,
            ranks,
            train,
            held,
            seed=seed,
            shrinkages=self.calibration.shrinkages,
            centred=centred(match),
            sweeps=self.calibration.sweeps,
        )
        return self._rectified(match, look, found, _second(halves), pending, self._refit)

    def first_of(
        self,
        siblings: Sequence[LayerMatch],
        rank: int,
        counts: Sequence[float],
        pending: Collection[ir.Node],
    ) -> Array | str:
        """The first factor [rank, S] that siblings have in common, or why there is none.

        `counts` says what the relative loss of each of them counts; `pending` as for `Window.advance`, all of
        the siblings' nodes among them.
        """
        seen = self.observe(siblings, pending, alone=True)
        if reason := next(filter(None, (_unusable(_present(*halves)) for halves in seen)), ""):
            return reason
        return fit_first(
            [match.layer for match in siblings],
            seen,
            rank,
            weights=counts,
            centred=[centred(match) for match in siblings],
            shrinkages=self.calibration.shrinkages,
        )

    def fit_sibling(self, match: LayerMatch, first: Array, pending: Collection[ir.Node]) -> Fit | str:
        """A layer's chain after the first factor that it has in common with others."""
        look = self._look(match, pending)
        train, held = look.halves()
        halves = _present(train, held)
        if reason := _unusable(halves):
            return reason
        found = fit_last(
            match.layer,
            first,
            train,
            held,
            centred=centred(match),
            shrinkages=self.calibration.shrinkages,
        )
        return self._rectified(match, look, found, _second(halves), pending, refit_last)

    def repair(self, match: LayerMatch, pending: Collection[ir.Node]) -> Fit | None:
        """Other numbers for a layer that is kept, or None where they would be of no use."""
        look = self._look(match, pending)
        train, held = look.halves()
        halves = _present(train, held)
        if not any(half.count for half in halves) or not all(half.finite for half in halves):
            return None
        found = repair(
            match.layer, train, held, shrinkages=self.calibration.shrinkages, centred=centred(match)
        )
        if found is None or not found.shrinkage:
            return found
        return self._rectified(match, look, found, _second(halves), pending, self._refit)

    def observe(
        self, matched: Sequence[LayerMatch], pending: Collection[ir.Node], *, alone: bool = False
    ) -> list[tuple[Moments, Moments | None]]:
        """Moments of several layers at once, as `calibration.statistics.observe_together` has them."""
        references = [self._reference(match) for match in matched]
        windows = self.now, self.original
        return observe_together(
            matched, *windows, self.calibration, pending, references=references, alone=alone
        )

    def attention(
        self, product: ScoreProduct, pending: Collection[ir.Node], *, again: bool = False
    ) -> list[AttentionSample]:
        """Queries and keys in the model as it is by now, and the original's scores, which are wanted.

        The probabilities are the original's as well. Where the layers that make queries and keys will be
        fitted `again`, to what the original's become, these stand for those of the model.
        """
        found: list[AttentionSample] = []
        size, feeds = 0, mask_feeds(self.calibration)
        names = product.names
        later = self.original.counterparts(pending)
        windows = zip(self.now.advance(names, pending), self.original.advance(names, later), strict=True)
        for (values, meant), feed in zip(windows, feeds, strict=False):
            # What a cut has left less of is no counterpart of what it was.
            alike = [one.shape for one in values] == [two.shape for two in meant]
            own = meant if alike and again else values
            real = real_positions(product, feed, values, self.calibration)
            for sample in product.samples(own, real, meant if alike and not again else None):
                size += sample.nbytes
                if size <= HELD:
                    found.append(sample)
        return found

    def will_turn(self, match: LayerMatch, maps: Array) -> None:
        """Remember a layer as it is before its outputs are mapped by [T, T]."""
        self._remember(match, maps)

    def will_cut(self, channel: Channel, between: Sequence[Producer], units: Array) -> None:
        """Remember the layers of a channel, and those between, as they are before other units of it go."""
        for producer in (*channel.producers, *between):
            self._remember(producer.match, _left(producer.units, units))
        for reader in channel.readers:
            self._remember(reader.match, None)
        for reader in channel.recurrences:
            self._remember(reader.match, _left(rows_made(reader), units))
        for stored in channel.stored:
            if stored.node.op_type == "BatchNormalization" and stored.at == 1:
                left = _left(stored.units.reshape(-1), units)
                known = self.left.get(stored.node)
                self.left[stored.node] = left if known is None else known[left]

    def _remember(self, match: LayerMatch, outputs: Array | None) -> None:
        known = self._reference(match) or Reference(match)
        key = match.layer.graph, match.layer.name
        self.references[key] = known if outputs is None else known.then(outputs)

    def _reference(self, match: LayerMatch) -> Reference | None:
        return self.references.get((match.layer.graph, match.layer.name))

    def _look(self, match: LayerMatch, pending: Collection[ir.Node], aim: Aim | None = None) -> Look:
        """A look at a layer, which holds its rows where an activation behind it may have others wanted."""
        hold = aim is None and self.calibration.rectified and activation(match) is not None
        look = Look(match, self._reference(match), draw_of(self.calibration), aim, hold=hold)
        look_at([look], self.now, self.original, self.calibration, pending)
        return look

    def statistics(self, node: ir.Node, pending: Collection[ir.Node]) -> tuple[Array, Array] | None:
        """Other statistics for a BatchNormalization, its mean and variance; None where it keeps its own."""
        left = self.left.get(node)
        return new_statistics(node, self.now, self.original, pending, self.calibration, left)

    def _refit(self, found: Fit, layer: Layer, moments: Moments, *, centred: bool) -> Fit:
        sweeps = min(_AGAIN, self.calibration.sweeps)
        return refit(found, layer, moments, centred=centred, sweeps=sweeps)

    def _rectified(
        self,
        match: LayerMatch,
        look: Look,
        found: Fit,
        second: Array,
        pending: Collection[ir.Node],
        again: Refit,
    ) -> Fit:
        """The fit carried on with what the activation behind the layer forgives; `second` is all rows' xx."""
        act = activation(match)
        # Where the fit does worse on rows that it has not seen, it would learn which of its own are cut off.
        trusted = found.held_out is None or found.held_out <= _TRUSTED * found.loss
        if act is None or not trusted or not self.calibration.rectified:
            return found
        for _ in range(ROUNDS if self.calibration.sweeps > 1 else 1):
            bias = found.chain.bias if centred(match) else None
            aim = Aim(act, dense_rows(found.chain, match.layer), bias)
            both = look.aimed(aim)
            if both is None:
                both = merged(*self._look(match, pending, aim).halves())
            found = again(found, match.layer, replace(both, xx=second), centred=centred(match))
        return found


def _left(units: Array, kept: Array) -> Array:
    """The places that are left where these units stay, of the unit of each place."""
    return np.flatnonzero((units < 0) | np.isin(units, kept))


def _present(train: Moments, held: Moments | None) -> list[Moments]:
    return [train] if held is None else [train, held]


def _unusable(halves: Sequence[Moments]) -> str:
    """Why nothing can be fitted to these rows, a phrase for people; "" where it can."""
    if not any(half.count for half in halves):
        return UNREACHED
    return "" if all(half.finite for half in halves) else "what it sees or makes is not finite"


def _second(halves: Sequence[Moments]) -> Array:
    """The sum of x xT over all rows: alone, since what belongs to outputs may be as large as a vocabulary."""
    return halves[0].xx if len(halves) == 1 else halves[0].xx + halves[1].xx
