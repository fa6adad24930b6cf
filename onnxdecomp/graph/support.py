"""What the installed ONNX Runtime can read: asked of it by a model of one node, not kept in a table."""

from __future__ import annotations

from collections.abc import Mapping

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
        best = next(
            (v for v in range(ir_version - 1, _KNOWN_IR, -1) if _reads(v, "", _KNOWN_OPSET)), _KNOWN_IR
        )
        return f"IR version {ir_version} is newer than {runtime} reads, which is {best}"
    for domain, version in imports.items():
        if not _reads(_KNOWN_IR, domain, version):
            best = next((v for v in range(version - 1, 0, -1) if _reads(_KNOWN_IR, domain, v)), 0)
            name = domain or "ai.onnx"
            return f"opset {version} of {name} is newer than {runtime} reads, which is {best}"
    return None


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
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own classes differ between its versions
        return False
    return True
