"""A reader of lines of text (convolutions, then an LSTM): a metric of one's own, of which lower is better.

The network says for every second column a digit or a blank (class 10), as CTC has it; the metric is the
character error rate of the digits that are read.
"""

from pathlib import Path

import onnxdecomp

MODELS = Path(__file__).parents[2] / "models" / "tasks"
BLANK = 10


def read(scores):
    """The digits of one line: the largest score of each column, repetitions and blanks dropped."""
    best = scores.argmax(1)
    before = [BLANK, *best[:-1]]
    return [int(c) for c, last in zip(best, before, strict=True) if c not in (BLANK, last)]


def edits(found, wanted):
    """Levenshtein distance of two lists."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def character_errors(outputs, data):
    lines = zip(outputs["scores"], data.labels.tolist(), strict=True)
    return [edits(read(scores), wanted) / len(wanted) for scores, wanted in lines]


character_errors.higher_is_better = False

result = onnxdecomp.compress(
    MODELS / "reader.onnx",
    "reader.small.onnx",
    method="svd,tucker",
    rank="0.5",
    calib=MODELS / "reader_calib.npz",
    data=MODELS / "reader_test.npz",
    metric=character_errors,
    bench=False,
    overwrite=True,
)
errors, macs = result.record["verify"]["metric"], result.record["totals"]["macs"]
print(f"MACs {macs['ratio']:.2f}x fewer")
print(
    f"errors {errors['original']:.2%} -> {errors['new']:.2%} ({errors['low']:+.2%} to {errors['high']:+.2%})"
)
