"""A record as a run of MLflow (https://mlflow.org): what was asked for, what came of it, the files.

Where it goes is MLflow's own business: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like, or the
run that the caller has open. docs/guides/mlflow.md lists what is logged. Needs the extra `mlflow`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.messages import one_line

LONGEST = 500
"""Characters of a parameter: what older servers take."""

_MEASURED = ("totals", "verdict", "verify", "latency")
"""Parts of a record whose numbers are metrics."""

_CURVES = {"train": "train_loss", "held_out": "held_out_loss", "accuracy": "held_out_accuracy"}
"""What is logged of every epoch of a training."""


def check() -> None:
    """Check that MLflow is there and answers, before the work whose record it is to hold.

    Raises:
        UsageError: It is not installed, or its store cannot be reached.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UsageError("--log mlflow needs the extra: pip install 'onnxdecomp[mlflow]'")
    import mlflow

    try:
        mlflow.search_experiments(max_results=1)
    except Exception as error:
        raise UsageError(f"MLflow at {mlflow.get_tracking_uri()}: {one_line(error)}") from error


def log(record: Mapping[str, Any], *, report: bool = True) -> str:
    """Log a record: into the caller's open run, else into one of its own, named after the model.

    Args:
        record: As compress, inspect, bench and finetune make it; the model that it names is an artifact.
        report: Whether the page and the Markdown are artifacts, too, where the extra `report` is installed.

    Returns:
        The id of the run.

    Raises:
        UsageError: MLflow refuses it.
    """
    import mlflow

    try:
        if (open_run := mlflow.active_run()) is not None:
            _fill(record, report)
            return str(open_run.info.run_id)
        with mlflow.start_run(run_name=_name(record)) as run:
            _fill(record, report)
            return str(run.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        raise UsageError(f"MLflow at {mlflow.get_tracking_uri()}: {one_line(error)}") from error


def _fill(record: Mapping[str, Any], report: bool) -> None:
    import mlflow

    mlflow.set_tags(tags(record))
    mlflow.log_params(parameters(record))
    mlflow.log_metrics(metrics(record))
    for step, values in curves(record):
        mlflow.log_metrics(values, step=step)
    mlflow.log_dict(dict(record), "record.json")
    if report and _can_report():
        from onnxdecomp.report import html, markdown

        mlflow.log_text(html(record), "report.html")
        mlflow.log_text(markdown(record), "report.md")
    for file in _files(record):
        mlflow.log_artifact(str(file), "model")


def tags(record: Mapping[str, Any]) -> dict[str, str]:
    """What a run is looked for by, and the verdict as its description."""
    found = {"onnxdecomp.kind": record["kind"], "onnxdecomp.version": record["tool"]["version"]}
    if (model := record.get("model")) and model.get("sha256"):
        found["onnxdecomp.model_sha256"] = model["sha256"]
    if verdict := record.get("verdict"):
        found["mlflow.note.content"] = "; ".join((verdict["text"], *verdict["because"]))
    return found


def parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for, and where it ran."""
    run, where = record["run"], record["environment"]
    asked = {**run["request"], "seed": run["seed"], "command": run["command"]}
    asked |= {name: where[name] for name in ("onnxruntime", "device", "threads", "platform")}
    asked |= {"provider": where["provider_requested"], "model": (record.get("model") or {}).get("path")}
    asked |= (record.get("training") or {}).get("settings", {})
    said = {name: value for name, value in asked.items() if value not in (None, "", [], {})}
    return {name: str(value)[:LONGEST] for name, value in said.items()}


def metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a run is judged by, such as "totals/macs/ratio"; of bench by the model's name."""
    found = {"seconds": float(record["run"]["seconds"])}
    for part in _MEASURED:
        if isinstance(value := record.get(part), Mapping):
            found |= dict(_numbers(value, part))
    for target in record.get("targets") or ():
        found |= dict(_numbers(target, f"targets/{target['quantity']}"))
    for verdict in record.get("verdicts") or ():
        found |= dict(_numbers(verdict, f"verdict/{Path(verdict['model']).name}"))
    return found


def curves(record: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """The epochs of a training: their number, and losses and accuracy."""
    return [
        (epoch["number"], {name: epoch[key] for key, name in _CURVES.items() if epoch[key] is not None})
        for epoch in (record.get("training") or {}).get("epochs", ())
    ]


def _numbers(value: Mapping[str, Any], place: str) -> Iterator[tuple[str, float]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{place}/{key}")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield f"{place}/{key}", float(item)


def _files(record: Mapping[str, Any]) -> Sequence[Path]:
    """The model that was written, with its external data."""
    path = (record.get("output") or {}).get("path")
    files = (Path(path), Path(f"{path}.data")) if path else ()
    return [file for file in files if file.is_file()]


def _name(record: Mapping[str, Any]) -> str:
    models = [model.get("path") for model in (record.get("model"), *record.get("models", ())) if model]
    return f"{record['kind']} {Path(models[0] or 'model').stem}" if models else str(record["kind"])


def _can_report() -> bool:
    from onnxdecomp.report import check_installed

    try:
        check_installed()
    except UsageError:
        return False
    return True
