"""What single models of the corpus are there for: how a result stores what the original stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxdecomp.graph.load import load
from onnxdecomp.graph.traversal import places
from tests.corpus.case import Case

LAYER = "pkg.onnxdecomp.layer"


def written(case: Case, method: str = "tucker") -> Path:
    result = case.compress(method, "0.5")
    assert result.changed
    assert result.path is not None
    return result.path


def weights(path: Path) -> dict[str, str]:
    """The weight's name of every Conv of the main graph."""
    graph = onnx.load(path).graph
    return {node.name: node.input[1] for node in graph.node if node.op_type == "Conv"}


@pytest.mark.parametrize("case", ["basic_pitch_nmp"], indirect=True)
def test_a_shared_weight_is_factorised_once(case: Case) -> None:
    result = case.compress("tucker", "0.5")
    assert result.path is not None
    decomposed = {layer.name for layer in result.layers if layer.status == "decomposed"}
    users = defaultdict(set)
    for name, weight in weights(case.prepared).items():
        users[weight].add(name)
    shared = [group for group in users.values() if len(group) > 1 and group <= decomposed]
    assert shared
    factors = defaultdict(set)
    for node in onnx.load(result.path).graph.node:
        properties = {p.key: p.value for p in node.metadata_props}
        if node.op_type == "Conv" and LAYER in properties:
            factors[properties[LAYER]].add(node.input[1])
    for group in shared:
        names = [factors[name] for name in group]
        assert len(names[0]) >= 2
        assert all(other == names[0] for other in names)
    stored = {t.name for t in onnx.load(result.path).graph.initializer}
    assert not stored & {weight for weight, group in users.items() if group <= decomposed}


@pytest.mark.parametrize("case", ["silero_vad"], indirect=True)
def test_layers_inside_if_are_rewritten_there(case: Case) -> None:
    model = load(written(case))
    found = Counter(
        place.path for place in places(model) for node in place.graph if LAYER in node.metadata_props
    )
    assert found
    assert all("/" in path or "branch" in path for path in found)
    # Both sampling rates have a branch.
    assert len({path.split("/")[1] for path in found}) == 2


@pytest.mark.parametrize("case", ["squeezenet1.0_ext"], indirect=True)
def test_external_data_stay_external(case: Case) -> None:
    path = written(case)
    data = path.with_name(path.name + ".data")
    assert data.is_file()
    assert path.stat().st_size < 100_000 < data.stat().st_size
    locations = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {data.name}
    # The copy needs nothing of the original's folder.
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, data.name]


@pytest.mark.parametrize("case", ["yunet_n_dynamic"], indirect=True)
def test_symbolic_dimensions_stay(case: Case) -> None:
    graph = onnx.load(written(case)).graph
    (image,) = graph.input
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert sum(isinstance(dim, str) for dim in dims) >= 2


@pytest.mark.parametrize("case", ["resnet20_qdq_int8"], indirect=True)
def test_a_quantized_layer_is_left_in_floating_point_and_a_note_says_so(case: Case) -> None:
    result = case.compress("tucker", "0.5")
    assert result.path is not None
    decomposed = [layer for layer in result.layers if layer.status == "decomposed"]
    assert any("floating point" in note and str(len(decomposed)) in note for note in result.notes)
    before, after = (
        Counter(n.op_type for n in onnx.load(p).graph.node) for p in (case.original, result.path)
    )
    # The activations stay quantized; the weights are not any more, and their biases go along.
    assert after["QuantizeLinear"] == before["QuantizeLinear"]
    assert after["DequantizeLinear"] < before["DequantizeLinear"] - len(decomposed) + 1


@pytest.mark.parametrize("case", ["resnet44_fp16", "winml_SqueezeNet_fp16"], indirect=True)
def test_half_precision_stays(case: Case) -> None:
    model = load(written(case))
    types = {value.dtype for value in model.graph.initializers.values()}
    assert ir.DataType.FLOAT16 in types
    assert not types & {ir.DataType.FLOAT, ir.DataType.DOUBLE}


@pytest.mark.parametrize("case", ["resnet20_cifar10", "gtcrn", "silero_vad"], indirect=True)
def test_names_say_where_the_nodes_come_from(case: Case) -> None:
    path = written(case)
    model = load(path)
    nodes = [node for place in places(model) for node in place.graph]
    names = [node.name for node in nodes if node.name]
    assert len(set(names)) == len(names)
    by_layer = defaultdict(list)
    for node in nodes:
        if LAYER in node.metadata_props:
            by_layer[node.metadata_props[LAYER]].append(node)
    assert by_layer
    before = {node.name: node for place in places(load(case.prepared)) for node in place.graph}
    for layer, chain in by_layer.items():
        *others, last = chain
        assert others
        assert all(node.name is not None and node.name.startswith(f"{layer}/") for node in others)
        assert last.name in before
        assert all(node.metadata_props["pkg.onnxdecomp.method"] in ("svd", "tucker") for node in chain)
    assert {"pkg.onnxdecomp.version", "pkg.onnxdecomp.methods"} <= model.metadata_props.keys()
