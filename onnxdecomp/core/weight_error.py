"""How far the weight that a chain stands for is from the layer's own."""

from __future__ import annotations

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer

_EXACT_ELEMENTS = 2**22
_PROBES = 64


def weight_error(chain: Chain, layer: Layer) -> float:
    """The relative Frobenius error of the weight that the chain stands for.

    Exact up to a few million elements. For a larger matrix ||(What - W) Z|| / ||W Z|| with 64 seeded
    Gaussian columns Z, which estimates the same ratio to about a percent without forming What.
    """
    weight = layer.weight
    if layer.conv is not None or weight.ndim != 2 or weight.size <= _EXACT_ELEMENTS:
        exact = weight.astype(np.float64)
        return _ratio(chain.dense() - exact, exact)
    z = np.random.default_rng(0).standard_normal((_PROBES, weight.shape[1])).astype(weight.dtype)
    exact = z @ weight.T
    return _ratio(chain.forward(z).reshape(exact.shape) - exact, exact)


def _ratio(difference: Array, exact: Array) -> float:
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(difference)) / norm if norm else 0.0
