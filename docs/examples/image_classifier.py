"""An image classifier: half of the multiply-accumulates, judged by labelled images.

The ranks are given, so that this takes a second; `target="macs=2x"` searches for them.
"""

from pathlib import Path

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models"

result = onnxdecomp.compress(
    MODELS / "digits.onnx",
    "digits.small.onnx",
    method="tucker",
    rank="0.375",
    data=MODELS / "digits_test.npz",  # images and "labels"
    bench_seconds=0.3,
    overwrite=True,
)

accuracy, totals = result.record["verify"]["accuracy"], result.record["totals"]
print(f"accuracy {accuracy['original']:.2%} -> {accuracy['new']:.2%}")
print(f"MACs {totals['macs']['ratio']:.2f}x fewer, file {totals['bytes']['ratio']:.2f}x smaller")
print(result.record["verdict"]["text"])
