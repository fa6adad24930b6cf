"""Singular value spectra of layers, in a bounded number of points, with the rank that a plan cuts them at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.spectrum import Spectrum
from onnxdecomp.decompositions.base import Decomposition, refusal_of
from onnxdecomp.decompositions.registry import get
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.search.plan import Choice, Plan

POINTS = 48
"""Singular values of a spectrum that are kept, at most."""


@dataclass(frozen=True)
class LayerSpectra:
    """The spectra of one layer, by its graph and its name."""

    graph: str
    layer: str
    spectra: tuple[Spectrum, ...]


def spectra_of(matched: Sequence[LayerMatch], plan: Plan) -> tuple[LayerSpectra, ...]:
    """The spectra of every layer that the plan decomposes."""
    layers = {(match.layer.graph, match.layer.name): match.layer for match in matched}
    return tuple(
        LayerSpectra(choice.graph, choice.layer, spectra(layers[key], choice))
        for choice in plan.decomposed
        if (key := (choice.graph, choice.layer)) in layers
    )


def spectra(layer: Layer, choice: Choice) -> tuple[Spectrum, ...]:
    """One per rank; of a method with fewer ranks than spectra, all are cut at the last."""
    method = get(choice.method or "", **choice.options)
    if refusal_of(method, layer) is not None or not choice.ranks:
        return ()
    found = method.spectra(layer)
    return tuple(
        _spectrum(_name(method, choice, place), choice.ranks[min(place, len(choice.ranks) - 1)], values)
        for place, values in enumerate(found)
    )


def _name(method: Decomposition, choice: Choice, place: int) -> str:
    if place >= len(choice.ranks):  # CP: one rank that serves every mode
        return f"mode {place + 1}"
    names = method.rank_names
    return names[place] if place < len(names) and names[place] != "…" else f"rank {place + 1}"


def _spectrum(name: str, rank: int, values: Array) -> Spectrum:
    full = len(values)
    squares = np.square(np.asarray(values, np.float64))
    total = float(squares.sum())
    # Dense at the beginning, where a spectrum falls, and the cut itself.
    places = {int(place) for place in np.geomspace(1, full, POINTS - 1).round()} | {min(rank, full)}
    index = tuple(sorted(places))
    top = float(values[0]) or 1.0
    return Spectrum(
        name=name,
        rank=rank,
        full=full,
        kept=float(squares[:rank].sum()) / total if total else 1.0,
        index=index,
        values=tuple(float(values[place - 1]) / top for place in index),
    )
