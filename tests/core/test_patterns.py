"""Names that look like patterns, wherever names are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnxdecomp_passes.quantize import Quantize

import onnxdecomp
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.patterns import literal, matches
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.base import PassContext
from onnxdecomp.runtime.session import inputs_of, open_session
from tests.builders.commands import Outcome, command
from tests.builders.feeds import normal
from tests.builders.graphs import model
from tests.builders.models import nested

NAMES = ("layers[0]/fc", "layers0/fc", "a*b?", "a=b:c", "head")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Layers [16, 16] of these names, one after the other, with Relu between."""
    monkeypatch.chdir(tmp_path)
    values = ["x", *(f"v{index}" for index in range(1, len(NAMES))), "y"]
    nodes = [
        node
        for index, name in enumerate(NAMES)
        for node in (
            helper.make_node("MatMul", [values[index], f"w{index}"], [f"u{index}"], name=name),
            helper.make_node("Relu", [f"u{index}"], [values[index + 1]], name=f"relu {index}"),
        )
    ]
    weights = {f"w{index}": normal(16, 16, seed=index) / 4 for index in range(len(NAMES))}
    proto = model(nodes, {"x": ["N", 16]}, {"y": ["N", 16]}, weights)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def kept(result: onnxdecomp.Result) -> set[str]:
    return {layer.name for layer in result.layers if layer.method is None}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_named_by_its_name(name: str, file: Path) -> None:
    options: dict[str, Any] = {"simplify": "none", "rank": "4", "method": "svd"}
    assert kept(onnxdecomp.inspect(file, exclude=(name,), **options)) == {name}
    assert kept(onnxdecomp.inspect(file, include=(name,), **options)) == {*NAMES} - {name}
    assert kept(onnxdecomp.inspect(file, layers=(f"{name}=keep",), **options)) == {name}
    table = {"decompose": {"exclude": [name]}}
    assert kept(onnxdecomp.inspect(file, config=table, **options)) == {name}
    target: dict[str, Any] = {"simplify": "none", "target": "params=1.2x", "method": "svd", "bench": False}
    found = onnxdecomp.inspect(file, include=(name,), skip_below=0.0, **target)
    assert {layer.name for layer in found.layers if layer.reason != "excluded by name"} == {name}


def test_on_the_command_line(file: Path, capsys: Capsys) -> None:
    quick = (
        "--method",
        "svd",
        "--rank",
        "4",
        "--simplify",
        "none",
        "--no-bench",
        "-o",
        "o.onnx",
        "--overwrite",
    )
    for option in (("--exclude", NAMES[0]), ("--layer", f"{NAMES[0]}=keep")):
        done = command(capsys, "compress", file, "-o", "o.onnx", *quick, *option)
        assert done.code == 0, done
        made = {node.metadata_props.get("pkg.onnxdecomp.layer") for node in ir.load("o.onnx").graph}
        assert made == {None, *NAMES[1:]}


def test_a_pattern_stays_a_pattern(file: Path, capsys: Capsys) -> None:
    options: dict[str, Any] = {"simplify": "none", "rank": "4", "method": "svd"}
    assert kept(onnxdecomp.inspect(file, exclude=("layers*",), **options)) == set(NAMES[:2])
    assert kept(onnxdecomp.inspect(file, exclude=("layers[[]?]/fc",), **options)) == {NAMES[0]}
    assert kept(onnxdecomp.inspect(file, exclude=("a?*",), **options)) == {"a*b?", "a=b:c"}
    refused: Outcome = command(capsys, "inspect", file, "--rank", "4", "--exclude", "layers[7]/fc")
    refused.is_error(2, "no layer matches 'layers[7]/fc'", "a bracket is written [[]")


def test_a_layer_in_a_subgraph_by_the_name_that_inspect_shows(tmp_path: Path) -> None:
    onnx.save(nested(), tmp_path / "nested.onnx")
    options: dict[str, Any] = {"simplify": "none", "rank": "1", "method": "svd", "must_save": "none"}
    everything = onnxdecomp.inspect(tmp_path / "nested.onnx", **options)
    assert kept(everything) == set()
    shown = [(layer.graph, layer.name) for layer in everything.layers]
    assert len(shown) == 2
    assert all(graph for graph, _ in shown)
    for graph, name in shown:
        found = onnxdecomp.inspect(tmp_path / "nested.onnx", exclude=(f"{graph}/{name}",), **options)
        assert kept(found) == {name}


def test_what_quantization_leaves_out(file: Path) -> None:
    feeds = read_feeds({"x": normal(8, 16)}, onnxdecomp_inputs(file))
    working = ir.load(file)
    stage = Quantize(kind="int8", exclude=(NAMES[0], "head"), weight_bits="7")
    stage.run(working, PassContext(calibration=Calibration(feeds)))
    floats = {
        node.name
        for node in working.graph
        if node.op_type == "MatMul"
        and (producer := node.inputs[0].producer() if node.inputs[0] else None) is not None
        and producer.op_type != "DequantizeLinear"
    }
    by_name = {node.name: node for node in working.graph if node.op_type == "MatMul"}
    weights = {name: by_name[name].inputs[1] for name in NAMES}
    stored = {name for name, value in weights.items() if value is not None and value.producer() is None}
    assert stored == {NAMES[0], "head"}
    assert floats <= stored


def onnxdecomp_inputs(path: Path) -> Any:
    return inputs_of(open_session(path))


@pytest.mark.parametrize(
    ("pattern", "known", "fits"),
    [
        ("a[0]", [("a[0]",), ("a0",)], {"a[0]"}),
        ("a[0]", [("a1",), ("a0",)], {"a0"}),
        ("*", [("*",), ("b",)], {"*"}),
        ("g/b", [("a",), ("b", "g/b"), ("b", "h/b")], {"g/b"}),
    ],
)
def test_literal(pattern: str, known: list[tuple[str, ...]], fits: set[str]) -> None:
    made = literal([pattern], known)
    assert {names[-1] for names in known if matches(names, made)} == fits


def test_of_layers_of_a_model_without_any() -> None:
    from onnxdecomp.core.patterns import of_layers

    assert of_layers(["nothing"], []) == ("nothing",)
    with pytest.raises(UsageError, match="no layer matches"):
        of_layers(["nothing"], [_Layer("fc", "")])


class _Layer:
    def __init__(self, name: str, graph: str) -> None:
        self.name, self.graph = name, graph
