"""Feeds from .npz files, read sample by sample: of a file no more than one feed is in memory.

What a file's headers say (names, shapes, types) is checked when it is first opened, the numbers when they
are read. Arrays in Fortran order are the exception: they are read whole.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import IO

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.arrays import LABELS, Header, Layout, feed_shape, labels_of, layout_of, unused_of
from onnxdecomp.data.check import check_feed
from onnxdecomp.data.feeds import Part
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.regular_files import require_regular
from onnxdecomp.runtime.session import Feed, TensorSpec


def npz_part(path: Path, inputs: Sequence[TensorSpec]) -> tuple[Part, bool]:
    """The feeds of a file, and whether they are single samples of a model whose batch size is free.

    Raises:
        UsageError: The file is damaged, or its headers do not fit the inputs. Iterating raises it for the
            rest: NaN, integers out of range, damaged numbers.
    """
    require_regular(path, "a .npz file", UsageError)
    _refuse_npy(path, inputs)
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = _members(archive)
        headers = {}
        for name in members:
            with archive.open(members[name]) as member:
                headers[name] = _header(member)[0]
        labels = {}
        if LABELS in members:
            with archive.open(members[LABELS]) as member:
                labels[LABELS] = _whole(member)
    layout = layout_of(headers, inputs, str(path))
    return (
        Part(
            layout.count,
            partial(_stream, path, layout, headers, inputs),
            labels_of(labels, inputs, layout.count, str(path)),
            str(path),
            unused_of(headers, inputs),
        ),
        layout.stackable,
    )


def _refuse_npy(path: Path, inputs: Sequence[TensorSpec]) -> None:
    """One array without a name: the line that makes a .npz file of it.

    Raises:
        UsageError: The file is one.
    """
    with _reading(path), path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return
    named = {inputs[0].name: None} if inputs else {}
    arrays = ", ".join(f"{name!r}: numpy.load({str(path)!r})" for name in named)
    others = f", and the same for {', '.join(spec.name for spec in inputs[1:])}" if inputs[1:] else ""
    raise UsageError(
        f"{path}: a .npy file has no names for its arrays: "
        f"numpy.savez({str(path.with_suffix('.npz'))!r}, **{{{arrays}}}){others}"
    )


def _stream(
    path: Path, layout: Layout, headers: dict[str, Header], inputs: Sequence[TensorSpec]
) -> Iterator[Feed]:
    with _reading(path), zipfile.ZipFile(path) as archive, ExitStack() as stack:
        members = _members(archive)
        pieces = {}
        for name, rows in layout.rows.items():
            member = stack.enter_context(archive.open(members[name]))
            pieces[name] = _pieces(member, headers[name], rows, layout.count)
        for k in range(layout.count):
            feed = {name: next(piece) for name, piece in pieces.items()}
            yield check_feed(feed, inputs, f"{path}, sample {k}")
        for piece in pieces.values():
            next(piece, None)


def _pieces(member: IO[bytes], expected: Header, rows: int | None, count: int) -> Iterator[Array]:
    """What each of `count` feeds takes of an array."""
    header, fortran = _header(member)
    if header != expected:
        raise ValueError("it changed while it was used")
    shape = feed_shape(header.shape, rows)
    if rows is None or fortran:
        array = _numbers(member, header.shape, header.dtype, fortran)
        yield from repeat(array, count) if rows is None else array.reshape(count, *shape)
    else:
        for _ in range(count):
            yield _numbers(member, shape, header.dtype)
    _end(member)


def _whole(member: IO[bytes]) -> Array:
    header, fortran = _header(member)
    array = _numbers(member, header.shape, header.dtype, fortran)
    _end(member)
    return array


def _end(member: IO[bytes]) -> None:
    if member.read(1):  # reading on to the end has the checksum compared
        raise ValueError("it holds more than its headers say")


def _header(member: IO[bytes]) -> tuple[Header, bool]:
    """An array's header, and whether it lies in Fortran order; the member is then where the numbers begin."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ValueError(f"arrays of format version {version} are not read")
    if dtype.hasobject:
        raise ValueError("arrays of Python objects are not read: save numbers, or text as str arrays")
    return Header(shape, dtype), fortran


def _numbers(
    member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[np.generic], fortran: bool = False
) -> Array:
    size = math.prod(shape) * dtype.itemsize
    raw = member.read(size)
    if len(raw) != size:
        raise ValueError("it ends before its numbers do")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Array names and the archive's names for them."""
    return {name.removesuffix(".npy"): name for name in archive.namelist()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever NumPy, zipfile and zlib raise on a damaged file, as one line."""
    try:
        yield
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} is no readable .npz file: {error}") from error
