"""Loading: what is loaded, and every way in which a file can be bad."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import inherit, load, sha256, source, total_bytes
from onnxdecomp.graph.save import save
from onnxdecomp.graph.traversal import places
from tests.builders import graphs, models, running


def refusal(path: Path) -> str:
    """The message, after checking that it is one line that names the file, with exit code 3."""
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def loads(path: Path) -> bool:
    try:
        load(path)
    except ModelError:
        return False
    return True


def weight(model: ir.Model) -> ir.TensorProtocol:
    tensor = model.graph.initializers["W"].const_value
    assert tensor is not None
    return tensor


def test_inline(tmp_path: Path) -> None:
    proto = models.linear()
    model = load(graphs.saved(proto, tmp_path / "m.onnx"))
    assert np.array_equal(weight(model).numpy(), numpy_helper.to_array(proto.graph.initializer[0]))
    assert source(model) is not None


def test_missing(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.onnx")


def test_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    assert "empty" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.98, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = graphs.saved(models.linear(), tmp_path / "m.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refusal(path)


def test_every_truncation_of_a_small_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    content = models.linear(2).SerializeToString()
    for end in range(1, len(content)):
        path.write_bytes(content[:end])
        assert not loads(path)


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    generator = random.Random(0)
    for size in (1, 2, 3, 5, 10, 100, 10_000):
        for _ in range(50):
            path.write_bytes(generator.randbytes(size))
            refusal(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x30\x00\x00\x00ORTM\x00\x00", "ORT format"),
        (b"PK\x03\x04 a zip archive", "not an ONNX model"),
        (b"<!DOCTYPE html><html></html>", "not an ONNX model"),
    ],
)
def test_other_formats(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert says in refusal(tmp_path / "m.onnx")


def test_no_opset(tmp_path: Path) -> None:
    proto = models.linear()
    del proto.opset_import[:]
    assert "opset" in refusal(graphs.saved(proto, tmp_path / "m.onnx"))


def test_no_outputs(tmp_path: Path) -> None:
    proto = models.linear()
    del proto.graph.output[:]
    assert "no outputs" in refusal(graphs.saved(proto, tmp_path / "m.onnx"))


def test_newer_than_the_runtime(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version() + 20
    assert f"opset {newest} of ai.onnx" in refusal(
        graphs.saved(models.linear(opset=newest), tmp_path / "a.onnx")
    )
    assert "IR version 99" in refusal(graphs.saved(models.linear(ir_version=99), tmp_path / "b.onnx"))
    proto = models.linear()
    proto.opset_import.add(domain="com.microsoft", version=77)
    assert "opset 77 of com.microsoft" in refusal(graphs.saved(proto, tmp_path / "c.onnx"))


def test_what_the_runtime_reads_is_not_refused(tmp_path: Path) -> None:
    """The refusal says up to which version the runtime reads: that version loads in both."""
    message = refusal(graphs.saved(models.linear(opset=99), tmp_path / "a.onnx"))
    newest = int(message.split("which is ")[1].split(";")[0])
    path = graphs.saved(models.linear(opset=newest), tmp_path / "b.onnx")
    load(path)
    running.session(path)


def test_unknown_domain_loads(tmp_path: Path) -> None:
    proto = graphs.model([helper.make_node("Thing", ["x"], ["y"], domain="local")], {"x": ["N", 4]})
    load(graphs.saved(proto, tmp_path / "m.onnx"))


def test_undefined_value(tmp_path: Path) -> None:
    proto = graphs.model([helper.make_node("Add", ["x", "ghost"], ["y"], "adder")], {"x": ["N", 4]})
    message = refusal(graphs.saved(proto, tmp_path / "m.onnx"))
    assert "'ghost'" in message
    assert "'adder'" in message


def test_undefined_output(tmp_path: Path) -> None:
    proto = graphs.model([helper.make_node("Relu", ["x"], ["z"])], {"x": ["N", 4]})
    assert "'y'" in refusal(graphs.saved(proto, tmp_path / "m.onnx"))


def test_circle(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    assert "circle" in refusal(graphs.saved(graphs.model(nodes, {"x": ["N", 4]}), tmp_path / "m.onnx"))


@pytest.mark.parametrize("ir_version", [3, 10])
@pytest.mark.parametrize("name", ["x", "W"])
def test_an_input_that_is_listed_twice(ir_version: int, name: str, tmp_path: Path) -> None:
    """Of a weight ONNX Runtime takes it, but then it is an input of the decomposed model."""
    proto = models.linear()
    proto.ir_version = ir_version
    proto.graph.input.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] * 2)
    assert f"the main graph lists the input '{name}'" in refusal(graphs.saved(proto, tmp_path / "m.onnx"))


def test_an_input_of_a_loop_that_is_listed_twice(tmp_path: Path) -> None:
    names = ["i", "going", "state", "i"]
    types = [TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64]
    inputs = [helper.make_tensor_value_info(n, t, None) for n, t in zip(names, types, strict=True)]
    outputs = [
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Identity", ["going"], ["on"]),
        helper.make_node("Relu", ["state"], ["next"]),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    loop = helper.make_node("Loop", ["", "", "x"], ["y"], "loop", body=body)
    assert "loop/body lists the input 'i' 2 times" in refusal(
        graphs.saved(graphs.model([loop], {"x": ["N", 4]}), tmp_path / "m.onnx")
    )


def test_unsorted_nodes_are_put_in_order(tmp_path: Path) -> None:
    proto = models.nested()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))  # now the If captures what comes after it
    model = load(graphs.saved(proto, tmp_path / "m.onnx"))
    assert [node.op_type for node in model.graph] == ["Identity", "If"]


def test_map_type(tmp_path: Path) -> None:
    proto = models.linear()
    proto.graph.input[0].type.map_type.key_type = onnx.TensorProto.INT64
    assert "cannot be represented" in refusal(graphs.saved(proto, tmp_path / "m.onnx"))


# External data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    return graphs.saved(models.linear(), tmp_path / "m.onnx", "weights.bin")


def expected() -> np.ndarray:
    return numpy_helper.to_array(models.linear().graph.initializer[0])


def test_external(external: Path) -> None:
    model = load(external)
    assert np.array_equal(weight(model).numpy(), expected())
    found = source(model)
    assert found is not None
    assert found.data == (external.parent / "weights.bin",)
    assert total_bytes(external) == external.stat().st_size + (4 * 32 + 32) * 4
    assert len(sha256(external)) == 64


def test_external_relative_path(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(external.parent)
    assert np.array_equal(weight(load("m.onnx")).numpy(), expected())


def test_external_missing(external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    message = refusal(external)
    assert "'weights.bin'" in message
    assert "missing" in message


def test_external_too_short(external: Path) -> None:
    os.truncate(external.parent / "weights.bin", 100)
    assert "incomplete" in refusal(external)


@pytest.mark.parametrize(("key", "value"), [("length", "4"), ("length", "99999"), ("offset", "-4")])
def test_external_nonsense_extent(external: Path, key: str, value: str) -> None:
    proto = onnx.load(external, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    external.write_bytes(proto.SerializeToString())
    refusal(external)


def linked(kind: str, home: Path) -> Path:
    """A model in the folder `home` whose data is reached through links of this kind."""
    path = graphs.saved(models.linear(), home / "m.onnx", "weights.bin")
    data, elsewhere = home / "weights.bin", home.parent / "elsewhere"
    for folder in (elsewhere, elsewhere / "deeper", home / "below"):
        folder.mkdir()

    def both(model: Path, blob: Path) -> None:
        replaced(path, model)
        replaced(data, blob)

    def by_a_folder() -> None:
        data.rename(elsewhere / "weights.bin")
        (home / "inner").symlink_to(elsewhere)
        moved(path, "inner/weights.bin")

    def by_two_links() -> None:
        data.rename(elsewhere / "d")
        (home / "below" / "d").symlink_to(elsewhere / "d")
        data.symlink_to("below/d")

    def pipe() -> None:
        data.unlink()
        os.mkfifo(data)

    {
        # As HuggingFace's: the names of both lead to their contents, side by side.
        "hub": lambda: both(elsewhere / ("9a" * 20), elsewhere / ("f0" * 32)),
        "below the model's file": lambda: both(elsewhere / "m", elsewhere / "deeper" / "d"),
        "hard link": lambda: (elsewhere / "d").hardlink_to(data),
        "folder": lambda: (home.parent / "alias").symlink_to(home),
        "inside": lambda: replaced(data, home / "below" / "d"),
        "out": lambda: replaced(data, elsewhere / "d"),
        "out by a folder": by_a_folder,
        "out by two links": by_two_links,
        "out of a hub": lambda: both(elsewhere / "deeper" / "m", elsewhere / "d"),
        "circle": lambda: replaced(data, data),
        "device": lambda: replaced(data, Path("/dev/zero")),
        "proc": lambda: replaced(data, Path("/proc/self/environ")),
        "pipe": pipe,
    }[kind]()
    return home.parent / "alias" / "m.onnx" if kind == "folder" else path


def replaced(file: Path, target: Path) -> None:
    """Move a file to another place, where there is nothing yet, and leave a link to it."""
    if target.exists():
        file.unlink()
    else:
        file.rename(target)
    file.symlink_to(os.path.relpath(target, file.parent))


def moved(path: Path, location: str) -> None:
    """Let the model look for its data in another place."""
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("kind", ["hub", "below the model's file", "hard link", "folder", "inside"])
def test_external_through_links(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = linked(kind, home)
    running.session(path)  # ONNX Runtime has the same rule
    model = load(path)
    assert np.array_equal(weight(model).numpy(), expected())
    saved = save(model, tmp_path / "saved.onnx", external=True)
    assert not saved.with_name("saved.onnx.data").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX")
@pytest.mark.parametrize(
    "kind",
    ["out", "out by a folder", "out by two links", "out of a hub", "device", "proc", "pipe", "circle"],
)
def test_external_through_links_that_are_refused(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    message = refusal(linked(kind, home))
    assert "the external data" in message
    assert "refused" in message or kind == "circle"


def test_a_folder_reached_by_a_link_and_back(tmp_path: Path) -> None:
    """What ".." means behind a link is the system's to say, not the text's."""
    far = tmp_path / "far" / "inner"
    far.mkdir(parents=True)
    graphs.saved(models.linear(), tmp_path / "far" / "m.onnx", "weights.bin")
    (tmp_path / "near").symlink_to(far)
    assert np.array_equal(weight(load(tmp_path / "near" / ".." / "m.onnx")).numpy(), expected())


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX")
def test_models_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", Path("/dev/zero"), Path("/dev/null")):
        assert "regular file" in refusal(path)


@pytest.mark.parametrize(
    "location", ["../weights.bin", "a/../../weights.bin", "/etc/passwd", "", ".", "..", "a/..", "a\0b"]
)
def test_external_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "in").mkdir()
    path = graphs.saved(models.linear(), tmp_path / "in" / "m.onnx", "weights.bin")
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "weights.bin")
    moved(path, location)
    assert "refused" in refusal(path)


def test_external_outlives_the_name_of_its_file(external: Path) -> None:
    model = load(external)
    (external.parent / "new").write_bytes(bytes(1000))
    (external.parent / "new").replace(external.parent / "weights.bin")
    assert np.array_equal(weight(model).numpy(), expected())


def test_external_in_a_constant_of_a_subgraph(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    inner = helper.make_graph(
        [
            helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(array, "W")),
            helper.make_node("MatMul", ["x", "W"], ["t"]),
        ],
        "branch",
        [],
        [graphs.value("t", None)],
    )
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=inner)
    proto = graphs.model([node], {"x": ["N", 4]}, weights={"c": np.asarray(True)})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="d", size_threshold=0, convert_attribute=True)
    branch = load(path).graph[0].attributes["then_branch"].as_graph()
    assert np.array_equal(branch[0].attributes["value"].as_tensor().numpy(), array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4", "uint4", "float8e4m3fn", "bool"])
def test_external_types(tmp_path: Path, dtype: str) -> None:
    code = onnx.TensorProto.DataType.Value(dtype.upper())
    array = np.random.default_rng(0).integers(0, 2, 7).astype(helper.tensor_dtype_to_np_dtype(code))
    tensor = numpy_helper.from_array(array, "V")
    proto = models.linear(ir_version=10, opset=21)
    proto.graph.initializer.append(tensor)
    model = load(graphs.saved(proto, tmp_path / "m.onnx", "d"))
    stored = model.graph.initializers["V"].const_value
    assert stored is not None
    assert np.array_equal(stored.numpy(), array)


ROWS, COLUMNS = 4096, 150_000


def beyond_2_gib(folder: Path) -> Path:
    """A model of 2.3 GiB whose data file has no blocks on the disk."""
    path, data = folder / "m.onnx", folder / "big"
    tensor = onnx.TensorProto(name="W", data_type=graphs.FLOAT, dims=[ROWS, COLUMNS])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    length = ROWS * COLUMNS * 4
    for key, value in (("location", "big"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    proto = graphs.model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])], inputs=[graphs.value("x", ["N", ROWS])]
    )
    proto.graph.initializer.append(tensor)
    path.write_bytes(proto.SerializeToString())
    with data.open("wb") as file:
        file.truncate(length)
    if data.stat().st_blocks > 1000:
        pytest.skip("this file system has no sparse files")
    return path


def test_beyond_2_gib(tmp_path: Path) -> None:
    """The pages are not read: it takes no longer than a small model."""
    model = load(beyond_2_gib(tmp_path))
    assert weight(model).nbytes == ROWS * COLUMNS * 4 > 1 << 31
    assert weight(model).numpy()[-1, -1] == 0


@pytest.mark.skipif(os.environ.get("ONNXDECOMP_BIG") != "1", reason="writes 2.3 GiB: set ONNXDECOMP_BIG=1")
def test_save_beyond_2_gib(tmp_path: Path) -> None:
    model = load(beyond_2_gib(tmp_path))
    copied = load(save(model, tmp_path / "copy.onnx"))
    assert weight(copied).numpy().shape == (ROWS, COLUMNS)


def test_inherit(external: Path) -> None:
    model = load(external)
    made_anew = ir.from_proto(ir.to_proto(model))
    assert source(made_anew) is None
    inherit(made_anew, model)
    assert source(made_anew) == source(model)
    assert source(model.clone()) == source(model)


def test_the_long_name_of_the_default_domain(tmp_path: Path) -> None:
    """ "ai.onnx" is "" in opset imports and nodes, in subgraphs and functions: the last version counts."""

    def renamed(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if not node.domain:
                node.domain = "ai.onnx"
            for attribute in node.attribute:
                renamed(attribute.g)

    for number, proto in enumerate((models.nested(), models.with_function())):
        others = {name: version for name, version in _imports(proto).items() if name}
        feeds = {"x": np.ones((2, 4), np.float32), "flag": np.asarray(True)}
        given = {value.name: feeds[value.name] for value in proto.graph.input}
        expected = running.run(proto.SerializeToString(), given)[0]
        for entry in (*proto.opset_import, *(e for f in proto.functions for e in f.opset_import)):
            entry.domain = entry.domain or "ai.onnx"
        for function in proto.functions:
            for node in function.node:
                node.domain = node.domain or "ai.onnx"
        renamed(proto.graph)
        proto.opset_import.insert(0, onnx.helper.make_opsetid("", 13))
        path = tmp_path / f"{number}.onnx"
        onnx.save(proto, path)
        model = load(path)
        assert dict(model.opset_imports) == {"": 17, **others}
        assert all(f.opset_imports[""] == 17 for f in model.functions.values())
        assert {node.domain for place in places(model) for node in place.graph} <= {"", "local"}
        out = tmp_path / f"{number}.out.onnx"
        save(model, out)
        onnx.checker.check_model(onnx.load(out))
        assert np.array_equal(running.run(out, given)[0], expected)


def _imports(proto: onnx.ModelProto) -> dict[str, int]:
    return {entry.domain: entry.version for entry in proto.opset_import}


@pytest.mark.parametrize(
    "change",
    [
        {"dims": [8, 32]},
        {"dims": [-1, 32]},
        {"dims": [1 << 40, 1 << 20]},
        {"dims": []},
        {"data_type": onnx.TensorProto.DOUBLE},
        {"data_type": onnx.TensorProto.UNDEFINED},
        {"data_type": 999},
    ],
)
@pytest.mark.parametrize("stored", ["initializer", "constant", "external"])
def test_tensors_that_do_not_hold_what_they_declare(
    change: dict[str, Any], stored: str, tmp_path: Path
) -> None:
    proto = models.linear()
    if stored == "constant":
        node = helper.make_node("Constant", [], ["W"], value=proto.graph.initializer[0])
        del proto.graph.initializer[0]
        proto.graph.node.insert(0, node)
    path = graphs.saved(proto, tmp_path / "m.onnx", "d" if stored == "external" else None)
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.node[0].attribute[0].t if stored == "constant" else proto.graph.initializer[0]
    for name, value in change.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, name, value)
    path.write_bytes(proto.SerializeToString())
    refusal(path)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_an_opset_without_limits(domain: str, tmp_path: Path) -> None:
    proto = models.linear()
    proto.opset_import.append(helper.make_opsetid(domain, 1 << 40))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert f"opset {1 << 40}" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize("shape", [None, ["N", 5]])
def test_an_output_that_is_an_input_of_another_shape(shape: list[str | int] | None, tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    again = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    node = helper.make_node("Relu", ["x"], ["y"])
    opsets = [helper.make_opsetid("", 17)]
    for output in (again, x):
        graph = helper.make_graph([node], "g", [x], [y, output])
        proto = helper.make_model(graph, ir_version=10, opset_imports=opsets)
        path = graphs.saved(proto, tmp_path / "m.onnx")
        if output is x:
            assert load(path).graph.outputs[1].name == "x"
        else:
            assert "declared with another" in refusal(path)


def test_an_opset_domain_that_is_no_text(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    damaged = (
        helper.make_model(graph, opset_imports=opsets)
        .SerializeToString()
        .replace(b"local", b"lo\xff\xff\xff")
    )
    (tmp_path / "m.onnx").write_bytes(damaged)
    assert "no text" in refusal(tmp_path / "m.onnx")
