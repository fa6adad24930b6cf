from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from onnxdecomp.cli import diagnose as doctor
from onnxdecomp.cli.diagnose import Runtime, cpu_features, diagnose, installed_runtimes
from onnxdecomp.cli.main import cli
from onnxdecomp.errors import ProviderError, UsageError
from onnxdecomp.runtime import environment, provider_start


def distribution(folder: Path, name: str, version: str) -> metadata.Distribution:
    info = folder / f"{name}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return metadata.Distribution.at(info)


def test_this_installation() -> None:
    diagnosis = diagnose()
    assert diagnosis.started("cpu")
    assert diagnosis.packages["numpy"] == metadata.version("numpy")
    assert len(diagnosis.runtimes) == 1
    assert not any("over each other" in problem.what for problem in diagnosis.problems)
    for start in diagnosis.providers:
        broken = [problem for problem in diagnosis.problems if problem.what.startswith(f"{start.provider} ")]
        assert bool(broken) != start.started
    with pytest.raises(UsageError):
        diagnose(["gpu"])


def test_two_runtimes_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        distribution(tmp_path, "onnxruntime", "1.30.0"),
        distribution(tmp_path, "onnxruntime_gpu", "1.31.1"),
        distribution(tmp_path, "onnxruntime_extensions", "0.15"),
    ]
    found = installed_runtimes(both)
    assert {each.name: each.version for each in found} == {
        "onnxruntime": "1.30.0",
        "onnxruntime-gpu": "1.31.1",
    }
    monkeypatch.setattr(doctor, "installed_runtimes", lambda _: found)
    diagnosis = diagnose()
    assert diagnosis.runtimes == {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}
    (problem,) = (
        problem for problem in diagnosis.problems if "imported" in problem.what or "over" in problem.what
    )
    assert "are installed over each other" in problem.what
    assert problem.remedy == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_runtimes_in_different_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first on the path is imported, and the others are whole: nothing lies over anything."""
    found = installed_runtimes(
        [
            distribution(tmp_path / "user", "onnxruntime", "1.30.0"),
            distribution(tmp_path / "system", "onnxruntime_gpu", "1.31.1"),
            distribution(tmp_path / "old", "onnxruntime", "1.2.0"),
        ]
    )
    monkeypatch.setattr(doctor, "installed_runtimes", lambda _: found)
    diagnosis = diagnose()
    assert diagnosis.runtimes == {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}
    (problem,) = (
        problem for problem in diagnosis.problems if "imported" in problem.what or "over" in problem.what
    )
    assert problem.what == (
        f"onnxruntime 1.30.0 in {tmp_path / 'user'} is imported, and not onnxruntime-gpu 1.31.1 in "
        f"{tmp_path / 'system'} or onnxruntime 1.2.0 in {tmp_path / 'old'}"
    )
    monkeypatch.setattr(doctor, "_imported_folder", lambda: str((tmp_path / "system").resolve()))
    (problem,) = (each for each in diagnose().problems if "imported" in each.what)
    assert problem.what.startswith(f"onnxruntime-gpu 1.31.1 in {tmp_path / 'system'} is imported, and not")


def test_an_empty_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setattr(doctor, "installed_runtimes", lambda _: (Runtime("onnxruntime-gpu", "1.31.1", "x"),))
    diagnosis = diagnose()
    assert not diagnosis.started("cpu")
    (problem,) = (problem for problem in diagnosis.problems if "is empty" in problem.what)
    assert problem.remedy == "pip uninstall -y onnxruntime-gpu && pip install onnxruntime-gpu"
    result = CliRunner().invoke(cli, ["doctor"])
    assert isinstance(result.exception, ProviderError)
    assert "is empty" in str(result.exception)


def test_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_runtimes", lambda _: ())
    diagnosis = diagnose()
    assert not diagnosis.started("cpu")
    assert any("ONNX Runtime is not installed" in problem.what for problem in diagnosis.problems)


def test_cpu_features(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor : 1\nflags : fpu\n")
    assert cpu_features(info) == ("avx2", "avx512f", "avx512_vnni")
    assert cpu_features(tmp_path / "missing") == ()


def test_command() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert "onnxruntime" in result.stdout
    result = CliRunner().invoke(cli, ["doctor", "--json", "-", "--provider", "CPUExecutionProvider"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["providers"]


@pytest.mark.skipif(provider_start.started("cuda"), reason="CUDA works here")
def test_a_provider_that_does_not_start_is_exit_code_4(capfd: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(cli, ["doctor", "--provider", "cuda", "--json", "-"])
    assert isinstance(result.exception, ProviderError)
    assert "pip install" in str(result.exception)
    starts = {start["provider"]: start["started"] for start in json.loads(result.stdout)["providers"]}
    assert starts == {**starts, "cpu": True, "cuda": False}
    assert capfd.readouterr().out == ""


def test_a_record_names_the_runtime_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("onnxruntime")
    module.__version__ = "0.0.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    described = environment.describe(None, None)
    assert described["onnxruntime"] == "0.0.1"
    assert "0.0.1" not in described["versions"].values()
