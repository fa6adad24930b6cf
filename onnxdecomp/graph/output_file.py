"""The files of a run: the original as a file, and the result, which gets its name last."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from onnxdecomp.data.read import Prepared
from onnxdecomp.errors import UsageError
from onnxdecomp.graph import maps
from onnxdecomp.graph.load import Source
from onnxdecomp.graph.save import check_target, copy, data_path, save
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.output_path import check_apart, landing

if TYPE_CHECKING:
    import onnx

    ModelSource: TypeAlias = str | Path | ir.Model | onnx.ModelProto
    """What is taken as a model: a file, or a model in memory."""


_OTHERS = frozenset(
    (".csv", ".gif", ".html", ".jpg", ".json", ".md", ".npy", ".npz", ".ort", ".png", ".pt", ".toml", ".txt")
)
"""Endings of files that are something else than an ONNX model."""


def claim(target: Path | None, sources: Mapping[str, object], *, overwrite: bool) -> None:
    """Check, before the work, that a model can be saved there, and that nothing is lost that is read from.

    Args:
        target: Where it will go, or None.
        sources: What is read, by the argument that gives it: only what is a path, or has one, matters.
        overwrite: Whether a file may be replaced.

    Raises:
        UsageError: As `check_target` and `check_apart`; or the name is that of another kind of file.
    """
    if target is None:
        return
    if target.suffix.lower() in _OTHERS:
        raise UsageError(f"{target}: an ONNX model is written there; give it a name that ends in .onnx")
    check_target(target, overwrite=overwrite)
    where = {name: value.where if isinstance(value, Prepared) else value for name, value in sources.items()}
    paths = {name: value for name, value in where.items() if isinstance(value, str | Path)}
    check_apart({"output": target, "its external data": data_path(target)}, paths)


@contextlib.contextmanager
def on_disk(model: ModelSource) -> Iterator[Path]:
    """The model as a file: everything that follows compares with that file.

    A model in memory is written to a temporary one and stays as it is.
    """
    if isinstance(model, str | Path):
        yield Path(model)
        return
    with _folder(None) as folder:
        path = folder / "model.onnx"
        if not isinstance(model, ir.Model):
            model = maps.from_proto(model)
        save(model, path)
        yield path


@contextlib.contextmanager
def staged(model: ir.Model, target: Path | None, original: Path | None) -> Iterator[Path]:
    """The result as a file, put in its place only if nothing that the caller does with it fails.

    Args:
        model: The result.
        target: Where it goes in the end, or None; of a link the file that it leads to.
        original: The file that the result is a plain copy of, byte by byte where it is one file.
    """
    place = None if target is None else landing(target)
    with _folder(place) as folder:
        file = folder / ("model.onnx" if place is None else place.name)
        if original is not None:
            copy(original, file)
        else:
            save(model, file)
        yield file
        if place is None:
            return
        if data_path(file).exists():
            # Two files are never replaced by two renames: a crash in between would mix them.
            save(model, place, overwrite=True, external=True)
            return
        try:
            if place.exists():
                shutil.copymode(place, file)
            file.replace(place)
        except OSError as error:
            raise UsageError(f"{target}: cannot be written: {error.strerror or error}") from error


def size(path: Path, made_from: Source | None = None) -> int:
    """Bytes of a model file and its external data: of those it was loaded from, or those that `save` made."""
    data = made_from.data if made_from is not None else (data_path(path),)
    return path.stat().st_size + sum(file.stat().st_size for file in data if file.exists())


@contextlib.contextmanager
def _folder(target: Path | None) -> Iterator[Path]:
    """A temporary folder, beside `target` if there is one: a file moves within its file system only."""
    place = target.parent if target else None
    temporary_files.remove_abandoned(place)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_files.folder(place))
        except OSError as error:
            where = target or tempfile.gettempdir()
            raise UsageError(f"{where}: cannot be written: {error.strerror or error}") from error
        yield folder
