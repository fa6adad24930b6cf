#!/usr/bin/env bash
# A detector whose outputs are scores of cells: compressed, then held by a gate as a CI job would, on what it finds.
set -euo pipefail
here=$(cd -- "$(dirname -- "$0")" && pwd)
models=$here/../../models/tasks

onnxdecomp compress "$models/detector.onnx" -o detector.small.onnx --overwrite --no-bench \
    --method tucker --rank 0.5 --calib "$models/detector_calib.npz"

# Exit code 1 and one line with the reason if it does not hold: --gate 'latency<=1.0 and …' on a quiet machine.
onnxdecomp bench "$models/detector.onnx" detector.small.onnx --data "$models/detector_test.npz" \
    --metric "$here/detector_metric.py:objects_found" \
    --duration 0.5 --gate 'macs<0.6 and size<0.6 and drop<=0.02' --markdown report.md

head -n 8 report.md
