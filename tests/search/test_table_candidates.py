"""Candidates of tables lose what the fit of all uses loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxdecomp.data import decode
from onnxdecomp.decompositions.registry import get
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.search.candidates import Candidate, Outline, candidates, outlined
from onnxdecomp.search.table_candidates import TableCandidates
from tests.builders.decoder import decoder
from tests.builders.feeds import calibration
from tests.builders.graphs import loaded


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> TableCandidates:
    path = tmp_path_factory.mktemp("tables") / "decoder.onnx"
    onnx.save(decoder(), path)
    feeds = decode(path, [[number, 7] for number in range(8)], steps=3)
    model = loaded(decoder())
    matched = find(model)[0]
    options = [outlines_of(match) for match in matched]
    return TableCandidates.of(model, matched, ties(matched), options, replace(calibration([]), feeds=feeds))


def outlines_of(match: LayerMatch) -> Sequence[Outline]:
    method = get("svd")
    return [outlined(match, method, (rank,)) for rank in (2, 5, 8)] if match.layer.weight.ndim == 2 else []


def place(tables: TableCandidates, name: str) -> int:
    return next(index for index, match in enumerate(tables.matched) if match.layer.name == name)


def fitted(tables: TableCandidates, name: str, rank: int) -> Candidate:
    index = place(tables, name)
    found = tables.fitted(index, outlined(tables.matched[index], get("svd"), (rank,)))
    assert found is not None
    return found


def test_a_pair_has_the_same_factors(tables: TableCandidates) -> None:
    assert sorted(tables.matched[index].layer.name for index in tables.tables) == ["embedded", "logits"]
    embed, head = fitted(tables, "embedded", 5), fitted(tables, "logits", 5)
    assert embed.fitted is not None
    assert head.fitted is not None
    np.testing.assert_array_equal(embed.fitted.dense(), head.fitted.dense().T)
    assert 0 < head.loss < 1
    assert 0 < embed.loss < 1
    assert fitted(tables, "logits", 8).loss < head.loss


def test_losses_of_outlines_go_through_the_fits(tables: TableCandidates) -> None:
    index = place(tables, "embedded")
    match = tables.matched[index]
    found = candidates(match, outlines_of(match), None, fitted=lambda option: tables.fitted(index, option))
    own = {candidate.outline.ranks[0]: candidate for candidate in found}
    assert sorted(own) == [2, 5, 8]
    for rank, candidate in own.items():
        if candidate.fitted is not None:
            assert candidate.loss == pytest.approx(fitted(tables, "embedded", rank).loss)
    assert own[2].loss > own[5].loss > own[8].loss


def test_other_layers_and_random_inputs_are_left_alone(tables: TableCandidates) -> None:
    index = place(tables, "q_flat")
    match = tables.matched[index]
    assert tables.fitted(index, outlined(match, get("svd"), (4,))) is None
    options = [outlines_of(own) for own in tables.matched]
    synthetic = replace(tables.calibration, synthetic=True)
    none = TableCandidates.of(tables.model, tables.matched, ties(tables.matched), options, synthetic)
    assert not none.tables
