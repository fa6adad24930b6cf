"""A provider is one row of one table: no other module names one, but the processor's as what is usual."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onnxdecomp
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.providers import (
    PROVIDERS,
    Provider,
    ort_name,
    preference,
    provider_of,
    quantum,
    short_name,
)

_SOURCES = Path(onnxdecomp.__file__).parent
_TABLE = _SOURCES / "runtime" / "providers.py"
_OTHER_SUBJECTS = {
    _SOURCES / "training" / "device.py",  # torch's device
    _SOURCES / "runtime" / "device.py",  # the device of a tensor in ONNX Runtime
    _SOURCES / "cli" / "diagnose.py",  # a library of CUDA's
}


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda row: row.name)
def test_names_lead_to_each_other(row: Provider) -> None:
    assert provider_of(row.name) is provider_of(row.ort_name.upper()) is row
    assert short_name(ort_name(row.name)) == row.name
    assert preference(row.name)[0] == row.ort_name
    assert preference(row.name)[-1] == ort_name("cpu")
    assert quantum(row.name) in (8, 16)


def test_what_tensorrt_does_not_take_cuda_does() -> None:
    assert preference("tensorrt") == [ort_name(name) for name in ("tensorrt", "cuda", "cpu")]
    assert preference("cpu") == ["CPUExecutionProvider"]


def test_unknown() -> None:
    with pytest.raises(UsageError, match="unknown provider 'gpu'; known are cpu, cuda"):
        provider_of("gpu")


def test_no_other_module_names_a_provider() -> None:
    names = {name for row in PROVIDERS for name in (row.name, row.ort_name)} - {"cpu"}
    found = {path: names & _strings(path) for path in _SOURCES.rglob("*.py")}
    assert len(found) > 200
    assert found.pop(_TABLE) == names
    assert all(found[path] == {"cuda"} for path in _OTHER_SUBJECTS)
    named = {str(path) for path, own in found.items() if own and path not in _OTHER_SUBJECTS}
    # a converter's own check of its result, which has nothing to do with where a user's model runs
    assert named <= {str(_SOURCES / "graph" / "opsets.py")}


def _strings(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}
