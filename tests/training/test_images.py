"""Augmentation: what each way does to an image, and which numbers decide it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from onnxdecomp.errors import UsageError
from onnxdecomp.training.images import DRAWS, augmented, blended

SHARE = st.floats(0, 1, exclude_max=True, width=32)


def _images(n: int, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.arange(n * 2 * height * width, dtype=torch.float32).reshape(n, 2, height, width)


def _draws(*given: list[float]) -> torch.Tensor:
    """Numbers for some images, zero where none is given."""
    return torch.tensor([[*numbers, *[0.0] * (DRAWS - len(numbers))] for numbers in given])


def test_a_number_below_a_half_turns_the_image() -> None:
    x = _images(2)
    found = augmented(x, ("flip",), _draws([0.4], [0.6]))
    assert torch.equal(found[0], x[0].flip(-1))
    assert torch.equal(found[1], x[1])


@given(SHARE, SHARE)
def test_a_crop_is_a_window_of_the_mirrored_image(top: float, left: float) -> None:
    x = _images(1)
    wide = functional.pad(x, (3, 3, 2, 2), mode="reflect")
    found = augmented(x, ("crop",), _draws([0, top, left]))
    down, right = min(int(top * 5), 4), min(int(left * 7), 6)
    assert torch.equal(found, wide[:, :, down : down + 16, right : right + 24])


def test_the_images_of_a_sample_and_all_its_inputs_move_alike() -> None:
    draws = torch.rand(3, DRAWS)
    pairs, singles = _images(6), _images(3)
    of_pairs = augmented(pairs, ("flip", "crop"), draws)
    for at in range(3):
        alone = augmented(pairs[2 * at : 2 * at + 2], ("flip", "crop"), draws[at : at + 1])
        assert torch.equal(of_pairs[2 * at : 2 * at + 2], alone)
    assert torch.equal(
        augmented(singles, ("flip", "crop"), draws), augmented(singles, ("flip", "crop"), draws)
    )


MIDDLE = [0.0] * 5 + [0.5] * 6
"""Numbers that neither warp nor light an image."""


@pytest.mark.parametrize("way", ["warp", "light"])
def test_numbers_in_the_middle_change_nothing(way: str) -> None:
    x = _images(1) / 100
    torch.testing.assert_close(augmented(x, (way,), _draws(MIDDLE)), x)
    moved = [*MIDDLE[:6], 0.9, *MIDDLE[7:9], 0.9, 0.9]
    assert not torch.allclose(augmented(x, (way,), _draws(moved)), x)
    assert torch.equal(augmented(x, (way,), _draws([*moved, 0.7])), x)  # one of three stays as it is


def test_light_changes_contrast_and_brightness() -> None:
    x = _images(1)
    seen = augmented(x, ("light",), _draws([*MIDDLE[:9], 1.0, 1.0]))
    torch.testing.assert_close(seen, x * math.exp(0.3) + 0.4 * x.std())


def test_a_quarter_of_a_larger_image_is_seen() -> None:
    """Scaled by e^-0.4, the middle stays in the middle and the corners leave."""
    x = torch.linspace(-1, 1, 40).reshape(1, 1, 1, 40).repeat(1, 1, 40, 1)
    seen = augmented(x, ("warp",), _draws([*MIDDLE[:5], 0.0, *MIDDLE[6:]]))
    torch.testing.assert_close(seen, x * math.exp(-0.4), atol=1e-5, rtol=1e-5)


@given(SHARE, SHARE, SHARE)
def test_blends_show_at_most_a_half_of_the_other_image(much: float, top: float, left: float) -> None:
    x, other = torch.zeros(1, 1, 40, 60), torch.ones(1, 1, 40, 60)
    draws = _draws([0, top, left, much])
    mixed, cut = (blended(x, other, (name,), draws) for name in ("mix", "cut"))
    share = max(0.0, much - 0.5)
    torch.testing.assert_close(mixed, torch.full_like(x, share))
    assert set(cut.unique().tolist()) <= {0.0, 1.0}
    assert abs(float(cut.mean()) - share) < 0.03  # the window's sides are whole pixels


def test_an_image_is_blended_in_one_way() -> None:
    x, other = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    draws = _draws([0, 0.5, 0.5, 0.9, 0.1], [0, 0.5, 0.5, 0.9, 0.9])
    first, second = blended(x, other, ("flip", "mix", "cut"), draws)
    torch.testing.assert_close(first, torch.full_like(first, 0.4))
    assert set(second.unique().tolist()) == {0.0, 1.0}


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not for an input of shape \[4, 5\]"):
        augmented(torch.zeros(4, 5), ("flip",), torch.rand(4, DRAWS))
