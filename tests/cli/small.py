"""Small models and data in files, and commands run on them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.cli.main import main
from tests.conftest import ROOT

QUICK = ("--simplify", "none", "--no-bench", "--method", "tucker", "--rank", "4")
"""Options of compress that make it fast on `network`."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    def is_error(self, code: int, *fragments: str) -> None:
        """Assert that it failed as a user is promised: the code, one line on stderr, nothing on stdout."""
        assert self.code == code, self
        assert self.out == ""
        assert self.err.startswith("onnxdecomp: error: "), self.err
        assert self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for fragment in fragments:
            assert fragment in self.err


def files(folder: Path = Path()) -> list[str]:
    """The names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    captured = capsys.readouterr()
    return Outcome(ended.value.code, captured.out, captured.err)


def environment() -> dict[str, str]:
    """The environment of a subprocess that imports the checkout."""
    paths = [str(ROOT), str(ROOT / "passes"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def arguments(*given: object) -> list[str]:
    """The command line of a real process."""
    return [sys.executable, "-m", "onnxdecomp.cli.main", *map(str, given)]


def process(*given: object, cwd: Path | None = None, **options: Any) -> Outcome:
    """Run a command in a process of its own."""
    done = subprocess.run(
        arguments(*given),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def network(path: Path, *, channels: int = 16, spoil: float | None = None, **header: Any) -> Path:
    """x [N, 8, 8, 8] -> Conv c1 -> Relu -> Conv c2 -> y [N, channels, 8, 8]; seeded weights.

    Args:
        path: The file to write.
        channels: Of both convolutions.
        spoil: A value to put into the second weight.
        header: Other arguments of helper.make_model.
    """
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((channels, 8, 3, 3), dtype=np.float32) / 8,
        "w2": rng.standard_normal((channels, channels, 3, 3), dtype=np.float32) / 12,
    }
    if spoil is not None:
        weights["w2"][1, 2, 0, 0] = spoil
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="c2", pads=[1, 1, 1, 1]),
    ]
    return write(path, nodes, weights, **header)


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], **header: Any) -> Path:
    """A model of x [N, 8, 8, 8] and y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None, 8, 8])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    header = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8, **header}
    path.write_bytes(helper.make_model(graph, **header).SerializeToString())
    return path


def samples(path: Path, count: int = 3, **arrays: Any) -> Path:
    """Data for `network`."""
    x = np.random.default_rng(1).standard_normal((count, 8, 8, 8), dtype=np.float32)
    np.savez(path, **(arrays or {"x": x}))
    return path
