"""No files: a model in memory goes in, another one comes out, and the original stays as it is."""

from pathlib import Path

import onnx
import onnx_ir as ir

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models" / "tasks"

original = onnx.load(MODELS / "detector.onnx")
result = onnxdecomp.compress(original, method="tucker", rank="0.5", bench=False)
small = ir.to_proto(result.model)

for layer in result.layers:
    what = f"{layer.method} {','.join(map(str, layer.ranks))}" if layer.method else f"kept: {layer.reason}"
    print(f"{layer.name:16} {what}")
print(f"{original.ByteSize() / 1000:.0f} -> {small.ByteSize() / 1000:.0f} kB")
