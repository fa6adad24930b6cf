"""A language model: how often it still says what it said, and by how much its probabilities have moved."""

from pathlib import Path

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models" / "tasks"

for metric in ("token-agreement", "kl"):
    result = onnxdecomp.compress(
        MODELS / "decoder.onnx",
        "decoder.small.onnx",
        method="svd",
        rank="0.6",
        exclude=["node_MatMul_84"],  # it makes the logits
        calib=MODELS / "decoder_calib.npz",
        data=MODELS / "decoder_test.npz",
        metric=metric,
        bench=False,
        overwrite=True,
    )
    said, totals = result.record["verify"]["metric"], result.record["totals"]
    print(f"MACs {totals['macs']['ratio']:.2f}x fewer: {metric} {said['new']:.3f}")
