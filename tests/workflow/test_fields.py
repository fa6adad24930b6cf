"""The graph stays the user's: what a file says besides its numbers is in the result too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxdecomp
from tests.workflow.fields import normal, said, whole

LAYER = [r"node\[conv\]/(attribute|input)", r"initializer\[[wb]\]"]
"""What rewriting the layer "conv" may change: its attributes, its weight and its fitted bias."""

IDLE = [r"node\[idle\]", r"node\[conv\]/input", r"node\[conv\]/attribute"]
"""What a simplifier may: a node that does nothing."""

OTHER_TYPES = [r"initializer\[", r"annotation\[w2\]", r"node\[.*\]/(input|output)\[", r"/elem_type"]
"""What quantization may: weights become others, and values of other types are made and read."""

WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "decomposed": ({}, [*LAYER, r"node\[conv/first\]"]),
    "simplified": ({"simplify": "onnxsim"}, [*LAYER, *IDLE]),
    "int8": ({"quantize": "int8"}, [*LAYER, *OTHER_TYPES]),
    "fp16": ({"quantize": "fp16"}, [*LAYER, *OTHER_TYPES]),
}


CASES = [(way, control_flow, 20) for way in WAYS for control_flow in (False, True)]


@pytest.mark.parametrize(("way", "control_flow", "opset"), [*CASES, ("int8", False, 11)])
def test_every_field_is_kept(way: str, control_flow: bool, opset: int, tmp_path: Path) -> None:
    model = whole(control_flow=control_flow, opset=opset)
    onnx.save(model, tmp_path / "model.onnx")
    options, ours = WAYS[way]
    if opset < 13:
        ours = [*ours, r"opset_import"]  # which int8 raises
    feed: dict[str, Any] = {"x": normal(4, 16, 6, 6)}
    if control_flow:
        feed["flag"] = np.array(True)
    options = {"simplify": "none", "calib": [feed], "method": "svd", "rank": "0.5", **options}
    done = onnxdecomp.compress(
        tmp_path / "model.onnx",
        tmp_path / "out.onnx",
        exclude=("last",),
        skip_below=0.0,
        must_save="none",
        bench=False,
        **options,
    )
    assert [choice.layer for choice in done.plan.decomposed] == ["conv"]
    before, after = said(model), said(onnx.load(tmp_path / "out.onnx"))
    assert len(before) > 140
    changed = {path: after.get(path) for path, value in before.items() if after.get(path) != value}
    unexpected = {path: now for path, now in changed.items() if not any(re.search(r, path) for r in ours)}
    assert unexpected == {}
