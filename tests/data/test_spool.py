from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxdecomp.data.spool import Spool
from onnxdecomp.errors import UsageError


@given(sizes=st.lists(st.integers(0, 6), max_size=8), hold=st.integers(0, 200))
def test_feeds_come_back_from_memory_and_file(sizes: list[int], hold: int) -> None:
    feeds: list[dict[str, NDArray[Any]]] = [
        {"x": np.full((2, size), k, np.float32), "k": np.array(k)} for k, size in enumerate(sizes)
    ]
    spool = Spool(feeds, hold=hold)
    assert len(spool) == len(feeds)
    small = np.cumsum([8 * size + 8 for size in sizes]) <= hold
    assert spool.written == len(feeds) - int(small.sum())
    for _ in range(2):
        for found, feed in zip(spool, feeds, strict=True):
            assert list(found) == ["x", "k"]
            for name, array in found.items():
                np.testing.assert_array_equal(array, feed[name])
                assert array.dtype == feed[name].dtype


def test_two_iterations_do_not_disturb_each_other() -> None:
    spool = Spool([{"x": np.array([k])} for k in range(4)], hold=0)
    assert [(a["x"].item(), b["x"].item()) for a, b in zip(spool, spool, strict=True)] == [
        (k, k) for k in range(4)
    ]


def test_text_comes_back() -> None:
    spool = Spool([{"s": np.array(["a", "bc"], dtype=object)}], hold=0)
    assert spool.written == 1
    (feed,) = spool
    assert feed["s"].tolist() == ["a", "bc"]


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UsageError, match="fewer samples, or set TMPDIR"):
        Spool([{"x": np.zeros(3)}], hold=0)
