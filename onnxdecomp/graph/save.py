"""Saving a model: all or nothing, large weights streamed to a second file, the same bytes every time."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph import maps
from onnxdecomp.graph.external_data import reference
from onnxdecomp.graph.load import PROTOBUF_LIMIT, load, source
from onnxdecomp.graph.lock import alone_in
from onnxdecomp.graph.shape_inference import as_declared
from onnxdecomp.graph.tensors import own_memory
from onnxdecomp.graph.traversal import Slot, slots
from onnxdecomp.runtime import temporary_files as temporary
from onnxdecomp.runtime.output_path import check_folder, landing

INLINE_LIMIT = 1_800_000_000
"""Bytes of tensors from which a model gets external data unasked; protobuf ends at 2 GiB."""
SMALLEST = 1024
"""Smaller tensors stay in the .onnx file: shapes and axes, which shape inference reads there."""
PAGE, LINE = 4096, 64
"""Alignment of tensors of a megabyte or more, to be mapped by pages, and of the others."""


def save(model: ir.Model, path: str | Path, *, overwrite: bool = False, external: bool | None = None) -> Path:
    """Save a model; the model stays as it is.

    Whatever happens, `path` holds either what it held before or the whole new model, and no other
    file is left behind. External data goes to "<name>.onnx.data" in the same folder. A model that was
    loaded from the file that is overwritten stays usable, for its tensors hold the old file open.

    Args:
        model: Shapes that were inferred are left out of the file. Before IR version 4, initializers are
            made graph inputs in it, as that version demands; ONNX Runtime does not show them as inputs.
        path: The .onnx file to make; of a link the file that it leads to.
        overwrite: Replace a file that exists.
        external: Whether to use external data; by default if the model was loaded with some, or is too
            large for one file.

    Returns:
        The path.

    Raises:
        UsageError: The file exists, is a device or a folder, its folder is missing or not writable, the disk
            is full, or the model is too large to be saved without external data.
        ModelError: The model cannot be serialized.
    """
    path = Path(path)
    check_target(path, model=model, overwrite=overwrite, external=external)
    given, path = path, landing(path)
    made_from = source(model)
    model = _to_write(model)
    stored = list(slots(model))
    if external is None:
        had = made_from is not None and bool(made_from.data)
        had = had or any(isinstance(slot.tensor, ir.ExternalTensor) for slot in stored)
        external = had or sum(slot.tensor.nbytes for slot in stored) > INLINE_LIMIT
    if external:
        _check_link(given, path)
    with _errors(given), _Files() as files:
        if external:
            _save_with_data(model, stored, path, files)
        else:
            for slot in stored:
                _internalize(slot)
            files.write(path, _serialize(model, path)).replace(path)
    return given


def copy(original: str | Path, path: str | Path, *, overwrite: bool = False) -> Path:
    """Copy a model's file, and its external data to where `save` puts them, as safely as `save`.

    Without external data the copy has the same bytes. A file copied to itself stays as it is.

    Raises:
        ModelError, UsageError: As `load` and `save`.
    """
    original, path = Path(original), Path(path)
    if _same(original, path):
        check_target(path, overwrite=overwrite)
        return path
    model = load(original)
    made_from = source(model)
    if made_from is not None and made_from.data:
        return save(model, path, overwrite=overwrite, external=True)
    check_target(path, overwrite=overwrite)
    place = landing(path)
    with _errors(path), _Files() as files:
        files.write(place, original.read_bytes()).replace(place)
    return path


def check_target(
    path: str | Path,
    *,
    model: ir.Model | None = None,
    overwrite: bool = False,
    external: bool | None = None,
) -> None:
    """Check that a model can be saved there, before the work whose result it is.

    Raises:
        UsageError: As `save`; also where the file or the data file beside it holds weights of `model`
            while being another model's.
    """
    given, path = Path(path), landing(path)
    check_folder(given)
    data = data_path(path)
    beside = data_path(given) if path.parent == given.parent.resolve() else data
    for shown, file in ((given, path), (beside, data)):
        if file.exists() and not file.is_file():
            raise UsageError(f"{shown}: exists and is no regular file; choose another name")
        if os.path.lexists(file) and not overwrite:
            raise UsageError(f"{shown}: exists already; choose another name, or --overwrite to replace it")
    made_from = source(model) if model is not None else None
    if external or (external is None and made_from is not None and made_from.data):
        _check_link(given, path)
    if made_from is None:
        return
    own = _same(path, made_from.path)
    for used in made_from.data:
        if _same(used, path) or (_same(used, data) and not own):
            raise UsageError(f"{used}: holds the weights of {made_from.path}; choose another name")


def _check_link(given: Path, path: Path) -> None:
    """Refuse a link to a file in another folder: who opens the link looks for the data beside it."""
    if path.parent != given.parent.resolve():
        raise UsageError(
            f"{given}: is a link into another folder, and the model has external data, which go beside it; "
            "choose another name"
        )


def data_path(path: Path) -> Path:
    """Where the external data of the model at `path` goes."""
    return path.with_name(f"{path.name}.data")


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def _to_write(model: ir.Model) -> ir.Model:
    """A copy that shares the tensors, ready to be written."""
    clone = model.clone()
    as_declared(clone)
    own_memory(clone)
    if clone.ir_version < 4:
        listed = set(clone.graph.inputs)
        clone.graph.inputs.extend(v for v in clone.graph.initializers.values() if v not in listed)
    return clone


def _serialize(model: ir.Model, path: Path) -> bytes:
    try:
        proto = ir.to_proto(model)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ModelError(f"{path}: the model cannot be serialized: {reason}") from error
    _leave_out_known(proto.graph)
    maps.put_back(proto, maps.kept(model))
    if (made_from := source(model)) is not None:
        for info in made_from.training_info:
            proto.training_info.add().ParseFromString(info)
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise UsageError(f"{path}: more than 2 GiB do not fit into one file; save with external data")
    return bytes(proto.SerializeToString(deterministic=True))


def _leave_out_known(graph: onnx.GraphProto) -> None:
    """Leave out shapes of initializers: nothing new, and ONNX Runtime's quantize_dynamic fails on them.

    It transposes weights of Gemm and keeps their names, so that its shape inference finds a contradiction.
    """
    held = {tensor.name for tensor in graph.initializer}
    told = [value for value in graph.value_info if value.name not in held]
    del graph.value_info[:]
    graph.value_info.extend(told)


def _save_with_data(model: ir.Model, stored: list[Slot], path: Path, files: _Files) -> None:
    data = data_path(path)
    temporary = files.new(path)
    with files.open(temporary) as file:
        placed = list(_write_tensors(stored, file))
        _sync(file)
    _place(placed, data.name)
    final = files.write(path, _serialize(model, path))
    # Of two who write the same model, the files of one must not mix with the other's.
    with alone_in(path.parent):
        _put_in_place(model, path, data, files, temporary, placed, final)


def _put_in_place(
    model: ir.Model,
    path: Path,
    data: Path,
    files: _Files,
    temporary: Path,
    placed: list[_Extent],
    final: Path,
) -> None:
    """Give the new data and the new model their names."""
    if not data.exists():
        try:
            temporary.replace(data)
            final.replace(path)
        except BaseException:
            if final.exists():  # the model did not get its place, so the data have no user
                data.unlink(missing_ok=True)
            raise
        return
    # Two files cannot be replaced at once, so the model points at the new data under a passing name
    # first; only then does the old data give way. At every moment the model on the disk is whole.
    shutil.copymode(data, temporary)
    _place(placed, temporary.name)
    bridge = files.write(path, _serialize(model, path))
    twin = files.new(path)
    _link(temporary, twin)
    try:
        bridge.replace(path)
        twin.replace(data)
        final.replace(path)
    except BaseException:
        if not bridge.exists():
            _finish(twin, data, final, path)
            if final.exists():  # the model still points there
                files.keep(temporary)
        raise


def _finish(twin: Path, data: Path, final: Path, path: Path) -> None:
    """Take the steps that an interruption left out: each is a rename, and none can be half done."""
    with suppress(OSError):
        if twin.exists():
            twin.replace(data)
        if final.exists():
            final.replace(path)


def _link(file: Path, name: Path) -> None:
    try:
        name.hardlink_to(file)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, name)


@dataclass(frozen=True)
class _Extent:
    """A tensor that went to the data file, and where."""

    slot: Slot
    tensor: ir.TensorProtocol
    offset: int


def _write_tensors(stored: list[Slot], file: BinaryIO) -> Iterator[_Extent]:
    """Write the large tensors one after another, one that several slots share once."""
    offsets: dict[object, int] = {}
    end = 0
    for slot in stored:
        tensor = slot.tensor
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST:
            _internalize(slot)
            continue
        identity = _identity(tensor)
        if identity not in offsets:
            alignment = PAGE if tensor.nbytes >= 1 << 20 else LINE
            start = -(-end // alignment) * alignment
            file.write(bytes(start - end))
            _write(tensor, file)
            offsets[identity], end = start, start + tensor.nbytes
        yield _Extent(slot, tensor, offsets[identity])


def _identity(tensor: ir.TensorProtocol) -> object:
    """Equal for tensors in the same memory or part of a file, so that tied weights are stored once."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor.path, tensor.offset, tensor.nbytes
    if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray):
        array = tensor.raw
        return array.ctypes.data, array.shape, array.strides, array.dtype.str
    return id(tensor)


def _write(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
    elif tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        file.write(tensor.tobytes())
    else:
        file.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)


def _place(placed: list[_Extent], location: str) -> None:
    """Let the model refer to the data by the name `location`."""
    for extent in placed:
        extent.slot.put(reference(extent.tensor, location, extent.offset))


def _internalize(slot: Slot) -> None:
    tensor = slot.tensor
    if isinstance(tensor, ir.ExternalTensor):
        slot.put(ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name))


@dataclass
class _Files:
    """New files of one save, removed again unless they are kept or have become the result."""

    made: list[Path] = field(default_factory=list)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.made:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            temporary.forget(file)

    def keep(self, file: Path) -> None:
        self.made.remove(file)
        temporary.forget(file)

    def new(self, target: Path) -> Path:
        """A free name beside `target`, on its file system, so that it can replace it in one step."""
        self.made.append(target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp"))
        temporary.expect(self.made[-1])
        return self.made[-1]

    def open(self, file: Path) -> BinaryIO:
        # Not tempfile's: those files are for their owner only, whatever the umask says.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(file, flags, 0o666), "wb")

    def write(self, target: Path, content: bytes) -> Path:
        file = self.new(target)
        with self.open(file) as opened:
            opened.write(content)
            _sync(opened)
        if target.exists():
            shutil.copymode(target, file)
        return file


def _sync(file: BinaryIO) -> None:
    """Have the content on the disk before its name: after a power cut there is no empty model."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full; nothing was written"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"the folder {str(path.parent)!r} is not writable"
        else:
            what = f"cannot be written: {error.strerror or error}"
        raise UsageError(f"{path}: {what}") from error
