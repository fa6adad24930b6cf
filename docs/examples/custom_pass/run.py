"""A pipeline with the pass of my_passes in it: `pip install -e docs/examples/custom_pass` first."""

from pathlib import Path

import onnxdecomp

MODELS = Path(__file__).parents[3] / "models"

result = onnxdecomp.compress(
    MODELS / "digits.onnx",
    "digits.sparse.onnx",
    config={
        "pipeline": ["simplify", "normalise", "zero-small", "decompose", "annotate", "check"],
        "zero-small": {"share": 0.05},
        "decompose": {"method": "tucker", "rank": "0.375"},
    },
    data=MODELS / "digits_test.npz",
    bench=False,
    overwrite=True,
)
print(f"{result.record['passes']['zero-small']['zeroed']} numbers set to zero")
print(f"accuracy {result.record['verify']['accuracy']['new']:.2%}")
