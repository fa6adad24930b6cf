"""Models on their way through tools that read and write files."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.errors import ModelError, OnnxDecompError
from onnxdecomp.graph.load import inherit, load
from onnxdecomp.graph.save import save
from onnxdecomp.processwide import quiet_logging
from onnxdecomp.runtime.providers import quiet
from onnxdecomp.runtime.session import one_line, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

_PLAIN_INITIALIZERS = 4
"""From this IR version on, initializers need not be graph inputs, which tools mistake them for."""


def converted(model: ir.Model, what: str, convert: Callable[[Path, Path], None]) -> ir.Model:
    """What a tool makes of a model, with the model's name, metadata, IR version and source.

    Args:
        model: Stays as it is.
        what: The tool, for people.
        convert: Reads one file and writes another.

    Raises:
        ModelError: The tool fails, or ONNX Runtime does not load what it wrote.
    """
    copy = model.clone()
    if copy.ir_version < _PLAIN_INITIALIZERS:
        copy.ir_version = _PLAIN_INITIALIZERS
        for value in [v for v in copy.graph.inputs if v.name in copy.graph.initializers]:
            copy.graph.inputs.remove(value)
    with tempfile.TemporaryDirectory(prefix="onnxdecomp-") as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        save(copy, source)
        try:
            with silent():
                convert(source, target)
            open_session(target)
        except OnnxDecompError as error:
            raise ModelError(f"{what} makes a model that does not run: {error}") from error
        except Exception as error:  # tools raise what they please
            raise ModelError(f"{what} fails on the model: {one_line(error)}") from error
        made = load(target)
    _restore(made, model)
    return made


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


def _restore(made: ir.Model, model: ir.Model) -> None:
    """Give the model what tools lose or make up."""
    inherit(made, model)
    made.ir_version = model.ir_version
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    made.doc_string, made.domain, made.model_version = model.doc_string, model.domain, model.model_version
    made.metadata_props.clear()
    made.metadata_props.update(model.metadata_props)
    made.meta.update(model.meta)
    graph, old = made.graph, model.graph
    graph.name, graph.doc_string = old.name, old.doc_string
    known = {value.name for node in old for value in node.outputs}
    for node in graph:
        for value in node.outputs:
            # What the tool's shape inference has found need not be in the file.
            if value.name not in known and not value.is_graph_output():
                value.shape = value.type = None
    interface = {value.name: value for value in (*old.inputs, *old.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        if (before := interface.get(value.name)) is not None:
            value.shape, value.doc_string = before.shape, before.doc_string
