"""The table of transformers: what its rows ask for can be asked for, and what it shows of what was found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdecomp
from bench import transformers
from bench.transformers import ROWS, table
from models.vit import vit
from onnxdecomp.graph.save import save
from onnxdecomp.runtime.session import open_session, run
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.config_checks import checked

WAYS = [way for ways in ROWS.values() for way in ways if way.options is not None]


@pytest.mark.parametrize("options", [way.options for way in WAYS], ids=[f"{w.goal}-{w.name}" for w in WAYS])
def test_each_row_is_a_command(options: Mapping[str, Any]) -> None:
    checked(CompressConfig.of(None, {**options, "calib": "calib.npz"}))


def test_files_of_rows_are_apart() -> None:
    for name, ways in ROWS.items():
        task = transformers.Task(name, None, None, Path("work"))  # type: ignore[arg-type]
        files = [task.file(way.goal, way.name, False) for way in ways]
        assert len({*files, task.file("", "original", True)}) == len(ways) + 1
        assert all(set(file.name) <= {*"abcdefghijklmnopqrstuvwxyzASVDLM0123456789_.-="} for file in files)


def test_the_table_shows_what_was_found_and_what_was_not() -> None:
    change = {"mean": 0.01, "low": -0.02, "high": 0.04, "n": 800}
    row = {"model": "minilm_l6", "way": "widths", "int8": False, "bytes": 15_000_000}
    found = {"metric": {"retrieval_top1": 0.59, "agreement": 0.9}, "change": change, "rel_l2": 0.3}
    text = table(
        [
            {
                **row,
                **found,
                "goal": "1.5x, int8",
                "agreement_interval": [0.88, 0.92],
                "over_int8": [1.4, 1.3, 1.5],
            },
            {**row, "goal": "2x, int8", "fewer_macs": None},
            {**row, "goal": "9x", "status": "out of reach"},
        ]
    )
    lines = text.splitlines()[2:]
    assert "+1.00 points (-2.00 to +4.00)" in lines[0]
    assert "0.900 (0.880 to 0.920)" in lines[0]
    assert "1.40x (1.30 to 1.50)" in lines[0]
    assert "15.0 MB" in lines[1]
    assert "out of reach" in lines[2]


def test_a_vision_transformer_tells_its_pictures_apart(tmp_path: Path) -> None:
    save(vit(layers=2, width=32, heads=2, patch=8, size=32, classes=10), tmp_path / "vit.onnx")
    pictures = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    session = open_session(tmp_path / "vit.onnx")
    (scores,) = run(session, {"pixels": pictures})
    assert scores.shape == (3, 10)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    np.testing.assert_allclose(run(session, {"pixels": pictures[1:2]})[0][0], scores[1], atol=1e-4)


def test_the_same_command_takes_a_vision_transformer(tmp_path: Path) -> None:
    """Narrower, in int8, and any number of pictures as before."""
    source, target = tmp_path / "vit.onnx", tmp_path / "small.onnx"
    save(vit(layers=2, width=64, heads=2, patch=8, size=32, classes=10), source)
    pictures = np.random.default_rng(0).standard_normal((48, 3, 32, 32)).astype(np.float32)
    (way,) = (way for way in ROWS["vit_s"] if way.name == "widths")
    options = {**(way.options or {}), "quantize": "int8-dynamic", "bench": False}
    done = onnxdecomp.compress(source, target, calib={"pixels": pictures}, **options)
    assert done.plan.cuts
    assert done.record["totals"]["macs"]["ratio"] >= 1.49
    assert done.record["passes"]["quantize"]["quantized_layers"] >= 12
    assert run(open_session(target), {"pixels": pictures[:5]})[0].shape == (5, 10)
