"""The committed digits network is what its script builds, and classifies as well as the README says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from models.digits import BLOCKS, CLASSES, MODEL, TEST_DATA, TEST_IMAGES, accuracy, build
from models.network import state_of


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return ir.load(MODEL)


def test_accuracy_on_the_committed_test_images() -> None:
    with np.load(TEST_DATA) as data:
        images, labels = data["image"], data["labels"]
    assert images.shape == (TEST_IMAGES, 1, 8, 8)
    assert labels.shape == (TEST_IMAGES,)
    assert np.bincount(labels, minlength=CLASSES).min() >= 45
    assert accuracy(MODEL, images, labels) >= 0.985


def test_test_data_fit_the_input(model: ir.Model) -> None:
    with np.load(TEST_DATA) as data:
        image = data["image"]
    (declared,) = model.graph.inputs
    assert declared.name == "image"
    assert declared.dtype is not None
    assert image.dtype == declared.dtype.numpy()
    assert image.min() == 0
    assert image.max() == 1


def test_is_what_its_script_builds(model: ir.Model, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    ir.save(build(state_of(model)), again)
    assert again.read_bytes() == MODEL.read_bytes()


def test_is_a_valid_model_with_a_free_batch_and_its_batch_norms(model: ir.Model) -> None:
    onnx.checker.check_model(MODEL, full_check=True)
    operators = [node.op_type for node in model.graph]
    convolutions = sum(map(len, BLOCKS))
    assert operators.count("Conv") == operators.count("BatchNormalization") == convolutions
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        "[N,1,8,8]",
        "[N,10]",
    ]


def test_a_wrong_parameter_is_refused(model: ir.Model) -> None:
    state = state_of(model)
    state["conv1_1.weight"] = state["conv1_1.weight"][:-1]
    with pytest.raises(ValueError, match="parameter conv1_1"):
        build(state)


def test_the_committed_files_are_small() -> None:
    assert MODEL.stat().st_size < 3e6
    assert TEST_DATA.stat().st_size < 1e6
