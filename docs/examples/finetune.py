"""Win back what a hard compression has lost, by training on unlabelled inputs with the original as teacher.

Needs the extra `train` (PyTorch).
"""

from pathlib import Path

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models" / "tasks"
TEST = MODELS / "upscaler_test.npz"

onnxdecomp.compress(
    MODELS / "upscaler.onnx", "hard.onnx", method="tucker", rank="0.4", bench=False, overwrite=True
)
onnxdecomp.finetune(
    "hard.onnx",
    "trained.onnx",
    teacher=MODELS / "upscaler.onnx",
    data=MODELS / "upscaler_calib.npz",
    settings="epochs=8,train=all,rate=0.02",
    overwrite=True,
)
for name in ("hard", "trained"):
    checked = onnxdecomp.verify(MODELS / "upscaler.onnx", f"{name}.onnx", data=TEST, metric="psnr")
    print(
        f"{name:8}: error {checked.worst:.4f}, {checked.metric.new:.2f} dB of {checked.metric.original:.2f}"
    )
