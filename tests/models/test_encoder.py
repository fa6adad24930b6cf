"""The encoder of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from models.encoder import encoder
from models.shapes import parameter_count, save
from onnxdecomp.runtime.session import open_session, run


@pytest.fixture(scope="module")
def small() -> ir.Model:
    return encoder(layers=2, width=32, heads=4, vocabulary=50, longest=16)


def test_its_size_is_that_of_its_layers(small: ir.Model) -> None:
    each = 12 * 32**2 + 13 * 32
    scalars = 6 + 8 * 2 + 1  # constants of masks, and of shapes in each block
    assert 0 <= parameter_count(small) - (2 * each + (50 + 16 + 2) * 32) < scalars


@pytest.mark.parametrize("external", [False, True])
def test_padding_changes_nothing_of_real_tokens(small: ir.Model, tmp_path: Path, external: bool) -> None:
    path = save(small, tmp_path / "encoder.onnx", external=external)
    onnx.checker.check_model(path, full_check=True)
    session = open_session(path)
    ids, ones = np.arange(6)[None], np.ones((1, 6), np.int64)
    padded = {"input_ids": np.pad(ids, ((0, 0), (0, 3))), "attention_mask": np.pad(ones, ((0, 0), (0, 3)))}
    (alone,), (together,) = run(session, {"input_ids": ids, "attention_mask": ones}), run(session, padded)
    assert alone.shape == (1, 6, 32)
    np.testing.assert_allclose(together[:, :6], alone, atol=1e-5)
    assert alone.std() > 0.5
