"""Where torch computes; that its products are NumPy's; and what does without a card that fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.fitting.moments import Gatherer
from onnxdecomp.tensor import device_product
from onnxdecomp.tensor.device_product import inner

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("there", [False, True])
def test_auto_is_cuda_where_torch_finds_it(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdecomp.training.device import torch_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert torch_device() == ("cuda" if there else "cpu")
    assert torch_device("cpu") == "cpu"
    if there:
        assert torch_device("cuda:1") == "cuda:1"
    else:
        with pytest.raises(UsageError, match="finds no CUDA"):
            torch_device("cuda:1")


@pytest.mark.parametrize("device", ["", "cpu", "cuda", "no such device"])
def test_products_are_alike_wherever(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch on the processor stands for a card; one that is not there leaves it to NumPy."""
    monkeypatch.setattr(device_product, "_WORTH", 0)
    x, y = (np.random.default_rng(k).standard_normal((50, 3 + k)) for k in range(2))
    np.testing.assert_allclose(inner(x, y, device), x.T @ y)
    rows = x.astype(np.float32)[None]
    found = [Gatherer(1, 4, 3, device=where) for where in ("", device)]
    for one in found:
        one.add(rows, y)
    plain, other = (one.moments() for one in found)
    np.testing.assert_allclose(other.xx, plain.xx, rtol=1e-5)
    np.testing.assert_allclose(other.yx, plain.yx, rtol=1e-5, atol=1e-5)


def test_small_products_stay_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(array: Any) -> Any:
        raise AssertionError("copied")

    monkeypatch.setattr(torch, "from_numpy", fails)
    inner(np.ones((4, 4)), np.ones((4, 4)), "cuda")
