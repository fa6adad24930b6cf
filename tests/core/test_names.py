"""Names in a sentence: hundreds of layers do not flood it."""

from __future__ import annotations

import pytest

from onnxdecomp.core.names import MOST, some


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "n0"),
        (MOST + 1, "n0, n1, n2, n3, n4, n5, n6"),
        (MOST + 2, "n0, n1, n2, n3, n4, n5 and 2 more"),
        (300, "n0, n1, n2, n3, n4, n5 and 294 more"),
    ],
)
def test_first_names_and_a_count(count: int, text: str) -> None:
    assert some([f"n{index}" for index in range(count)]) == text
