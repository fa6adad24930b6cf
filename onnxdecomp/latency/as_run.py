"""Files as they run under a setting: converted, where the provider does not convert them itself."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.graph.traversal import places
from onnxdecomp.runtime.setting import Setting


def as_run(model: Path, setting: Setting, folder: Path | None) -> Path:
    """The file itself, or its form in float16 in the folder; one that stores float16 already stays.

    Args:
        model: The file.
        setting: Under which it is timed.
        folder: For the form in float16; may be None where the setting converts nothing.

    Raises:
        ModelError: It cannot be converted.
    """
    if folder is None or setting.converted != "fp16":
        return model
    from onnxdecomp.quantization.half import fp16

    loaded = load(model)
    if _halves(loaded):
        return model
    target = folder / f"{len(list(folder.iterdir()))}.onnx"
    save(fp16(loaded), target)
    return target


def _halves(model: ir.Model) -> bool:
    stored = (value for place in places(model) for value in place.graph.initializers.values())
    return any(value.dtype == ir.DataType.FLOAT16 for value in stored)
