#!/usr/bin/env bash
# Plan on one machine, carry out on another: the plan is a file that can be read, edited and kept.
set -euo pipefail
models=$(cd -- "$(dirname -- "$0")" && pwd)/../../models

# Here: no model is written. A search (--target) would be carried out now, and only once.
onnxdecomp compress "$models/digits.onnx" --method tucker --rank 0.375 --dry-run --json plan.json

# By hand: one layer stays as it is.
python - <<'END'
import json

with open("plan.json", encoding="utf-8") as file:
    record = json.load(file)
for choice in record["plan"]["choices"]:
    if choice["layer"] == "conv2_1":
        choice.update(method=None, options={}, ranks=[], reason="kept by hand")
with open("plan.json", "w", encoding="utf-8") as file:
    json.dump(record, file)
END

# There: the same model and the plan.
onnxdecomp compress "$models/digits.onnx" -o digits.planned.onnx --overwrite --plan plan.json --no-bench \
    --eval "$models/digits_test.npz" --json planned.json

python -c 'import json; print("MACs", json.load(open("planned.json"))["totals"]["macs"]["ratio"], "times fewer")'
