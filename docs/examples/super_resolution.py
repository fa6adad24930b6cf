"""Super-resolution: the loss is named in the task's own unit, decibels of PSNR.

Calibration pictures need no labels; the test's labels are the large pictures.
"""

from pathlib import Path

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models" / "tasks"

for rank in ("0.75", "0.5", "0.25"):
    result = onnxdecomp.compress(
        MODELS / "upscaler.onnx",
        f"upscaler.{rank}.onnx",
        method="tucker",
        rank=rank,
        calib=MODELS / "upscaler_calib.npz",
        data=MODELS / "upscaler_test.npz",
        metric="psnr",
        bench=False,
        overwrite=True,
    )
    psnr, macs = result.record["verify"]["metric"], result.record["totals"]["macs"]
    interval = f"{psnr['change']:+.2f} dB ({psnr['low']:+.2f} to {psnr['high']:+.2f})"
    print(f"rank {rank}: MACs {macs['ratio']:.2f}x fewer, {psnr['original']:.2f} dB, {interval}")
