"""Feeds from ONNX test data: folders test_data_set_* with input_0.pb, input_1.pb, …"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from onnxdecomp.data.check import check_feed
from onnxdecomp.data.feeds import Part
from onnxdecomp.data.names import names, natural
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.regular_files import require_regular
from onnxdecomp.runtime.session import Feed, TensorSpec


def data_sets(folder: Path) -> list[Path]:
    """The folders of test data in `folder`, or itself if it is one."""
    found = sorted(folder.glob("test_data_set_*"), key=natural) or [folder]
    return [each for each in found if any(each.glob("input_*.pb"))]


def data_set_part(folder: Path, inputs: Sequence[TensorSpec]) -> Part:
    """The one feed of a folder; iterating raises UsageError where it is damaged or does not fit."""
    return Part(1, partial(_read, folder, inputs), name=str(folder))


def _read(folder: Path, inputs: Sequence[TensorSpec]) -> Iterator[Feed]:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    tensors = []
    for path in sorted(folder.glob("input_*.pb"), key=natural):
        require_regular(path, "test data", UsageError)
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(path.read_bytes())
            tensors.append((tensor.name, numpy_helper.to_array(tensor)))
        except (DecodeError, OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} holds no tensor: {error}") from error
    wanted = [spec.name for spec in inputs]
    if {name for name, _ in tensors} != set(wanted):  # often the tensors are not named: then by position
        if len(tensors) != len(wanted):
            raise UsageError(f"{folder} has {len(tensors)} inputs, the model has {names(wanted)}")
        tensors = [(name, array) for name, (_, array) in zip(wanted, tensors, strict=True)]
    yield check_feed(dict(tensors), inputs, str(folder))
