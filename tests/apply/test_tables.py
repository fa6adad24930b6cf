"""Tables are fitted to how they are used, and ties stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxdecomp.calibration.statistics import window
from onnxdecomp.calibration.table_uses import TableRows, observe_table
from onnxdecomp.core.layer import Array
from onnxdecomp.data import decode
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask
from onnxdecomp.layers.find import find
from onnxdecomp.layers.tables import Table, table_of
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.runtime.session import TensorSpec
from onnxdecomp.workflow.compress import compress
from onnxdecomp.workflow.result import Result
from tests.builders.decoder import VOCABULARY, WIDTH, decoder
from tests.builders.feeds import calibration
from tests.builders.graphs import loaded, node, value
from tests.builders.graphs import model as make
from tests.builders.running import values


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Feeds]:
    """A decoder with a tied head, and what it writes."""
    path = tmp_path_factory.mktemp("tables") / "decoder.onnx"
    onnx.save(decoder(), path)
    rng = np.random.default_rng(0)
    prompts = [list(rng.integers(0, 20, 3)) for _ in range(16)]
    return path, decode(path, prompts, steps=4)


def halved(path: Path, **options: Any) -> Result:
    settings: dict[str, Any] = {
        "method": "svd",
        "rank": "0.5",
        "simplify": "none",
        "include": ("embedded", "logits"),
    }
    return compress(path, **{**settings, "bench": False, **options})


def test_a_tied_pair_is_fitted_to_both_uses_and_stays_tied(written: tuple[Path, Feeds]) -> None:
    path, feeds = written
    fitted = halved(path, calib=feeds)
    plain = halved(path, data=feeds)
    for result in (fitted, plain):
        sizes = [
            tensor.const_value.shape
            for tensor in result.model.graph.initializers.values()
            if tensor.const_value
        ]
        assert [list(size) for size in sizes].count([VOCABULARY, WIDTH // 2]) == 1
        assert [VOCABULARY, WIDTH] not in [list(size) for size in sizes]
    layers = {layer.name: layer for layer in fitted.layers if layer.status == "decomposed"}
    assert sorted(layers) == ["embedded", "logits"]
    assert all(layer.loss is not None and not layer.reason for layer in layers.values())
    assert fitted.verification is not None
    assert plain.verification is not None
    after, before = fitted.verification.rel_l2, plain.verification.rel_l2
    assert after is not None
    assert before is not None
    assert after < 0.8 * before


def test_an_embedding_alone_keeps_frequent_words_better() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((400, 16)).astype(np.float32)
    proto = make(
        [node("Gather", "table ids", "y", name="embed")],
        [value("ids", ["N", 6], onnx.TensorProto.INT64)],
        ["y"],
        {"table": table},
    )
    ids = rng.integers(-20, 0, (40, 6))  # the last words, from behind
    result = compress(loaded(proto), method="svd", rank="8", calib={"ids": ids}, bench=False, simplify="none")
    (layer,) = result.layers
    assert layer.rel_error is not None
    assert layer.loss is not None
    assert layer.loss is not None
    assert layer.rel_error is not None
    assert layer.loss < 0.5 * layer.rel_error**2


GIVEN = [{"ids": np.array([[1, 2, 2, -1]]), "mask": np.array([[1, 1, 1, k % 2]])} for k in range(8)]
TABLE = np.random.default_rng(1).standard_normal((600, 8)).astype(np.float32)


def tied() -> tuple[Any, Table]:
    """An embedding and a head of the same table with a bias."""
    nodes = [
        node("Gather", "table ids", "e", name="embed"),
        node("Relu", "e", "r"),
        node("Transpose", "table", "t", perm=[1, 0]),
        node("MatMul", "r t", "m", name="head"),
        node("Add", "m b", "z"),
        node("Cast", "mask", "c", to=1),
        node("ReduceSum", "c", "y2"),
    ]
    ports = [value(name, ["N", 4], onnx.TensorProto.INT64) for name in ("ids", "mask")]
    model = loaded(
        make(
            nodes,
            ports,
            [value("z", None), value("y2", None)],
            {"table": TABLE, "b": np.ones(600, np.float32)},
        )
    )
    matched = find(model)[0]
    (table,) = (table_of(tie, matched) for tie in ties(matched))
    assert table is not None
    return model, table


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_seen_of_a_table(masked: bool) -> None:
    model, table = tied()
    mask = Mask((TensorSpec("mask", ("N", 4), "int64"),)) if masked else None
    settings = calibration(GIVEN, batch=1, mask=mask)
    found = observe_table(table, window(model, settings), settings)
    assert isinstance(found, TableRows)
    assert found.held_out is not None
    assert found.uses.counts is not None
    # Two of eight batches are held out, and both have all four words.
    expected = np.zeros(600)
    expected[[1, 2, 599]] = [6, 12, 2 if masked else 6]
    np.testing.assert_array_equal(found.uses.counts, expected)
    expected[[1, 2, 599]] = [2, 4, 2]
    np.testing.assert_array_equal(found.held_out.counts, expected)
    assert found.uses.second is not None
    rows = np.concatenate([relu_rows(model, feed, masked=masked) for feed in GIVEN])
    centred = rows - rows.mean(0)
    second = centred.T @ centred / len(rows)
    shrunk = 0.01 * np.trace(second) / 8 * np.eye(8)
    np.testing.assert_allclose(found.uses.second, second + shrunk, atol=1e-5)
    (mean,) = found.means
    assert mean is not None
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-5)


def relu_rows(model: Any, feed: dict[str, Array], *, masked: bool) -> Array:
    (rows,) = values(model, ["r"], [feed])
    kept = feed["mask"].astype(bool) if masked else np.ones((1, 4), bool)
    return np.asarray(rows[kept])
