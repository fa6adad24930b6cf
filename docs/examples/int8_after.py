"""Decompose, then 8 bits: by this tool in one run, or by ONNX Runtime's quantizer afterwards."""

from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models"
TEST = MODELS / "digits_test.npz"
IMAGES = np.load(TEST)["image"]


class Reader(CalibrationDataReader):
    """Images one by one; a real run takes ranges from images that are not the test's."""

    def __init__(self):
        self.feeds = iter([{"image": image[None]} for image in IMAGES[:32]])

    def get_next(self):
        return next(self.feeds, None)


chains = {"method": "tucker", "rank": "0.375", "bench": False, "verify": False, "overwrite": True}
few = {"image": IMAGES[:32]}
onnxdecomp.compress(MODELS / "digits.onnx", "own.onnx", quantize="int8-static", calib=few, **chains)
onnxdecomp.compress(MODELS / "digits.onnx", "float.onnx", **chains)
quantize_static("float.onnx", "theirs.onnx", Reader(), per_channel=True)

for name in ("float", "own", "theirs"):
    checked = onnxdecomp.verify(MODELS / "digits.onnx", f"{name}.onnx", data=TEST)
    size = Path(f"{name}.onnx").stat().st_size / 1000
    print(f"{name:6}: {size:4.0f} kB, accuracy {checked.accuracy.new:.2%}, error {checked.worst:.3f}")
