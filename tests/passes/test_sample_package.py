"""A pass, a decomposition and a kind of layer of somebody else's package: found by entry points, used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.decompositions.registry import METHODS, names
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.shape_inference import as_declared
from onnxdecomp.latency.chain_model import refusal
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.pipeline.installed import available
from onnxdecomp.workflow.compress import compress
from tests.builders.graphs import model
from tests.builders.running import op_types

MICROSOFT = "com.microsoft"
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
    assert available()["drop-dropout"].distribution == "sample-passes 1.2.3"
    seen: list[str] = []
    subject = with_dropouts()
    result = pipeline.run(subject, configuration.build(config), on_pass=seen.append)
    assert seen == ["drop-dropout", "normalise", "check"]
    assert op_types(subject)["Dropout"] == 1
    assert result.modified == ("drop-dropout",)
    assert result.notes == ("drop-dropout: 1 Dropout nodes removed",)
    assert result.record["drop-dropout"] == {"removed": 1}


def test_without_the_package_the_pass_is_unknown() -> None:
    with pytest.raises(UsageError, match="unknown pass 'drop-dropout'"):
        configuration.build({"pipeline": ["drop-dropout"]})


def command(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed), *(path for path in sys.path if path)]
    return subprocess.run(
        [sys.executable, "-m", "onnxdecomp.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_it(installed: Path) -> None:
    listed = command(installed, "passes", "--json", "-")
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


def two_layers() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.standard_normal((24, 24)).astype(np.float32) for k in (1, 2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="two"),
    ]
    return model(nodes, {"x": [2, 24]}, ["y"], weights)


def test_its_decomposition_is_listed_with_its_package(installed: Path) -> None:
    listed = command(installed, "methods", "--json", "-")
    assert (listed.returncode, listed.stderr) == (0, "")
    methods = {entry["name"]: entry for entry in json.loads(listed.stdout)}
    assert list(methods) == [*METHODS, "columns", *CUTS]
    assert methods["columns"]["distribution"] == "sample-passes 1.2.3"
    assert methods["columns"]["options"] == {"of": "inputs"}
    assert [name for name, entry in methods.items() if "distribution" in entry] == ["columns"]
    assert "package sample-passes 1.2.3" in " ".join(command(installed, "methods").stdout.split())


def test_its_decomposition_has_its_options_on_the_command_line(installed: Path, tmp_path: Path) -> None:
    assert "--columns-of" in command(installed, "compress", "--help-all").stdout
    path, record = tmp_path / "m.onnx", tmp_path / "record.json"
    onnx.save(two_layers(), path)
    options = ("--method", "columns", "--columns-of", "outputs", "--rank", "6", "--simplify", "none")
    done = command(
        *(installed, "compress", str(path), "-o", str(tmp_path / "out.onnx"), *options),
        *("--no-bench", "--json", str(record)),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(record.read_text())
    choices = found["plan"]["choices"]
    assert [(c["method"], c["options"], c["ranks"]) for c in choices] == [
        ("columns", {"of": "outputs"}, [6]),
        ("columns", {"of": "outputs"}, [6]),
    ]
    assert "decompose: columns is a method of sample-passes 1.2.3" in found["notes"]


@pytest.mark.parametrize("of", ["inputs", "outputs"])
def test_its_decomposition_carries_out_a_plan(
    of: str, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(installed))
    subject = two_layers()
    choices: dict[str, Any] = {
        "bench": False,
        "simplify": "none",
        "method": "columns",
        "options": {"columns": {"of": of}},
    }
    planned = compress(subject, rank="24", must_save="none", dry_run=True, **choices)
    again = compress(subject, plan=planned.plan.to_json(), bench=False, simplify="none")
    assert [choice.method for choice in again.plan.choices] == ["columns", "columns"]
    assert again.verification is not None
    worst = again.verification.worst
    assert worst is not None
    assert worst < 1e-4  # at full rank nothing is lost
    searched = compress(subject, target="error=0.9", **choices)
    assert {choice.method for choice in searched.plan.decomposed} == {"columns"}


def test_without_the_package_its_method_is_unknown() -> None:
    assert names() == tuple(METHODS)
    with pytest.raises(UsageError, match="unknown method 'columns'"):
        compress(two_layers(), method="columns", rank="6", dry_run=True)


def three_layers(trans_b: int = 1) -> onnx.ModelProto:
    """A TransposeMatMul, a Dropout and a MatMul, the first with its operands' sizes unequal."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal((20, 24) if trans_b else (24, 20)).astype(np.float32)
    weights = {"w1": first, "w2": rng.standard_normal((20, 16)).astype(np.float32)}
    nodes = [
        helper.make_node(
            "TransposeMatMul", ["x", "w1"], ["h"], name="one", domain=MICROSOFT, transB=trans_b, alpha=0.5
        ),
        helper.make_node("Dropout", ["h"], ["r"], name="drop"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="two"),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return model(nodes, {"x": [2, 3, 24]}, ["y"], weights, opset_imports=imports)


def test_one_run_uses_its_pass_its_decomposition_and_its_kind_of_layer(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(installed))
    stages = ["drop-dropout", "normalise", "decompose", "annotate", "check"]
    options: dict[str, Any] = {
        "bench": False,
        "simplify": "none",
        "must_save": "none",
        "config": {"pipeline": stages},
    }
    found = compress(three_layers(), method="columns", rank="1.0", **options)
    choices = {choice.layer: (choice.op_type, choice.method) for choice in found.plan.choices}
    assert choices == {"one": ("TransposeMatMul", "columns"), "two": ("MatMul", "columns")}
    assert op_types(found.model) == {"MatMul": 4}
    assert "drop-dropout: 1 Dropout nodes removed" in found.notes
    assert "decompose: TransposeMatMul is a kind of layer of sample-passes 1.2.3" in found.notes
    assert [check.passed for check in found.lowering] == [True, True]
    assert found.verification is not None
    assert found.verification.worst is not None
    assert found.verification.worst < 1e-4  # at full rank nothing is lost


@pytest.mark.parametrize("trans_b", [0, 1])
def test_its_kind_of_layer_is_like_ours_in_a_search(
    trans_b: int, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted to what it sees; the nodes do what the chain says at any rank."""
    monkeypatch.syspath_prepend(str(installed))
    rows = np.random.default_rng(2).standard_normal((8, 2, 3, 24)).astype(np.float32)
    searched = compress(
        three_layers(trans_b),
        target="params=1.5x",
        calib=[{"x": sample} for sample in rows],
        bench=False,
        simplify="none",
    )
    assert "one" in {choice.layer for choice in searched.plan.decomposed}
    assert searched.lowering != ()
    assert all(check.passed and check.rel_error is not None for check in searched.lowering)
    losses = [layer.loss for layer in searched.layers if layer.name == "one"]
    assert losses != [None]


def test_its_kind_of_layer_has_shapes_behind_it_and_is_timed(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = ir.from_proto(three_layers())
    infer_shapes(subject)
    h = subject.graph[0].outputs[0]
    assert h.shape is None
    as_declared(subject)
    monkeypatch.syspath_prepend(str(installed))
    infer_shapes(subject)
    assert h.shape is not None
    assert h.shape.dims == (2, 3, 20)
    matched, skips = find(subject)
    assert ([match.layer.op_type for match in matched], skips) == (["TransposeMatMul", "MatMul"], [])
    assert [refusal(match.layer) for match in matched] == [None, None]
    monkeypatch.undo()
    assert refusal(matched[0].layer) == "the latency of TransposeMatMul is not measured alone"


def test_without_the_package_its_kind_of_layer_is_named_and_stays() -> None:
    matched, skips = find(ir.from_proto(three_layers()))
    assert [match.layer.name for match in matched] == ["two"]
    assert [(skip.name, skip.reason) for skip in skips] == [("one", "TransposeMatMul is not decomposed")]
