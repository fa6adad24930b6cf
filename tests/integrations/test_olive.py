"""OnnxLowRank in the real Olive: `olive run` on a small model, skipped where Olive is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.digits import MODEL, TEST_DATA
from onnxdecomp.core.options import option_fields
from onnxdecomp.workflow.config import CompressConfig
from tests.builders.commands import environment
from tests.builders.running import run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("olive") is None, reason="olive-ai is not installed")

OWN = {"dry_run", "overwrite", "details"}


def olive(folder: Path, workflow: dict[str, Any]) -> str:
    """What `olive run` says of a workflow, with the package configuration that this package writes."""
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    inside = {**environment(), "OLIVE_DISABLE_TELEMETRY": "1"}
    for line in (
        ["-m", "onnxdecomp.integrations.olive", "packages.json"],
        ["-m", "olive", "run", "--config", "workflow.json", "--package-config", "packages.json"],
    ):
        done = subprocess.run(
            [sys.executable, *line],
            cwd=folder, env=inside, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


def workflow(**passes: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_model": {"type": "ONNXModel", "model_path": os.fspath(MODEL)},
        "data_configs": [
            {
                "name": "random",
                "type": "DummyDataContainer",
                "load_dataset_config": {
                    "input_shapes": [[4, 1, 8, 8]],
                    "input_names": ["image"],
                    "input_types": ["float32"],
                },
            }
        ],
        "passes": passes,
        "output_dir": "out",
        "cache_dir": "cache",
        "log_severity_level": 1,
    }


def test_a_workflow_decomposes_checks_and_quantizes(tmp_path: Path) -> None:
    """It is checked on inputs of a data configuration of Olive, and its quantizer takes what comes out."""
    lowrank = {
        "type": "OnnxLowRank",
        "method": "tucker",
        "rank": "0.375",
        "eval_data_config": "random",
        "bench": False,
        "threads": 1,
    }
    said = olive(tmp_path, workflow(lowrank=lowrank, int8={"type": "OnnxDynamicQuantization"}))
    assert "Pass lowrank:onnxlowrank finished" in said, said
    record = json.loads((tmp_path / "out" / "onnxdecomp.json").read_text(encoding="utf-8"))
    assert record["verify"]["data"] == "feeds of the caller"
    assert record["verify"]["samples"] >= 32
    written = tmp_path / "out" / "model.onnx"
    operators = [node.op_type for node in onnx.load(written).graph.node]
    assert operators.count("ConvInteger") > 5
    with np.load(TEST_DATA) as data:
        (scores,) = run(written, {"image": data["image"]})
        assert np.mean(scores.argmax(1) == data["labels"]) > 0.9


def test_the_pass_has_the_options_of_compress_and_its_search_takes_lists() -> None:
    from olive.hardware import DEFAULT_CPU_ACCELERATOR

    from onnxdecomp.integrations.olive import OnnxLowRank

    _, fixed, searched = OnnxLowRank.get_config_params(
        DEFAULT_CPU_ACCELERATOR, {"target": ["macs=1.5x", "macs=2x"], "method": "tucker"}
    )
    wanted = {known.name for known in option_fields(CompressConfig)} - OWN
    assert wanted | {"calib_data_config", "eval_data_config"} == fixed.keys() | searched.keys()
    assert list(searched) == ["target"]
    assert searched["target"].get_support() == ["macs=1.5x", "macs=2x"]
    assert fixed["provider"] == "CPUExecutionProvider"
    assert fixed["rank"] is None
