"""The method of my_methods on a sentence encoder: `pip install -e docs/examples/custom_method` first."""

from pathlib import Path

import onnxdecomp

TASKS = Path(__file__).parents[3] / "models" / "tasks"

for method in ("svd", "panels"):
    result = onnxdecomp.compress(
        TASKS / "encoder.onnx",
        method=method,
        target="params=1.3x",
        calib=TASKS / "encoder_calib.npz",
        data=TASKS / "encoder_test.npz",
        bench=False,
    )
    print(f"{method}: error {result.verification.rel_l2:.4f}")
