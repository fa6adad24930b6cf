#!/usr/bin/env bash
# A recurrent network that takes noise out of spectra, with its options in a file of TOML.
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
models=$here/../../models/tasks

onnxdecomp compress "$models/enhancer.onnx" -o enhancer.small.onnx --overwrite --no-bench \
    --config "$here/speech_enhancement.toml" \
    --calib "$models/enhancer_calib.npz" --eval "$models/enhancer_test.npz" --metric "$here/speech_metric.py:clearness" \
    --json enhancer.json

# The numbers are in the record, for jq and others.
python - <<'END'
import json

with open("enhancer.json", encoding="utf-8") as file:
    record = json.load(file)
totals, clear = record["totals"], record["verify"]["metric"]
print(f"parameters {totals['params']['ratio']:.2f}x fewer, {clear['original']:.2f} -> {clear['new']:.2f} dB")
END
