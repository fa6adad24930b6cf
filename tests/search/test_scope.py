"""What ranks and widths are multiples of: of what was measured, where a layer has several blocks of it."""

from __future__ import annotations

import pytest

from onnxdecomp.core.layer import Layer
from onnxdecomp.search.scope import Scope
from tests.builders.layers import hollow_conv, hollow_linear

MEASURED = Scope(multiple=8, measured={"product": 16, "convolution": 64})


@pytest.mark.parametrize(
    ("layer", "multiple"),
    [
        (hollow_conv(256, 256), 64),
        (hollow_conv(512, 128), 32),
        (hollow_conv(64, 16), 8),
        (hollow_conv(256, 256, 1), 16),
        (hollow_linear(512, 512), 16),
        (hollow_linear(512, 10), 8),
    ],
)
def test_by_kind_and_size(layer: Layer, multiple: int) -> None:
    assert MEASURED.multiple_of(layer) == multiple
    assert Scope(multiple=4).multiple_of(layer) == 4


def test_the_coarsest_of_several_layers_and_what_needs_no_multiple() -> None:
    assert MEASURED.multiple_of(hollow_linear(512, 512), hollow_conv(256, 256)) == 64
    assert Scope(multiple=8, measured={"product": 1}).multiple_of(hollow_linear(512, 512)) == 1
