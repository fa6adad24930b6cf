"""A pass of somebody else's package: built, found by its entry point, run in a configured pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline import pipeline
from tests.passes.graphs import model, op_types

SOURCE = Path(__file__).parent / "sample_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install --target` leaves it, without network and without pip."""
    pytest.importorskip("hatchling", reason="hatchling builds the sample package; it is in the dev extra")
    folder = tmp_path_factory.mktemp("sample")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=SOURCE, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def with_dropouts() -> ir.Model:
    node = helper.make_node
    nodes = [
        node("Dropout", ["x"], ["a"], name="one"),
        node("Relu", ["a"], ["b"], name="relu"),
        node("Dropout", ["b"], ["c"], name="two"),
        node("MatMul", ["c", "w"], ["y"], name="m"),
    ]
    return ir.from_proto(model(nodes, {"x": ["N", 4]}, ["y"], {"w": np.eye(4, dtype=np.float32)}))


def test_it_runs_in_a_pipeline_given_by_a_file(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(installed))
    config = tmp_path / "pipeline.toml"
    config.write_text('pipeline = ["drop-dropout", "normalise", "check"]\n[drop-dropout]\nkeep = ["two"]\n')
    assert pipeline.available()["drop-dropout"].distribution == "sample-passes 1.2.3"
    seen: list[str] = []
    subject = with_dropouts()
    result = pipeline.run(subject, pipeline.build(config), seen.append)
    assert seen == ["drop-dropout", "normalise", "check"]
    assert op_types(subject)["Dropout"] == 1
    assert result.modified == ("drop-dropout",)
    assert result.notes == ("drop-dropout: 1 Dropout nodes removed",)
    assert result.record["drop-dropout"] == {"removed": 1}


def test_without_the_package_the_pass_is_unknown() -> None:
    with pytest.raises(UsageError, match="unknown pass 'drop-dropout'"):
        pipeline.build({"pipeline": ["drop-dropout"]})


def test_the_command_lists_it(installed: Path) -> None:
    paths = [str(installed), *(path for path in sys.path if path)]
    listed = subprocess.run(
        [sys.executable, "-m", "onnxdecomp.cli.main", "passes", "--json", "-"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    passes = {entry["name"]: entry for entry in json.loads(listed.stdout)["passes"]}
    assert passes["drop-dropout"] == {
        "name": "drop-dropout",
        "distribution": "sample-passes 1.2.3",
        "summary": "Remove Dropout nodes, which do nothing in inference",
        "options": [
            {
                "name": "keep",
                "type": "a list of text",
                "default": [],
                "help": "names of nodes that stay",
            }
        ],
        "error": None,
    }
    assert {"simplify", "normalise", "decompose", "annotate", "check"} <= set(passes)
