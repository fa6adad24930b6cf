"""Whatever stands at positions that are padding: fits and errors are those of the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import onnxdecomp
from onnxdecomp.calibration.attention_scores import Real, ScoreProduct
from onnxdecomp.calibration.batchnorm import normalisations, renormalise
from onnxdecomp.calibration.statistics import observe, observe_unchanged, window
from onnxdecomp.cli.main import cli
from onnxdecomp.core.layer import Array
from onnxdecomp.data.mask import Mask
from onnxdecomp.evaluate.verify import verify
from onnxdecomp.fitting.moments import Moments, merged
from onnxdecomp.quantization.distance import distance
from onnxdecomp.runtime.session import TensorSpec
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import loaded, match_of, saved, value
from tests.builders.graphs import model as make

LENGTHS = (5, 2, 4, 1, 3, 5, 2, 3)
LONGEST, WIDTH = 6, 8
MASK = Mask((TensorSpec("attention_mask", ("N", "S"), "int64"),))


def network(kind: str = "linear", *, offset: float = 0.0, name: str = "attention_mask") -> onnx.ModelProto:
    """Position by position from x [N, S, 8] to y [N, S, 6], and the mask as a further output.

    Where the mask is 0, `offset` is added: what only padding shows.
    """
    weights: dict[str, Array] = {
        "v": normal(WIDTH, WIDTH),
        "w": normal(WIDTH, 6),
        "one": np.array(1, np.float32),
        "much": np.array(offset, np.float32),
        "last": np.array([2]),
    }
    body = {
        "linear": [helper.make_node("MatMul", ["r", "w"], ["h"], name="layer")],
        "flat": [
            helper.make_node("Flatten", ["r"], ["flat"], axis=2),
            helper.make_node("MatMul", ["flat", "w"], ["f"], name="layer"),
            helper.make_node("Shape", ["x"], ["sizes"], end=2),
            helper.make_node("Concat", ["sizes", "rest"], ["whole"], axis=0),
            helper.make_node("Reshape", ["f", "whole"], ["h"]),
        ],
        "conv": [
            helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
            helper.make_node("Conv", ["t", "k"], ["c"], name="layer"),
            helper.make_node("Transpose", ["c"], ["h"], perm=[0, 2, 1]),
        ],
    }[kind]
    weights |= {"rest": np.array([6])} if kind == "flat" else {}
    weights |= {"k": normal(6, WIDTH, 1)} if kind == "conv" else {}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        *body,
        helper.make_node("Cast", [name], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "m"], ["padded"]),
        helper.make_node("Mul", ["padded", "much"], ["extra"]),
        helper.make_node("Unsqueeze", ["extra", "last"], ["wide"]),
        helper.make_node("Add", ["h", "wide"], ["y"]),
    ]
    inputs = [value("x", ["N", "S", WIDTH]), value(name, ["N", "S"], TensorProto.INT64)]
    return make(nodes, inputs, [value("y", ["N", "S", 6])], weights)


def padded(name: str = "attention_mask") -> list[dict[str, Array]]:
    """Sequences filled up with large numbers."""
    feeds = []
    for index, length in enumerate(LENGTHS):
        x = 50 * normal(1, LONGEST, WIDTH, seed=100 + index)
        x[:, :length] = normal(1, length, WIDTH, seed=index)
        feeds.append({"x": x, name: (np.arange(LONGEST) < length)[None].astype(np.int64)})
    return feeds


def plain() -> list[dict[str, Array]]:
    """The same sequences as they are."""
    return [
        {name: array[:, :n] for name, array in feed.items()}
        for feed, n in zip(padded(), LENGTHS, strict=True)
    ]


def arrays(name: str = "attention_mask") -> dict[str, Array]:
    return {key: np.concatenate([feed[key] for feed in padded(name)]) for key in ("x", name)}


def equal(one: Moments, two: Moments) -> None:
    assert one.count == two.count
    for name in ("xx", "yx", "x", "y", "yy"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("kind", ["linear", "flat", "conv"])
@pytest.mark.parametrize("batch", [1, 4])
def test_moments_are_those_of_the_real_positions(kind: str, batch: int) -> None:
    model = loaded(network(kind))
    match = match_of(model)
    found = []
    for feeds in (padded(), plain()):
        settings = calibration(feeds, batch=batch, mask=MASK, held_out=0.0)
        (unchanged,) = observe_unchanged(model, [match], settings)
        windows = [window(model, settings) for _ in range(2)]
        looked = observe(match, windows[0], windows[1], settings)
        found.append((merged(*unchanged), merged(*looked)))
    assert found[0][0].count == sum(LENGTHS)
    for masked, unpadded in zip(*found, strict=True):
        equal(masked, unpadded)


def test_without_the_mask_padding_would_count() -> None:
    model = loaded(network())
    (moments, _), *_ = observe_unchanged(model, [match_of(model)], calibration(padded(), held_out=0.0))
    assert moments.count == LONGEST * len(LENGTHS)


def test_errors_are_those_of_the_real_positions(tmp_path: Path) -> None:
    files = [saved(network(offset=by), tmp_path / f"{by}.onnx") for by in (0.0, 9.0)]
    masked, whole = (verify(*files, data=arrays(), mask=mask) for mask in ("", "none"))
    assert masked.worst == 0
    assert masked.outputs[0].values == 6 * sum(LENGTHS)
    assert any("attention_mask" in note for note in masked.notes)
    assert whole.worst is not None
    assert whole.worst > 0.01
    one, two = (ir.load(file) for file in files)
    feeds = calibration(padded()).feeds
    assert distance(one, two, feeds, MASK) == 0
    assert distance(one, two, feeds) > 0.01


@pytest.mark.parametrize(("name", "mask"), [("attention_mask", ""), ("valid", "valid")])
def test_padding_has_no_say_in_what_is_written(name: str, mask: str) -> None:
    """Fits to inputs with large numbers in the padding are as good as fits to the sequences alone."""
    model = ir.from_proto(network(name=name))
    how: dict[str, Any] = {
        "method": "svd",
        "rank": "4",
        "bench": False,
        "simplify": "none",
        "data": arrays(name),
    }
    masked, whole = (
        onnxdecomp.compress(model, calib=arrays(name), mask=to, must_save="none", **how)
        for to in (mask, "none")
    )
    judged = [verify_real(model, found.model, name) for found in (masked, whole)]
    assert judged[0] < judged[1]
    assert masked.record["run"]["request"]["mask"] == (mask or None)
    assert masked.verification is not None
    assert masked.verification.worst == pytest.approx(judged[0], rel=1e-3)
    assert any(name in note for note in masked.notes) == (not mask)


def verify_real(model: ir.Model, other: ir.Model, name: str) -> float:
    """The error at the real positions, computed by hand."""
    import onnxruntime as ort

    feed = arrays(name)
    outputs = []
    for one in (model, other):
        session = ort.InferenceSession(ir.to_proto(one).SerializeToString())
        outputs.append(session.run(None, feed)[0][feed[name].astype(bool)].astype(np.float64))
    return float(np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0]))


def test_the_command_line(tmp_path: Path) -> None:
    files = [saved(network(offset=by), tmp_path / f"{by}.onnx") for by in (0.0, 9.0)]
    np.savez(tmp_path / "d.npz", **arrays())  # type: ignore[arg-type]
    command = ["verify", *map(str, files), "--data", str(tmp_path / "d.npz"), "--max-error", "0.01"]
    codes = {}
    for mask in ("", "attention_mask", "none", "y"):
        ran = CliRunner().invoke(cli, [*command, *(["--mask", mask] if mask else [])])
        codes[mask] = getattr(ran.exception, "exit_code", ran.exit_code)
    assert codes == {"": 0, "attention_mask": 0, "none": 1, "y": 2}


def normalised(damage: float) -> ir.Model:
    """y = BatchNormalization(x v) along the sequence."""
    ones = np.ones(WIDTH, np.float32)
    weights = {"v": normal(WIDTH, WIDTH) + np.float32(damage) * normal(WIDTH, WIDTH, seed=8)}
    weights |= {"scale": ones, "shift": ones, "mean": 0 * ones, "variance": ones}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="first"),
        helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 1]),
        helper.make_node("BatchNormalization", ["t", "scale", "shift", "mean", "variance"], ["y"]),
        helper.make_node("Identity", ["attention_mask"], ["m"]),
    ]
    inputs = [value("x", ["N", "S", WIDTH]), value("attention_mask", ["N", "S"], TensorProto.INT64)]
    outputs = [value("y", ["N", WIDTH, "S"]), value("m", ["N", "S"], TensorProto.INT64)]
    return loaded(make(nodes, inputs, outputs, weights))


def test_statistics_are_those_of_the_real_positions() -> None:
    stored = []
    for feeds in (padded(), plain()):
        now, original = normalised(0.3), normalised(0.0)
        settings = calibration(feeds, batch=1, mask=MASK)
        (node,) = normalisations(now)
        windows = window(now, settings), window(original, settings)
        assert renormalise(now, node, *windows, {node}, settings)
        held = [ir.convenience.get_const_tensor(node.inputs[index]) for index in (3, 4)]  # type: ignore[arg-type]
        stored.append([tensor.numpy() for tensor in held if tensor is not None])
    np.testing.assert_allclose(stored[0], stored[1], rtol=1e-4, atol=1e-5)


def test_keys_that_are_padding_take_part_in_no_scores() -> None:
    """Where the softmax is in the product's own node, what it gives is computed, without its mask."""
    x = ir.Value(name="x")
    product = ScoreProduct(x, x, None, 4, (2, 2), (2, 2, None), (0, 1), (0, 1), scale=0.5)
    real = np.arange(5) < np.array([[5], [3]])
    query, key = normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)
    other = np.where(real[..., None], key, np.float32(9))
    one, two = (list(product.samples((query, k), Real(real, real))) for k in (key, other))
    for a, b, left in zip(one, two, real, strict=True):
        assert np.array_equal(a.probabilities, b.probabilities)
        np.testing.assert_allclose(a.probabilities.sum(-1), np.broadcast_to(left, (2, 5)), atol=1e-6)
