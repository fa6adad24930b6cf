"""A model has its own names for every tool, whatever those are, and gets them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.graph.traversal import node_names, value_names
from onnxdecomp.quantization.files import converted
from onnxdecomp.quantization.int8 import int8
from onnxdecomp.quantization.neutral_names import Neutral, neutral
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.runtime.interface import differences, interface_of
from onnxdecomp.runtime.session import inputs_of, open_session, run
from tests.builders.cases import Case
from tests.builders.exported import KINDS, batched, image, scaled
from tests.builders.graphs import FLOAT, node


@pytest.mark.parametrize("name", KINDS)
def test_a_model_comes_back_as_it_was(name: str) -> None:
    model = ir.from_proto(KINDS[name]().model)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    given = neutral(model)
    assert {n for n in value_names(given.model) if n.startswith("v00")}
    main = [v.name for n in given.model.graph for v in n.outputs]
    assert not {v.name for n in model.graph for v in n.outputs} & set(main)
    given.restore(given.model)
    back = ir.from_proto(ir.to_proto(given.model))
    assert value_names(back) == value_names(model)
    assert node_names(back) == node_names(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def quantized(made: Case, folder: Path, scheme: Scheme) -> ir.Model:
    onnx.save(made.model, folder / "model.onnx")
    feeds = read_feeds([made.feeds], inputs_of(open_session(folder / "model.onnx")))
    new = int8(load(folder / "model.onnx"), feeds, scheme)
    save(new, folder / "new.onnx")
    assert not differences(interface_of(folder / "model.onnx"), interface_of(folder / "new.onnx"))
    return new


SUFFIXES = ("_quantized", "_scale", "_zero_point", "_QuantizeLinear_Output", "_DequantizeLinear_Output")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_model_may_use_names_that_the_quantizer_makes(suffix: str, tmp_path: Path) -> None:
    """For values, initializers, outputs and nodes."""
    inner, bias, output, last = f"x{suffix}", f"w{suffix}", f"{suffix}", f"y{suffix}"
    nodes = [
        node("Conv", f"x w {bias}", inner, name="x_QuantizeLinear", pads=[1] * 4),
        node("Conv", f"{inner} w", output, name="", pads=[1] * 4),
        node("Relu", output, last, name=""),
        node("Conv", f"{last} w {bias}", "y", name="c", pads=[1] * 4),
    ]
    made = batched(nodes, {"w": scaled(16, 16, 3, 3), bias: scaled(16)}, image())
    made.model.graph.output.append(helper.make_tensor_value_info(output, FLOAT, None))
    new = quantized(made, tmp_path, Scheme())
    assert {inner, output, last} <= {v.name for n in new.graph for v in n.outputs}
    assert [n.name for n in new.graph if n.op_type == "Conv"] == ["x_QuantizeLinear", "", "c"]
    before, after = (run(open_session(tmp_path / f"{n}.onnx"), made.feeds) for n in ("model", "new"))
    for one, two in zip(before, after, strict=True):
        assert np.linalg.norm(two - one) < 0.06 * np.linalg.norm(one)


def test_an_initializer_that_is_an_output_stays(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h w2", "y")]
    made = batched(nodes, {"w": scaled(16, 16), "w2": scaled(16, 16)}, {"x": scaled(1, 16)})
    made.model.graph.output.append(helper.make_tensor_value_info("w2", FLOAT, [16, 16]))
    new = quantized(made, tmp_path, Scheme())
    assert {n.op_type for n in new.graph} == {"MatMul", "QuantizeLinear", "DequantizeLinear"}
    given = run(open_session(tmp_path / "new.onnx"), made.feeds)[1]
    np.testing.assert_array_equal(given, scaled(16, 16))


def test_messages_name_no_temporary_file(tmp_path: Path) -> None:
    model = ir.from_proto(KINDS["plain"]().model)

    def copies(_: Neutral, source: Path, target: Path) -> None:
        proto = onnx.load(source)
        proto.graph.node[1].name, proto.graph.node[1].op_type = "broken", "NoSuchOperator"
        onnx.save(proto, target)

    def fails(_: Neutral, source: Path, target: Path) -> None:
        raise ValueError(f"{source} is nothing for {target}")

    with pytest.raises(ModelError, match="does not run") as one:
        converted(model, "a tool", copies)
    with pytest.raises(ModelError, match=r"a tool fails .*: the file is nothing for the file") as two:
        converted(model, "a tool", fails)
    assert "/onnxdecomp-" not in f"{one.value} {two.value}"
