"""What a run needs of memory: a multiple of the model, and not more the larger the model is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.encoder import encoder
from models.shapes import save

BUDGET = 150 << 20
"""Bytes beside twice the model, which README.md promises of runs without calibration."""

_CODE = """
import sys
import onnxruntime, scipy.linalg, onnxdecomp
from onnxdecomp.runtime.memory import peak
from onnxdecomp.workflow.compress import compress
before = peak()
compress(sys.argv[1], sys.argv[2], method="svd", rank="0.5", include=("layer0.*",), bench=False)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_run_takes_twice_the_model_and_a_budget(tmp_path: Path) -> None:
    model = save(encoder(layers=1, width=512, vocabulary=60_000), tmp_path / "model.onnx", external=True)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size > 130e6
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(model), str(tmp_path / "new.onnx")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert int(done.stdout) <= 2 * size + BUDGET, f"{int(done.stdout) / size:.2f} times the model"
