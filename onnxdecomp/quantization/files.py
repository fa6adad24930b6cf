"""Models on their way through tools that read and write files."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.errors import ModelError, OnnxDecompError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.quantization.neutral_names import Neutral, neutral
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.messages import one_line
from onnxdecomp.runtime.process_state import quiet_logging
from onnxdecomp.runtime.provider_start import quiet
from onnxdecomp.runtime.session import open_session

if TYPE_CHECKING:
    import onnx_ir as ir

_PLAIN_INITIALIZERS = 4
"""From this IR version on, initializers need not be graph inputs, which tools mistake them for."""


def converted(model: ir.Model, what: str, convert: Callable[[Neutral, Path, Path], None]) -> ir.Model:
    """What a tool makes of a model, with the model's names, metadata, IR version and source.

    Args:
        model: Stays as it is.
        what: The tool, for people.
        convert: Reads one file and writes another. The model in the file has the neutral names that the
            first argument holds.

    Raises:
        ModelError: The tool fails, or ONNX Runtime does not load what it wrote.
    """
    plain = model.clone()
    unlist_initializers(plain)
    given = neutral(plain)
    given.model.ir_version = max(plain.ir_version, _PLAIN_INITIALIZERS)
    with temporary_files.folder() as folder:
        source, target = folder / "in.onnx", folder / "out.onnx"
        save(given.model, source)
        try:
            with silent():
                convert(given, source, target)
        except Exception as error:  # tools raise what they please
            raise ModelError(f"{what} fails on the model: {_told(error, folder)}") from error
        _open(target, f"what {what} makes of the model")
        made = load(target)
    given.restore(made)
    return made


def unlist_initializers(model: ir.Model) -> None:
    """Take the initializers off the inputs where their IR version alone has put them there, in place."""
    if model.ir_version < _PLAIN_INITIALIZERS:
        for value in [v for v in model.graph.inputs if v.name in model.graph.initializers]:
            model.graph.inputs.remove(value)


def checked(model: ir.Model, what: str) -> None:
    """Check that ONNX Runtime loads a model.

    Raises:
        ModelError: It does not.
    """
    with temporary_files.folder() as folder:
        _open(save(model, folder / "made.onnx"), what)


def _open(file: Path, what: str) -> None:
    try:
        open_session(file)
    except OnnxDecompError as error:
        raise ModelError(f"{what} does not run: {_told(error, file.parent)}") from error


def _told(error: Exception, folder: Path) -> str:
    """An error's line without the names of temporary files."""
    return re.sub(rf"\S*{re.escape(str(folder))}/\S+?\.onnx", "the file", one_line(error))


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Run a tool of ONNX Runtime in here: neither it nor its sessions print anything."""
    with quiet_logging("onnxruntime", "onnxscript", "onnx_ir"), quiet("cpu"):
        yield


def load_tools() -> None:
    """Import ONNX Runtime's tools, all of those that are used.

    Their package puts its own folder on `sys.path`, where they find each other; nobody else should.
    """
    before = list(sys.path)
    import onnxruntime.quantization
    import onnxruntime.transformers

    own = str(Path(onnxruntime.transformers.__file__).parent)
    if own not in before:
        with contextlib.suppress(ValueError):  # another thread has been here
            sys.path.remove(own)
