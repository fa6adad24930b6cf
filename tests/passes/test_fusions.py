"""ONNX Runtime's optimizers fuse as much of a compressed transformer as of the original."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxdecomp_passes.decompose import Decompose
from onnxdecomp_passes.normalise import Normalise
from onnxdecomp_passes.simplify import Simplify

from onnxdecomp.decompositions.registry import METHODS
from onnxdecomp.graph.batch_reshapes import keep_first_axes
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline.base import PassContext
from tests.builders.graphs import Dims, node
from tests.builders.graphs import model as graph_model
from tests.builders.running import run
from tests.builders.vit import vit

GELUS = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")
KINDS = ("Attention", "MultiHeadAttention", "SkipLayerNormalization", "LayerNormalization", "FusedMatMul")
MINILM = Path("~/.cache/onnxdecomp-corpus-large/models/minilm_l6.onnx").expanduser()
PROJECTIONS = ("/MatMul_4[357]", "/MatMul_15[135]", "/MatMul_113", "/MatMul_221")
"""Of `vit(2)` to queries, keys and values, and from what comes of them."""


def counted(model: onnx.ModelProto) -> Counter[str]:
    """How many there are of each kind; of a Gelu with its bias and without together."""
    every = Counter(node.op_type for node in model.graph.node)
    return Counter({kind: every[kind] for kind in KINDS} | {"Gelu": sum(every[kind] for kind in GELUS)})


def in_a_session(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """What a session finds."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return counted(onnx.load(folder / "optimized.onnx"))


def by_the_tool(model: onnx.ModelProto, folder: Path, kind: str, heads: int, width: int) -> Counter[str]:
    """What onnxruntime.transformers.optimizer finds."""
    tool = pytest.importorskip("onnxruntime.transformers.optimizer")
    onnx.save(model, folder / "given.onnx")
    found = tool.optimize_model(
        str(folder / "given.onnx"), model_type=kind, num_heads=heads, hidden_size=width, opt_level=0
    )
    return counted(found.model)


def as_many(after: Counter[str], before: Counter[str]) -> bool:
    """LayerNormalization that became SkipLayerNormalization is no loss."""
    return all(after[kind] >= before[kind] for kind in before if kind != "LayerNormalization")


@pytest.fixture(scope="module")
def prepared() -> onnx.ModelProto:
    """A vision transformer as it is before layers are taken."""
    model = ir.from_proto(vit(2))
    Simplify().run(model, PassContext())
    Normalise().run(model, PassContext())
    return ir.to_proto(model)


def rewritten(model: onnx.ModelProto, method: str, exclude: tuple[str, ...] = ()) -> onnx.ModelProto:
    copy = ir.from_proto(model)
    decompose = Decompose(method=method, rank="0.5", must_save="none", exclude=exclude)
    assert decompose.run(copy, PassContext()).modified
    return ir.to_proto(copy)


def test_what_prepares_a_model_costs_no_fusion(prepared: onnx.ModelProto, tmp_path: Path) -> None:
    before, after = (in_a_session(model, tmp_path) for model in (vit(2), prepared))
    assert before["Gelu"] == 2
    assert before["SkipLayerNormalization"] == 1
    assert as_many(after, before)
    before, after = (by_the_tool(model, tmp_path, "vit", 4, 32) for model in (vit(2), prepared))
    assert before["Attention"] == 1
    assert before["SkipLayerNormalization"] == 4
    assert as_many(after, before)
    # Nor is it made to run on ONNX Runtime alone.
    assert {node.domain for node in prepared.graph.node} == {""}


@pytest.mark.parametrize("method", [*(name for name in METHODS if name != "spatial"), "width", "attention"])
def test_a_session_finds_as_many(prepared: onnx.ModelProto, tmp_path: Path, method: str) -> None:
    after = in_a_session(rewritten(prepared, method), tmp_path)
    assert as_many(after, in_a_session(vit(2), tmp_path))


@pytest.mark.parametrize("method", ["width,attention", "svd", "tt"])
def test_the_tool_finds_as_many_where_no_chain_stands_in_an_attention(
    prepared: onnx.ModelProto, tmp_path: Path, method: str
) -> None:
    exclude = () if "width" in method else PROJECTIONS
    after = by_the_tool(rewritten(prepared, method, exclude), tmp_path, "vit", 4, 32)
    assert as_many(after, by_the_tool(vit(2), tmp_path, "vit", 4, 32))


@pytest.mark.corpus_all
@pytest.mark.skipif(not MINILM.exists(), reason="the corpus of larger models is not built")
def test_a_sentence_encoder(tmp_path: Path) -> None:
    original = onnx.load(MINILM)
    model = ir.from_proto(original)
    Simplify().run(model, PassContext())
    Normalise().run(model, PassContext())
    after = rewritten(ir.to_proto(model), "width,attention")
    before = by_the_tool(original, tmp_path, "bert", 12, 384)
    assert (before["Attention"], before["SkipLayerNormalization"], before["Gelu"]) == (6, 12, 6)
    assert as_many(by_the_tool(after, tmp_path, "bert", 12, 384), before)
    assert as_many(in_a_session(after, tmp_path), in_a_session(original, tmp_path))


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ([-1, 4, 6], True),  # [N, 24]
        ([-1, 24], True),
        ([-1, 12], False),
        ([-1, 4, 0], False),  # the 0 copies a size
        ([2, -1], False),
    ],
)
def test_a_batch_that_stays_is_said_to_stay(target: list[int], kept: bool) -> None:
    sizes: Dims = ["N", *target[1:]] if kept else [None] * len(target)
    proto = graph_model(
        [node("Abs", "x", "a"), node("Reshape", "a shape", "y")],
        {"x": ["N", 4, 6]},
        {"y": sizes},
        {"shape": np.array(target)},
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6), dtype=np.float32)}
    model = ir.from_proto(proto)
    infer_shapes(model)
    assert keep_first_axes(model) == int(kept)
    (before,), (after,) = run(proto, feeds), run(model, feeds)
    np.testing.assert_array_equal(before, after)
    if kept:
        empty = {"x": np.zeros((0, 4, 6), np.float32)}
        assert run(model, empty)[0].shape == (0, *target[1:])
