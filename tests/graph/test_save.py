"""Saving: all or nothing, the same bytes, external data, old IR versions."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.errors import UsageError
from onnxdecomp.graph import save as save_module
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import check_target, copy, save
from tests.builders import graphs, models, running


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    (tmp_path / "in").mkdir()
    return load(graphs.saved(models.linear(), tmp_path / "in" / "m.onnx"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "m.onnx"


def other(tmp_path: Path) -> ir.Model:
    """A model with other weights than `model`, of other shapes."""
    return load(graphs.saved(models.linear(64), tmp_path / "other.onnx"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def usage(action: Callable[[], object], path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("external", [False, True])
def test_round_trip(model: ir.Model, out: Path, external: bool) -> None:
    assert save(model, out, external=external) == out
    assert sorted(contents(out.parent)) == (["m.onnx", "m.onnx.data"] if external else ["m.onnx"])
    np.testing.assert_array_equal(
        running.run(out, models.X)[0], running.run(models.linear().SerializeToString(), models.X)[0]
    )
    onnx.checker.check_model(out)


def test_the_same_bytes_twice(model: ir.Model, out: Path) -> None:
    for external in (False, True):
        save(model, out, overwrite=True, external=external)
        first = contents(out.parent)
        save(model, out, overwrite=True, external=external)
        assert contents(out.parent) == first
        again = save(load(out), out.with_name("again.onnx"), external=False)
        assert load(again).graph.initializers.keys() == load(out).graph.initializers.keys()
        again.unlink()


def test_the_model_stays_as_it_is(model: ir.Model, out: Path) -> None:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    save(model, out, external=True)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_external_stays_external_and_inline_inline(tmp_path: Path, model: ir.Model, out: Path) -> None:
    with_data = graphs.saved(models.linear(), tmp_path / "e.onnx", "weights.bin")
    save(load(with_data), out)
    assert set(contents(out.parent)) == {"m.onnx", "m.onnx.data"}
    save(model, out.with_name("inline.onnx"))
    assert not out.with_name("inline.onnx.data").exists()


def test_large_models_get_external_data(model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "INLINE_LIMIT", 600)
    monkeypatch.setattr(save_module, "SMALLEST", 500)
    save(model, out)
    assert out.with_name("m.onnx.data").stat().st_size >= 4 * 32 * 4


def test_too_large_for_one_file(model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save_module, "PROTOBUF_LIMIT", 600)
    assert "external data" in usage(lambda: save(model, out, external=False), out)
    assert contents(out.parent) == {}


def test_tied_tensors_are_stored_once(out: Path) -> None:
    array = np.ones((4, 4096), np.float32)
    save(_tied(array), out, external=True)
    assert out.with_name("m.onnx.data").stat().st_size == array.nbytes
    copied = save(load(out), out.with_name("copy.onnx"))
    assert copied.with_name("copy.onnx.data").stat().st_size == array.nbytes


def _tied(array: np.ndarray) -> ir.Model:
    values = [ir.Value(name=n, const_value=ir.Tensor(array, name=n)) for n in ("V", "W")]
    total = ir.node("Add", values)
    total.outputs[0].name = "y"
    total.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([], total.outputs, nodes=[total], initializers=values, opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=9)


def test_arrays_that_share_memory_but_not_numbers(out: Path) -> None:
    """A transposed view starts at the same address and has as many bytes."""
    square = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    model = _tied(square)
    model.graph.initializers["V"].const_value = ir.Tensor(square.T, name="V")
    save(model, out, external=True)
    (result,) = running.run(out, {})
    np.testing.assert_array_equal(result, square + square.T)


@pytest.mark.parametrize("proto", [models.nested(), models.with_function(10)], ids=["nested", "function"])
@pytest.mark.parametrize("external", [False, True])
def test_nested_graphs_and_functions(
    tmp_path: Path, out: Path, proto: onnx.ModelProto, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_module, "SMALLEST", 8)
    path = graphs.saved(proto, tmp_path / "in.onnx")
    feeds = {"x": np.ones((2, 4), np.float32)}
    if len(proto.graph.input) > 1:
        feeds["flag"] = np.asarray(True)
    save(load(path), out, external=external)
    np.testing.assert_array_equal(running.run(out, feeds)[0], running.run(path, feeds)[0])


def test_metadata_and_training_info_are_kept(tmp_path: Path, out: Path) -> None:
    proto = models.linear()
    proto.doc_string, proto.producer_name = "about it", "somebody"
    helper.set_model_props(proto, {"key": "value"})
    proto.graph.node[0].doc_string = "of the node"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    proto.training_info.add().initialization.name = "start"
    model = load(graphs.saved(proto, tmp_path / "m.onnx"))
    saved = onnx.load(save(model.clone(), out))
    del saved.graph.value_info[:]
    assert saved.training_info == proto.training_info
    assert saved.metadata_props == proto.metadata_props
    assert saved.graph.node == proto.graph.node
    assert (saved.doc_string, saved.producer_name) == (proto.doc_string, proto.producer_name)
    assert saved.opset_import == proto.opset_import


@pytest.mark.parametrize("listed", [False, True])
def test_ir_version_3(tmp_path: Path, out: Path, listed: bool) -> None:
    """Every initializer is a graph input in the file, and none is one to ONNX Runtime."""
    proto = models.linear(ir_version=3, opset=8)
    if listed:
        proto.graph.input.append(graphs.value("W", [4, 32]))
    saved = save(load(graphs.saved(proto, tmp_path / "m.onnx")), out)
    onnx.checker.check_model(saved)
    assert [value.name for value in onnx.load(saved).graph.input] == ["x", "W", "b"]
    session = running.session(saved)
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert session.get_overridable_initializers() == []


def test_permissions_follow_the_umask_and_the_file_replaced(model: ir.Model, out: Path) -> None:
    before = os.umask(0o027)
    try:
        save(model, out, external=True)
    finally:
        os.umask(before)
    data = out.with_name("m.onnx.data")
    assert [stat.S_IMODE(file.stat().st_mode) for file in (out, data)] == [0o640, 0o640]
    out.chmod(0o604)
    data.chmod(0o606)
    save(model, out, overwrite=True, external=True)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (out, data)] == [0o604, 0o606]


# What cannot be written


def test_exists(model: ir.Model, out: Path) -> None:
    out.write_bytes(b"mine")
    assert "exists" in usage(lambda: save(model, out), out)
    assert contents(out.parent) == {"m.onnx": b"mine"}


def test_data_file_exists(model: ir.Model, out: Path) -> None:
    data = out.with_name("m.onnx.data")
    data.write_bytes(b"mine")
    assert "exists" in usage(lambda: save(model, out, external=True), data)
    assert contents(out.parent) == {"m.onnx.data": b"mine"}


def test_output_is_the_input(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "in" / "m.onnx"
    before = path.read_bytes()
    assert "exists" in usage(lambda: save(model, path), path)
    assert path.read_bytes() == before


def test_no_folder(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "none" / "m.onnx"
    assert "no folder" in usage(lambda: save(model, path), path)


def test_output_is_a_folder(model: ir.Model, out: Path) -> None:
    assert "folder" in usage(lambda: save(model, out.parent, overwrite=True), out.parent)


def test_output_is_a_device(model: ir.Model) -> None:
    path = Path("/dev/null")
    assert "no regular file" in usage(lambda: save(model, path, overwrite=True), path)
    assert path.is_char_device()


def test_unwritable_folder(model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.parent.chmod(0o500)
    if os.geteuid() == 0:  # whom no mode stops
        monkeypatch.setattr(os, "access", lambda *_: False)
    assert "not writable" in usage(lambda: save(model, out), out)
    assert contents(out.parent) == {}


def test_permission_is_refused_only_when_writing(
    model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "not writable" in usage(lambda: save(model, out), out)


# Cut short


class Cut:
    """Lets a function be called some times, raises once, and lets it be called again."""

    def __init__(self, error: BaseException, after: int, function: Callable[..., object]) -> None:
        self.error, self.left, self.function = error, after, function

    def __call__(self, *args: object, **named: object) -> object:
        self.left -= 1
        if self.left == -1:
            raise self.error
        return self.function(*args, **named)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("external", "overwrite", "after"),
    [
        *((False, overwrite, 0) for overwrite in (False, True)),
        *((True, False, after) for after in range(2)),
        *((True, True, after) for after in range(3)),
    ],
)
def test_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, overwrite: bool, after: int
) -> None:
    out = tmp_path / "out" / "m.onnx"
    out.parent.mkdir()
    if overwrite:
        save(other(tmp_path), out, external=external)
    before = contents(out.parent)
    model = load(graphs.saved(models.linear(512), tmp_path / "m.onnx"))
    monkeypatch.setattr(os, "fsync", Cut(FULL, after, os.fsync))
    message = usage(lambda: save(model, out, external=external, overwrite=overwrite), out)
    assert "disk is full" in message
    assert contents(out.parent) == before


@pytest.mark.parametrize("external", [False, True])
def test_file_size_limit(tmp_path: Path, out: Path, external: bool) -> None:
    """A true failure of the operating system in the middle of a write."""
    model = load(graphs.saved(models.linear(100_000), tmp_path / "m.onnx"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        message = usage(lambda: save(model, out, external=external), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in message
    assert contents(out.parent) == {}


def steps() -> Iterator[tuple[str, int]]:
    """Every call of the functions through which a save touches the disk, to be cut there."""
    yield from (("os.open", n) for n in range(4))
    yield from (("os.fsync", n) for n in range(3))
    yield from (("Path.replace", n) for n in range(3))
    yield from (("Path.hardlink_to", n) for n in range(1))


@pytest.mark.parametrize("cut_at", list(steps()), ids=str)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL], ids=["ctrl-c", "full"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_whenever_it_is_cut_the_model_on_disk_is_whole(
    tmp_path: Path, cut_at: tuple[str, int], error: BaseException, overwrite: bool
) -> None:
    (what, after), out, monkeypatch = cut_at, tmp_path / "out" / "m.onnx", pytest.MonkeyPatch()
    out.parent.mkdir()
    old, new = other(tmp_path), load(graphs.saved(models.linear(512), tmp_path / "m.onnx"))
    if overwrite:
        save(old, out, external=True)
    before = contents(out.parent)
    where, name = what.split(".")
    owner = {"os": os, "Path": Path}[where]
    cut = Cut(error, after, getattr(owner, name))

    def function(*args: object) -> object:  # which binds as a method where it replaces one
        return cut(*args)

    monkeypatch.setattr(owner, name, function)
    with suppress(KeyboardInterrupt, UsageError):
        save(new, out, external=True, overwrite=overwrite)
    monkeypatch.undo()
    after_it = contents(out.parent)
    if after_it == before:
        return
    # Not as before: then the new model, and with the right weights.
    found = load(out).graph.initializers["W"].const_value
    wanted = new.graph.initializers["W"].const_value
    assert found is not None
    assert wanted is not None
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())
    assert running.run(out, models.X)[0].shape == (2, 512)
    assert set(after_it) == {"m.onnx", "m.onnx.data"}


def test_a_rename_that_fails_for_good(
    tmp_path: Path, model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a mapped file cannot be replaced: the model is new and whole all the same."""
    save(other(tmp_path), out, external=True)
    original = Path.replace

    def refuse(file: Path, target: Path) -> Path:
        if target.suffix == ".data":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(file, target)

    monkeypatch.setattr(Path, "replace", refuse)
    usage(lambda: save(model, out, external=True, overwrite=True), out)
    np.testing.assert_array_equal(
        running.run(out, models.X)[0], running.run(models.linear().SerializeToString(), models.X)[0]
    )


def test_ctrl_c_while_weights_are_written(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(graphs.saved(models.linear(512), tmp_path / "m.onnx"))
    monkeypatch.setattr(save_module, "_write", Cut(KeyboardInterrupt(), 1, save_module._write))
    with pytest.raises(KeyboardInterrupt):
        save(model, out, external=True)
    assert contents(out.parent) == {}


def test_no_hard_links(tmp_path: Path, model: ir.Model, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(other(tmp_path), out, external=True)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    save(model, out, overwrite=True, external=True)
    assert set(contents(out.parent)) == {"m.onnx", "m.onnx.data"}
    np.testing.assert_array_equal(
        running.run(out, models.X)[0], running.run(models.linear().SerializeToString(), models.X)[0]
    )


# Over files in use


def test_over_its_own_input(tmp_path: Path) -> None:
    """The model stays usable, and a second save of it is right too."""
    path = graphs.saved(models.linear(512), tmp_path / "m.onnx", "m.onnx.data")
    model, wanted = load(path), running.run(path, models.X)[0]
    bias = model.graph.initializers["b"]
    bias.const_value = ir.Tensor(np.zeros(512, np.float32), name="b")
    for _ in range(2):
        save(model, path, overwrite=True)
        assert not np.array_equal(running.run(path, models.X)[0], wanted)
    restored = onnx.numpy_helper.to_array(models.linear(512).graph.initializer[1])
    bias.const_value = ir.Tensor(restored, name="b")
    save(model, path, overwrite=True)
    np.testing.assert_array_equal(running.run(path, models.X)[0], wanted)


def test_not_over_the_weights_of_another_model(tmp_path: Path) -> None:
    """The input's weights lie where the output's would go: replacing them would destroy the input."""
    path = graphs.saved(models.linear(), tmp_path / "a.onnx", "b.onnx.data")
    model, before = load(path), contents(tmp_path)
    target = tmp_path / "b.onnx"
    assert "holds the weights" in usage(
        lambda: save(model, target, overwrite=True, external=True), tmp_path / "b.onnx.data"
    )
    weights = tmp_path / "b.onnx.data"
    assert "holds the weights" in usage(lambda: save(model, weights, overwrite=True), weights)
    assert contents(tmp_path) == before


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, model: ir.Model, out: Path) -> None:
    target = out.with_name("target.onnx")
    shutil.copy(tmp_path / "in" / "m.onnx", target)
    out.symlink_to(target)
    before = running.run(out, models.X)[0]
    save(model, out, overwrite=True, external=True)
    assert out.is_symlink()
    np.testing.assert_array_equal(running.run(out, models.X)[0], before)
    assert set(contents(out.parent)) == {"m.onnx", "target.onnx", "target.onnx.data"}


def test_a_cache_keeps_what_it_names_by_its_content(tmp_path: Path, model: ir.Model, out: Path) -> None:
    blob = tmp_path / ("0123456789abcdef" * 4)
    shutil.copy(tmp_path / "in" / "m.onnx", blob)
    out.symlink_to(blob)
    assert "cache" in usage(lambda: save(model, out, overwrite=True), out)
    assert blob.read_bytes() == (tmp_path / "in" / "m.onnx").read_bytes()


# Copies and checks


def test_copy_has_the_same_bytes(tmp_path: Path, out: Path) -> None:
    path = graphs.saved(models.linear(), tmp_path / "m.onnx")
    assert copy(path, out).read_bytes() == path.read_bytes()
    assert "exists" in usage(lambda: copy(path, out), out)
    copy(path, out, overwrite=True)


def test_copy_takes_the_data_along(tmp_path: Path, out: Path) -> None:
    path = graphs.saved(models.linear(512), tmp_path / "m.onnx", "weights.bin")
    copy(path, out)
    assert set(contents(out.parent)) == {"m.onnx", "m.onnx.data"}
    np.testing.assert_array_equal(running.run(out, models.X)[0], running.run(path, models.X)[0])
    again = copy(out, tmp_path / "again.onnx")
    assert again.with_name("again.onnx.data").read_bytes() == out.with_name("m.onnx.data").read_bytes()


def test_copy_to_itself(tmp_path: Path) -> None:
    path = graphs.saved(models.linear(512), tmp_path / "m.onnx", "weights.bin")
    before = contents(tmp_path)
    copy(path, path, overwrite=True)
    assert contents(tmp_path) == before


def test_check_target_writes_nothing(out: Path) -> None:
    check_target(out)
    assert contents(out.parent) == {}
