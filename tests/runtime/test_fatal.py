"""Models on which ONNX Runtime ends the process are refused before they run, whatever the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.graph.load import load
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.fatal import fatal
from tests.builders import graphs
from tests.builders.commands import QUICK, command, files

Shape = tuple[int | str, ...]


def model(nodes: list[onnx.NodeProto], x: Shape, **weights: NDArray[np.generic]) -> onnx.ModelProto:
    return graphs.model(nodes, {"x": x}, {"y": None}, weights)


def recurrent(operator: str, x: Shape) -> onnx.ModelProto:
    """Behind a Transpose, so that the shape has to be inferred: x is [batch, steps, 4]."""
    rows = {"LSTM": 20, "GRU": 15, "RNN": 5}[operator]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(operator, ["t", "w", "r"], ["y"], "cell", hidden_size=5),
    ]
    w, r = (np.ones((1, rows, size), np.float32) for size in (4, 5))
    return model(nodes, x, w=w, r=r)


def deconvolution(x: Shape) -> onnx.ModelProto:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up")
    return model([node], x, w=np.ones((4, 4, 2, 2), np.float32))


def gather(batch_dims: int) -> onnx.ModelProto:
    node = helper.make_node("GatherND", ["x", "at"], ["y"], "pick", batch_dims=batch_dims)
    return model([node], (2, 2, 2), at=np.zeros((2, 1), np.int64))


def spectrogram(window: int) -> onnx.ModelProto:
    node = helper.make_node("STFT", ["x", "step", "window"], ["y"], "stft")
    return model([node], (1, 32, 1), step=np.asarray(4, np.int64), window=np.ones(window, np.float32))


def unnamed(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(operator, inputs, outputs, "node", **attributes)
    return model([node], (2, 4, 3), a=np.ones(4, np.float32))


def sliced(operator: str, inputs: list[str], **attributes: Any) -> onnx.ModelProto:
    """A Slice of what an operator makes of x [1, 8, 6, 6]."""
    nodes = [
        helper.make_node(operator, inputs, ["r"], "shrink", **attributes),
        helper.make_node("Slice", ["r", "first", "last", "axis"], ["y"], "slice"),
    ]
    weights: dict[str, NDArray[np.generic]] = {
        "scales": np.asarray([1, 1, -1, -1], np.float32),
        "pads": np.asarray([0, 0, -10, -10, 0, 0, 0, 0]),
        "w": np.ones((8, 8, 9, 9), np.float32),
        "first": np.asarray([0]),
        "last": np.asarray([8]),
        "axis": np.asarray([2]),
    }
    return model(nodes, (1, 8, 6, 6), **weights)


def in_a_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes as the body of a function."""
    opsets = list(proto.opset_import)
    inputs = ["x", *(tensor.name for tensor in proto.graph.initializer)]
    function = helper.make_function("local", "Part", inputs, ["y"], list(proto.graph.node), opsets)
    proto.functions.append(function)
    del proto.graph.node[:]
    proto.graph.node.append(helper.make_node("Part", inputs, ["y"], "call", domain="local"))
    return proto


def in_a_branch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes in both branches of an If."""
    branch = helper.make_graph(list(proto.graph.node), "branch", [], list(proto.graph.output))
    node = helper.make_node("If", ["go"], ["y"], "if", then_branch=branch, else_branch=branch)
    del proto.graph.node[:]
    proto.graph.node.append(node)
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "go"))
    return proto


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "lstm": (lambda: recurrent("LSTM", (0, 3, 4)), "LSTM 'cell' has an input, 't', with a size of 0"),
    "gru": (lambda: recurrent("GRU", (2, 0, 4)), "GRU 'cell' has an input, 't', with a size of 0"),
    "deconvolution": (
        lambda: deconvolution((1, 4, 0, 4)),
        "ConvTranspose 'up' has an input, 'x', with a size of 0",
    ),
    "branch": (
        lambda: in_a_branch(recurrent("GRU", (0, 3, 4))),
        "GRU 'cell' has an input, 't', with a size of 0",
    ),
    "gather": (lambda: gather(-7), "GatherND 'pick' has batch_dims -7"),
    "slice of Conv": (lambda: sliced("Conv", ["x", "w"]), "an input, 'r', with a size of -2"),
    "slice of Pad": (lambda: sliced("Pad", ["x", "pads"]), "an input, 'r', with a size of -4"),
    "slice of Resize": (lambda: sliced("Resize", ["x", "", "scales"]), "an input, 'r', with a size of -6"),
    "slice of MaxPool": (
        lambda: in_a_branch(sliced("MaxPool", ["x"], kernel_shape=[9, 9])),
        "an input, 'r', with a size of -2",
    ),
    "sum": (lambda: unnamed("Sum", ["x", ""], ["y"]), "Sum 'node' has an input without a name"),
    "max": (lambda: unnamed("Max", ["x", "x", ""], ["y"]), "Max 'node' has an input without a name"),
    "normalisation": (
        lambda: unnamed("LayerNormalization", ["x", "a", ""], ["y"], axis=1),
        "LayerNormalization 'node' has an input without a name",
    ),
    "split": (lambda: unnamed("Split", ["x"], ["y", ""]), "Split 'node' has an output without a name"),
    "training": (
        lambda: unnamed("BatchNormalization", ["x", *"aaaa"], ["y", "", ""], training_mode=1),
        "BatchNormalization 'node' has an output without a name",
    ),
    "spectrogram": (lambda: spectrogram(0), "STFT 'stft' has an input, 'window', with a size of 0"),
    "gather in a function": (lambda: in_a_function(gather(-1)), "GatherND 'pick' has batch_dims -1"),
    "gather in a branch": (lambda: in_a_branch(gather(-1)), "GatherND 'pick' has batch_dims -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name: str) -> None:
    build, reason = REFUSED[name]
    assert reason in (fatal(build()) or "")


def test_models_that_are_not() -> None:
    assert fatal(recurrent("LSTM", ("N", 3, 4))) is None
    assert fatal(recurrent("LSTM", (2, 0, 4))) is None  # no steps: it runs
    assert fatal(recurrent("RNN", (0, 3, 4))) is None
    assert fatal(recurrent("RNN", (0, 3, 4))) is None
    assert fatal(deconvolution((1, 4, 4, 4))) is None
    assert fatal(gather(1)) is None
    assert fatal(spectrogram(16)) is None
    assert fatal(sliced("MaxPool", ["x"], kernel_shape=[3, 3])) is None
    assert fatal(unnamed("Sum", ["x", "x"], ["y"])) is None
    assert fatal(unnamed("LayerNormalization", ["x", "a"], ["y", "", "deviation"], axis=1)) is None
    assert fatal(unnamed("Clip", ["x", "", "a"], ["y"])) is None
    assert fatal(unnamed("BatchNormalization", ["x", *"aaaa"], ["y", "", ""])) is None
    proto = recurrent("LSTM", (1, 3, 4))  # another input may well be empty, as a cache is at first
    proto.graph.input.append(helper.make_tensor_value_info("cache", TensorProto.FLOAT, [1, 0, 4]))
    assert fatal(proto) is None


@pytest.mark.parametrize(
    "build",
    [lambda: recurrent("GRU", (0, 3, 4)), lambda: sliced("Conv", ["x", "w"])],
    ids=["when it runs", "when it is opened"],
)
def test_every_command(
    build: Callable[[], onnx.ModelProto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: without the check the tests would end here."""
    monkeypatch.chdir(tmp_path)
    onnx.save(build(), "m.onnx")
    for line in (
        ("inspect", "m.onnx"),
        ("compress", "m.onnx", *QUICK),
        ("verify", "m.onnx", "m.onnx"),
        ("bench", "m.onnx"),
    ):
        command(capsys, *line).is_error(3, "m.onnx", "with a size of")
    assert files() == ["m.onnx"]


def test_only_the_cpu_needs_a_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not run there is listed and copied; what is run there is refused."""
    monkeypatch.chdir(tmp_path)
    for name, inputs in (("m.onnx", ["x", "w"]), ("named.onnx", ["x", "w", ""])):
        node = helper.make_node("Attention", inputs, ["y"], "att", domain="com.microsoft", num_heads=2)
        proto = model([node], (1, 4, 8), w=np.ones((8, 24), np.float32))
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        onnx.save(proto, name)
        assert command(capsys, "inspect", name).code == 0
        line = ("compress", name, *QUICK)
        assert command(capsys, *line, "--no-verify", "-o", f"copy-{name}").code == 0
        for run in (line, ("verify", name, name), ("bench", name)):
            command(capsys, *run).is_error(3, name, "Attention 'att' has no bias")
    assert files() == ["copy-m.onnx", "copy-named.onnx", "m.onnx", "named.onnx"]


def test_data_without_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(recurrent("GRU", (1, "steps", 4)), "m.onnx")
    np.savez("empty.npz", x=np.zeros((2, 1, 0, 4), np.float32))
    for line in (
        ("compress", "m.onnx", *QUICK, "--calib", "empty.npz"),
        ("verify", "m.onnx", "m.onnx", "--data", "empty.npz"),
        ("bench", "m.onnx", "--data", "empty.npz"),
    ):
        command(capsys, *line).is_error(2, "without numbers", "GRU 'cell'")
    assert files() == ["empty.npz", "m.onnx"]


def test_shapes_that_a_slice_does_not_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is valid, but not for inputs that are smaller than its kernel."""
    monkeypatch.chdir(tmp_path)
    proto = sliced("Conv", ["x", "w"])
    for axis, size in ((2, "height"), (3, "width")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = size
    onnx.save(proto, "m.onnx")
    assert fatal(proto) is None
    bound = load("m.onnx")
    bound.graph.inputs[0].shape = ir.Shape([1, 8, 6, 6])
    infer_shapes(bound)
    assert all(node.outputs[0].shape is None for node in bound.graph)
