"""Records in a real MLflow, on local files; skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from models.digits import MODEL, TEST_DATA
from onnxdecomp import compress
from tests.builders.commands import QUICK, command
from tests.builders.models import network

installed = importlib.util.find_spec("mlflow") is not None
real = pytest.mark.skipif(not installed, reason="mlflow is not installed")
real_warnings = pytest.mark.filterwarnings("default")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store in a file of SQLite, and MLflow's client of it."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "compression")
    mlflow.set_tracking_uri(uri)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def the_run(client: Any) -> Any:
    experiment = client.get_experiment_by_name("compression")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


@real
@real_warnings
def test_a_run_of_compress_is_logged(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was asked for, what came of it, and the files: through the command line."""
    done = command(
        capsys, "compress", MODEL, "-o", "small.onnx", "--method", "tucker", "--rank", "0.375",
        "--eval", TEST_DATA, "--no-bench", "--json", "run.json", "--log", "mlflow",
    )  # fmt: skip
    assert done.code == 0, done.err
    run = the_run(store)
    assert run.info.run_id in done.err
    assert run.info.status == "FINISHED"
    assert run.data.params["rank"] == "0.375"
    assert run.data.params["method"] == "tucker"
    assert "compress" in run.data.params["command"]
    record = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert run.data.metrics["totals/macs/ratio"] == record["totals"]["macs"]["ratio"] > 4
    assert run.data.metrics["verify/accuracy/new"] == record["verify"]["accuracy"]["new"] > 0.9
    assert record["verdict"]["text"] in run.data.tags["mlflow.note.content"]
    paths = {artifact.path for artifact in store.list_artifacts(run.info.run_id)}
    assert paths == {"record.json", "report.html", "report.md", "model"}
    (model,) = store.list_artifacts(run.info.run_id, "model")
    kept = Path(store.download_artifacts(run.info.run_id, model.path, str(tmp_path)))
    assert kept.read_bytes() == Path("small.onnx").read_bytes()


@real
@real_warnings
def test_a_record_is_logged_into_the_open_run_and_by_report(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    from onnxdecomp.integrations.mlflow import log
    from onnxdecomp.runtime import jsonio

    record = compress(network(tmp_path / "net.onnx"), rank="4", method="tucker", bench=False).record
    with mlflow.start_run() as run:
        assert log(record, report=False) == run.info.run_id
    assert the_run(store).data.metrics["totals/layers/decomposed"] == 2
    jsonio.dump(record, "run.json")
    assert command(capsys, "report", "run.json", "--log", "mlflow").code == 0
    assert not Path("run.html").exists()


@real
def test_a_store_that_does_not_answer_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://store")
    network(tmp_path / "net.onnx")
    done = command(capsys, "compress", "net.onnx", *QUICK, "--log", "mlflow")
    done.is_error(2, "nosuch")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.skipif(installed, reason="mlflow is installed")
def test_without_mlflow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "net.onnx")
    done = command(capsys, "compress", "net.onnx", *QUICK, "--log", "mlflow")
    done.is_error(2, "onnxdecomp[mlflow]")


def test_what_is_logged_of_records_of_every_kind() -> None:
    """Numbers alone are metrics, by place; epochs are steps; what was not asked for is no parameter."""
    from onnxdecomp.integrations.mlflow import curves, metrics, parameters, tags

    record = {
        "kind": "bench",
        "tool": {"version": "1"},
        "run": {"request": {"gate": "size<1", "mask": None}, "seed": 0, "command": None, "seconds": 2.0},
        "environment": {
            "onnxruntime": "1.0", "device": "a processor", "threads": 2, "platform": "p",
            "provider_requested": "cpu",
        },
        "verdicts": [{"model": "folder/small.onnx", "smaller": 2.0, "worth": True, "text": "it is"}],
        "training": {
            "settings": {"epochs": 1},
            "epochs": [{"number": 1, "train": 0.5, "held_out": 0.25, "accuracy": None}],
        },
    }  # fmt: skip
    assert metrics(record) == {"seconds": 2.0, "verdict/small.onnx/smaller": 2.0}
    assert curves(record) == [(1, {"train_loss": 0.5, "held_out_loss": 0.25})]
    asked = parameters(record)
    assert asked["gate"] == "size<1"
    assert asked["epochs"] == "1"
    assert not {"mask", "command", "model"} & asked.keys()
    assert tags(record) == {"onnxdecomp.kind": "bench", "onnxdecomp.version": "1"}
