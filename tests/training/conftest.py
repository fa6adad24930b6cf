"""A decomposed network to train, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import onnxdecomp
from models.digits import MODEL, TEST_DATA
from onnxdecomp.core.layer import Array


@dataclass(frozen=True)
class Case:
    """The original, a decomposed model, and data."""

    original: Path
    compressed: Path
    images: dict[str, Array]
    labelled: dict[str, Array]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The digits network in Tucker form at ranks too low for it, and some images."""
    target = tmp_path_factory.mktemp("training") / "small.onnx"
    onnxdecomp.compress(MODEL, target, method="tucker", rank="0.15", bench=False, verify=False)
    with np.load(TEST_DATA) as data:
        images, labels = data["image"][:160], data["labels"][:160]
    return Case(MODEL, target, {"image": images}, {"image": images, "labels": labels})
