"""External data: the files that a model's large tensors lie in, checked and mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.tensors import described
from onnxdecomp.graph.traversal import Slot

_NO_NUMBERS = (ir.DataType.UNDEFINED, ir.DataType.STRING)


def attach(slots: list[Slot], model_path: Path) -> tuple[Path, ...]:
    """Check every external tensor against its file, then map the files in; return their real paths.

    The tensors hold the mapping itself and not a path: they stay right when the file's name is given to
    other content later. Only pages that are read take memory.

    A location is a path below the model's folder, and a link there must not lead out of it: whoever made the
    model could have any file copied into the output. There are caches built of links, as HuggingFace's hub,
    where snapshots/REVISION/model.onnx and its data both lead to ../../blobs: where the model's own file is
    a link, its data may also lie in the folder that this link leads to. ONNX Runtime has the same rule.

    Raises:
        ModelError: A file is missing, too short, no regular file, or outside of these folders.
    """
    external = [(slot, slot.tensor) for slot in slots if isinstance(slot.tensor, ir.ExternalTensor)]
    files = {str(tensor.location): _file(tensor, model_path) for _, tensor in external}
    sizes = {location: file.stat().st_size for location, file in files.items()}
    for _, tensor in external:
        _check_extent(tensor, model_path, sizes[str(tensor.location)])
    buffers = {file: _buffer(file) for file in dict.fromkeys(files.values())}
    for slot, tensor in external:
        slot.put(_mapped(tensor, buffers[files[str(tensor.location)]]))
    return tuple(buffers)


def _file(tensor: ir.ExternalTensor, model_path: Path) -> Path:
    """The real path of a tensor's file."""
    location = str(tensor.location or "")
    what = f"{model_path}: the external data {location!r} of tensor {tensor.name!r}"
    inside = Path(os.path.normpath(location))
    if inside.is_absolute() or not inside.parts or inside.parts[0] == ".." or "\0" in location:
        raise ModelError(f"{what} is not a file inside the model's folder; refused")
    try:
        file = (model_path.parent / inside).resolve(strict=True)
        homes = (model_path.parent.resolve(), model_path.resolve().parent)
    except (OSError, RuntimeError) as error:  # links in a circle were a RuntimeError until Python 3.13
        reason = "is missing: put that file beside the model"
        if not isinstance(error, FileNotFoundError):
            reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ModelError(f"{what} {reason}") from error
    if not any(home in file.parents for home in homes):
        raise ModelError(f"{what} is a link that leads out of the model's folder, to {file}; refused")
    if not file.is_file():
        raise ModelError(f"{what} is no regular file; refused")
    return file


def _check_extent(tensor: ir.ExternalTensor, model_path: Path, size: int) -> None:
    what = f"{model_path}: {described(tensor)}"
    if tensor.dtype in _NO_NUMBERS or any(size < 0 for size in tensor.shape.numpy()):
        raise ModelError(f"{what} cannot lie in another file")
    offset = tensor.offset or 0
    length = tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or length != tensor.nbytes:
        raise ModelError(
            f"{what} takes {tensor.nbytes} bytes, but its external data is declared with {length} "
            f"at offset {offset}"
        )
    if offset + length > size:
        raise ModelError(
            f"{what} needs bytes {offset} to {offset + length} of {str(tensor.location)!r}, "
            f"which has {size}: the file is incomplete"
        )


def _buffer(file: Path) -> mmap.mmap | bytes:
    try:
        with file.open("rb") as opened:
            try:
                return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except (ValueError, OSError):  # empty, a file system without mmap, or too many open files
                return opened.read()
    except OSError as error:
        raise ModelError(f"{file}: external data that cannot be read: {error.strerror}") from error


def _mapped(tensor: ir.ExternalTensor, buffer: mmap.mmap | bytes) -> ir.TensorProtocol:
    offset = tensor.offset or 0
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if tensor.dtype.bitwidth < 8:
        packed = np.frombuffer(buffer, np.uint8, tensor.nbytes, offset)
        made: ir.TensorProtocol = ir.PackedTensor(packed, tensor.dtype, shape=shape, name=tensor.name)
    else:
        little_endian = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
        count = tensor.size
        array = np.frombuffer(buffer, little_endian, count, offset) if count else np.empty(0, little_endian)
        made = ir.Tensor(array.reshape(shape), tensor.dtype, name=tensor.name)
    made.doc_string = tensor.doc_string
    made.metadata_props.update(tensor.metadata_props)
    return made


def reference(tensor: ir.TensorProtocol, location: str, offset: int = 0) -> ir.ExternalTensor:
    """A tensor of the same name, type and shape whose numbers lie in the file `location`, unread."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
