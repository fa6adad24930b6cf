"""External data: the files that a model's large tensors lie in, checked and mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.walk import Slot


def attach(slots: list[Slot], model_path: Path) -> tuple[Path, ...]:
    """Check every external tensor against its file, then map the files in; return their real paths.

    The tensors hold the mapping itself and not a path: they stay right when the file's name is given to
    other content later, and links need no exception. Only pages that are read take memory.

    Raises:
        ModelError: A file is missing, too short, or outside the model's folder by its location (a link
            that leads elsewhere is fine, as caches use them).
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
    folder = Path.cwd() / model_path.parent
    # By the text alone: a link inside the folder may lead out of it, a ".." may not.
    folder = Path(os.path.normpath(folder))
    target = Path(os.path.normpath(folder / location))
    what = f"{model_path}: the external data {location!r} of tensor {tensor.name!r}"
    if not location or Path(location).is_absolute() or folder not in target.parents:
        raise ModelError(f"{what} is not a file inside the model's folder; refused")
    if not target.is_file():
        raise ModelError(f"{what} is missing: put that file beside the model")
    return target.resolve()


def _check_extent(tensor: ir.ExternalTensor, model_path: Path, size: int) -> None:
    offset = tensor.offset or 0
    length = tensor.nbytes if tensor.length is None else tensor.length
    what = f"{model_path}: tensor {tensor.name!r}"
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
    with file.open("rb") as opened:
        try:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # empty, a file system without mmap, or too many open files
            return opened.read()


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
