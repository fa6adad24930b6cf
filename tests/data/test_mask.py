"""Which inputs are masks, and which axes of a tensor they speak of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.data.mask import Mask, masked_inputs
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec

IDS = TensorSpec("input_ids", ("batch", "sequence"), "int64")
NAMED = TensorSpec("attention_mask", ("batch", "sequence"), "int64")
REAL = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])
FEED = {"attention_mask": REAL}
MASK = Mask((NAMED,))


@pytest.mark.parametrize(
    "name",
    ["attention_mask", "input_mask:0", "decoder_attention_mask", "bert/input_mask", "attention_mask.1"],
)
def test_usual_names_are_found(name: str) -> None:
    found = masked_inputs([IDS, TensorSpec(name, ("b", 4), "float32")])
    assert found is not None
    assert found.text == name
    assert name in found.note


def test_others_are_not() -> None:
    image = TensorSpec("attention_mask", (1, 1, 8, 8), "float32")
    assert masked_inputs([IDS, image, TensorSpec("valid", ("b", "s"), "int64")]) is None
    assert masked_inputs([IDS, NAMED], "none") is None


def test_names_that_are_given() -> None:
    valid = TensorSpec("valid", ("b", 1, "s"), "bool")
    found = masked_inputs([IDS, NAMED, valid], "valid,attention_mask")
    assert found is not None
    assert [spec.name for spec in found.inputs] == ["valid", "attention_mask"]
    assert found.note == ""
    for wrong in ("what", "image"):
        with pytest.raises(UsageError, match="--mask"):
            masked_inputs([IDS, TensorSpec("image", (1, 3, 8, 8), "float32")], wrong)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 4), (0, 1)),
        ((2, 4, 3), (0, 1)),
        ((2, 3, 4), (0, 2)),
        ((4, 2), (1, 0)),
    ],
)
def test_rows_are_masked_along_the_axes_of_their_size(shape: tuple[int, ...], axes: tuple[int, int]) -> None:
    real = MASK.rows(FEED, shape)
    assert real is not None
    assert real.shape == shape
    for index in np.ndindex(shape):
        assert real[index] == REAL[index[axes[0]], index[axes[1]]]


def test_flat_rows() -> None:
    np.testing.assert_array_equal(MASK.rows(FEED, (8,)), REAL.reshape(-1).astype(bool))


@pytest.mark.parametrize("shape", [(2,), (3, 4), (2, 5), (2, 4, 4), (7,)])
def test_where_it_is_not_clear_all_rows_count(shape: tuple[int, ...]) -> None:
    assert MASK.rows(FEED, shape) is None


def values(shape: Sequence[int], declared: Sequence[Dim] | None, mask: Mask = MASK) -> Array | None:
    return mask.values(FEED, shape, declared)


@pytest.mark.parametrize(
    ("shape", "declared"),
    [
        ((2, 4, 4), ("batch", "sequence", 4)),
        ((2, 4, 4), None),
        ((2, 4, 7), None),
        ((2, 4), ("batch", "sequence")),
        ((2, 4), (None, None)),
        ((2, 4, 3, 5), None),
    ],
)
def test_outputs_with_a_value_for_each_position(shape: Sequence[int], declared: Sequence[Dim] | None) -> None:
    real = values(shape, declared)
    assert real is not None
    np.testing.assert_array_equal(real.reshape(2, 4, -1)[..., 0], REAL.astype(bool))


def test_outputs_of_heads_and_features_first() -> None:
    for shape, declared in (((2, 3, 4), None), ((2, 4, 4), ("batch", 4, "sequence")), ((2, 3, 4, 4), None)):
        real = values(shape, declared)
        assert real is not None
        np.testing.assert_array_equal(real.reshape(2, shape[1], 4, -1)[:, 0, :, 0], REAL.astype(bool))


@pytest.mark.parametrize(
    ("shape", "declared"),
    [
        ((2, 4), ("batch", 4)),  # pooled, with as many features as there are positions
        ((2, 4), None),
        ((2, 7), ("batch", 7)),
        ((2, 4, 4, 4), None),
        ((2,), ("batch",)),
    ],
)
def test_pooled_outputs_and_unclear_ones_count_whole(
    shape: Sequence[int], declared: Sequence[Dim] | None
) -> None:
    assert values(shape, declared) is None


def test_a_mask_without_padding_changes_nothing() -> None:
    assert MASK.rows({"attention_mask": np.ones((2, 4))}, (2, 4)) is None


def test_other_numbers_are_no_mask() -> None:
    additive = {"attention_mask": np.array([[0.0, -1e4]])}
    with pytest.raises(UsageError, match="other numbers"):
        MASK.rows(additive, (1, 2))
    assert Mask((NAMED,), given=False).rows(additive, (1, 2)) is None


def test_of_two_masks_the_one_that_fits_counts() -> None:
    other = TensorSpec("decoder_attention_mask", ("batch", "steps"), "int64")
    both = Mask((NAMED, other))
    feed = FEED | {"decoder_attention_mask": np.array([[1, 0, 0], [1, 1, 1]])}
    real = both.rows(feed, (2, 3))
    assert real is not None
    assert int(real.sum()) == 4
    assert both.rows(FEED | {"decoder_attention_mask": 1 - REAL}, (2, 4)) is None
