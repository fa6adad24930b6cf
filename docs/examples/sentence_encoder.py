"""A sentence encoder: judged by what it finds, with a metric of one's own.

The metric gets the outputs and the data; here a sentence is found if the nearest other one has its topic.
"""

from pathlib import Path

import numpy as np

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models" / "tasks"


def retrieval(outputs, data):
    """Whether the nearest other sentence is of its topic, for each: of an array there is an interval."""
    alike = outputs["sentence_embedding"] @ outputs["sentence_embedding"].T
    np.fill_diagonal(alike, -1)
    return data.labels[alike.argmax(1)] == data.labels


result = onnxdecomp.compress(
    MODELS / "encoder.onnx",
    "encoder.small.onnx",
    method="width,attention",  # fewer units in the feed-forward layers, smaller heads
    rank="0.5",
    calib=MODELS / "encoder_calib.npz",
    data=MODELS / "encoder_test.npz",
    metric=retrieval,
    bench=False,
    overwrite=True,
)
found, totals = result.record["verify"]["metric"], result.record["totals"]
print(f"parameters {totals['params']['ratio']:.2f}x fewer, file {totals['bytes']['ratio']:.2f}x smaller")
print(f"found {found['original']:.1%} -> {found['new']:.1%} ({found['low']:+.1%} to {found['high']:+.1%})")
