"""What the installed ONNX Runtime can read: asked of it by a model of one node, not kept in a table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import onnx

DEFAULT_DOMAINS = ("", "ai.onnx")
_KNOWN_IR, _KNOWN_OPSET = 10, 21
"""Read by every ONNX Runtime that the project allows: up to here there is nothing to ask."""


def unreadable(ir_version: int, imports: Mapping[str, int]) -> str | None:
    """Why ONNX Runtime cannot read a model of this IR version and these opsets, or None if it can.

    Args:
        ir_version: The model's IR version.
        imports: Opset versions by domain. A domain that ONNX Runtime does not know is no obstacle here.
    """
    known = all(d in DEFAULT_DOMAINS and v <= _KNOWN_OPSET for d, v in imports.items())
    if known and ir_version <= _KNOWN_IR:
        return None
    try:
        from onnxruntime import __version__
    except (ImportError, AttributeError):  # none, or an emptied package: opening a session will say so
        return None
    runtime = f"this onnxruntime ({__version__})"
    if not _reads(ir_version, "", _KNOWN_OPSET):
        best = _newest(_KNOWN_IR, lambda version: _reads(version, "", _KNOWN_OPSET))
        return f"IR version {ir_version} is newer than {runtime} reads, which is {best}"
    for domain, version in imports.items():
        if not _reads(_KNOWN_IR, domain, version):
            oldest = _KNOWN_OPSET if domain in DEFAULT_DOMAINS else 0
            best = _newest(oldest, partial(_reads, _KNOWN_IR, domain))
            name = domain or "ai.onnx"
            return f"opset {version} of {name} is newer than {runtime} reads, which is {best}"
    return None


def _newest(known: int, reads: Callable[[int], bool]) -> int:
    """The newest version that is read: from one that is read upwards, for files declare anything."""
    return next(version for version in itertools.count(known) if not reads(version + 1))


def _reads(ir_version: int, domain: str, opset: int) -> bool:
    import onnxruntime

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    imports = {"": _KNOWN_OPSET, domain: opset}
    model = onnx.helper.make_model(
        graph,
        ir_version=ir_version,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in imports.items()],
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own classes differ between its versions
        return False
    return True
