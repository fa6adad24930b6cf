"""What siblings lose with one first factor, against what they lose with chains of their own, at equal MACs.

    python -m bench.siblings MODEL.onnx=CALIB.npz … [--ratios 1.25,1.5,2,3]

Of every group of layers that read one activation: the mean of their relative losses on a third of the inputs
that nothing was fitted to. "own chains" are the best of svd, tucker and spatial at the ranks, or the layers
as they are, that a knapsack picks within the group's MACs; "shared" has all layers in the group; "search" is
the best of both and of parts of the group; "svd alike" gives each layer the same share of its MACs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bench.provenance import markdown, provenance, write
from onnxdecomp.calibration.statistics import Calibration, centred, observe_unchanged
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.decompositions.base import Decomposition, outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.decompositions.shared import Shared
from onnxdecomp.fitting.fit import dense_rows, fit
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.fitting.quadratic_loss import as_rows, problem
from onnxdecomp.fitting.shared_factor import fit_first, fit_last
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.layers.siblings import Siblings, siblings
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.search.candidates import (
    QUICK,
    Candidate,
    candidates,
    dense_cost,
    methods_for,
    outlines,
    posed_for,
    ranks_at,
)
from onnxdecomp.search.knapsack import Option, OutOfReach
from onnxdecomp.search.plan import cost_after_first, cost_of
from onnxdecomp.search.sibling_candidates import sibling_outlines
from onnxdecomp.search.sibling_choice import Agreement, allocate_agreeing

_ROWS = 12000

Halves = Sequence[tuple[Moments, Moments | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx=CALIB.npz")
    parser.add_argument("--ratios", default="1.25,1.5,2,3")
    parser.add_argument("--groups", type=int, default=8, help="the first groups of each model")
    args = parser.parse_args()
    ratios = [float(text) for text in args.ratios.split(",")]
    rows: list[dict[str, Any]] = []
    for text in args.models:
        file, calib = (Path(part) for part in text.split("="))
        rows += _measured(file, calib, ratios, args.groups)
    write("siblings", {**provenance(), "rows": rows}, _table(rows))


def _measured(file: Path, calib: Path, ratios: Sequence[float], most: int) -> list[dict[str, Any]]:
    model = ir.from_proto(onnx.load(file))
    infer_shapes(model)
    feeds = _feeds(model, calib)
    cut = len(feeds) * 2 // 3
    matched, _ = find(model)
    groups = siblings(matched, ties(matched)).groups[:most]
    rows: list[dict[str, Any]] = []
    for group in groups:
        own = [matched[place] for place in group]
        halves = observe_unchanged(model, own, _calibration(feeds[:cut], 0.25))
        unseen = [train for train, _ in observe_unchanged(model, own, _calibration(feeds[cut:], 0.0))]
        names = [match.layer.name for match in own]
        for ratio in ratios:
            losses = _Group(own, halves, unseen).losses(ratio)
            print(file.stem, names[0], ratio, {k: v and round(v, 5) for k, v in losses.items()}, flush=True)
            rows.append({"model": file.stem, "layers": names, "macs": ratio, **losses})
    return rows


class _Group:
    """Siblings with what they see, and what they see elsewhere."""

    def __init__(self, own: Sequence[LayerMatch], halves: Halves, unseen: Sequence[Moments]) -> None:
        self.own, self.halves = own, halves
        self.layers = [match.layer for match in own]
        self.judges = [
            problem(moments, as_rows(match.layer.weight, match.layer), centred=centred(match))
            for moments, match in zip(unseen, own, strict=True)
        ]
        self.dense = [dense_cost(layer).macs for layer in self.layers]

    def losses(self, ratio: float) -> dict[str, float | None]:
        return {
            "shared": self.shared(ratio),
            "svd alike": self.alike(ratio),
            "own chains": self.chosen(ratio, together=False),
            "search": self.chosen(ratio, together=True),
        }

    def alike(self, ratio: float) -> float | None:
        """Every layer as its svd at the same share of its MACs."""
        found = []
        for place, (layer, macs) in enumerate(zip(self.layers, self.dense, strict=True)):
            ranks = ranks_at(get("svd"), layer, macs / ratio, 1, "macs")
            if ranks is None:
                return None
            found.append(self._fitted(place, get("svd"), ranks))
        return float(np.mean(found))

    def chosen(self, ratio: float, *, together: bool) -> float | None:
        """The best chains of their own, some layers perhaps as they are; with `together` shared ones too."""
        options = [[None, *own] for own in self.weighed]
        if together:
            for place, own in self.joint.items():
                options[place] += own
        items = [
            [Option(float(macs), 0.0)]
            + [Option(float(c.outline.cost.macs), max(0.0, c.loss)) for c in own if c is not None]
            for own, macs in zip(options, self.dense, strict=True)
        ]
        modes = {
            place: [None if c is None or not c.group else (c.group, c.outline.ranks) for c in own]
            for place, own in enumerate(options)
        }
        members = {mode: mode[0] for own in modes.values() for mode in own if mode is not None}
        found = allocate_agreeing(
            items, [Agreement(modes, members)] if together else [], [sum(self.dense) / ratio], fixed=[0.0]
        )
        if isinstance(found, OutOfReach):
            return None
        picked = [own[index] for own, index in zip(options, found.choice, strict=True)]
        group = next((c.group for c in picked if c is not None and c.group), ())
        losses = [
            0.0 if c is None else self._fitted(place, c.outline.method, c.outline.ranks)
            for place, c in enumerate(picked)
            if place not in group
        ]
        if group:
            (rank,) = next(c.outline.ranks for c in picked if c is not None and c.group)
            losses += self._together(group, rank)
        return float(np.mean(losses))

    @cached_property
    def weighed(self) -> list[list[Candidate]]:
        """What could be done to each layer alone."""
        found = []
        for match, (train, held) in zip(self.own, self.halves, strict=True):
            outlined = outlines(match, methods_for(QUICK, match))
            found.append(candidates(match, outlined, merged(train, held), worse=100.0))
        return found

    @cached_property
    def joint(self) -> dict[int, list[Candidate]]:
        """What could be done to them together."""
        kin = Siblings((tuple(range(len(self.own))),), {})
        found: dict[int, list[Candidate]] = {}
        posed = [posed_for(match, merged(*half)) for match, half in zip(self.own, self.halves, strict=True)]
        for part in sibling_outlines(self.own, kin, [True] * len(self.own), ("shared",)):
            own = part.candidates(self.own, [posed[p] for p in part.places], [1.0] * len(part.places))
            for place, extra in zip(part.places, own, strict=True):
                found.setdefault(place, []).extend(extra)
        return found

    def shared(self, ratio: float) -> float | None:
        """One first factor at the largest rank within the MACs."""
        allowed = sum(self.dense) / ratio
        ranks = [rank for rank in range(1, self.layers[0].inputs + 1) if self._macs(rank) <= allowed]
        if not ranks:
            return None
        return float(np.mean(self._together(range(len(self.own)), ranks[-1])))

    def _together(self, places: Sequence[int], rank: int) -> list[float]:
        layers = [self.layers[place] for place in places]
        halves = [self.halves[place] for place in places]
        middles = [centred(self.own[place]) for place in places]
        first = fit_first(layers, halves, rank, centred=middles)
        return [
            self._judged(place, fit_last(layer, first, *half, centred=middle).chain)
            for place, layer, half, middle in zip(places, layers, halves, middles, strict=True)
        ]

    def _macs(self, rank: int) -> int:
        chains = [outline(Shared(), layer, (rank,)) for layer in self.layers]
        first, *others = zip(chains, self.layers, strict=True)
        return cost_of(*first).macs + sum(cost_after_first(*other).macs for other in others)

    def _fitted(self, place: int, method: Decomposition, ranks: tuple[int, ...]) -> float:
        middle = centred(self.own[place])
        found = fit(method, self.layers[place], ranks, *self.halves[place], centred=middle)
        return self._judged(place, found.chain)

    def _judged(self, place: int, chain: Any) -> float:
        return max(0.0, self.judges[place].relative(dense_rows(chain, self.layers[place])))


def _calibration(feeds: Sequence[dict[str, Any]], held_out: float) -> Calibration:
    together = Feeds(tuple(feeds), "the calibration file", stackable=True)
    return Calibration(together, batch=4, rows=_ROWS, held_out=held_out, threads=1)


def _feeds(model: ir.Model, calib: Path) -> list[dict[str, Any]]:
    with np.load(calib) as stored:
        arrays = {name: stored[name] for name in stored.files}
    axes = {str(value.name): len(value.shape or ()) for value in model.graph.inputs}
    count = len(next(iter(arrays.values())))
    return [
        {n: a[k][None] if a[k].ndim == axes[n] - 1 else a[k] for n, a in arrays.items() if n in axes}
        for k in range(count)
    ]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The mean over a model's groups; groups that one of the three cannot take are left out."""
    names = ("search", "shared", "own chains", "svd alike")
    lines = []
    for (model, ratio), found in itertools.groupby(
        sorted(rows, key=lambda row: (row["model"], row["macs"])), key=lambda row: (row["model"], row["macs"])
    ):
        own = [row for row in found if all(row[name] is not None for name in names)]
        if own:
            means = [f"{np.mean([row[name] for row in own]):.5f}" for name in names]
            better = sum(row["search"] < row["own chains"] for row in own)
            lines.append((model, f"{ratio:g}x", *means, f"{better} of {len(own)}"))
    return markdown(("model", "MACs", *names, "groups where the search finds less"), lines)


if __name__ == "__main__":
    main()
