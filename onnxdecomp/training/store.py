"""Trained numbers back in a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from onnxdecomp.errors import ModelError


def store(model: ir.Model, weights: Mapping[str, torch.Tensor]) -> None:
    """Put numbers into the model's initializers, by name, in their own element types.

    Raises:
        ModelError: They are not finite.
    """
    for name, tensor in weights.items():
        value = model.graph.initializers[name]
        old = value.const_value
        assert old is not None
        array = tensor.detach().cpu().numpy()
        if not np.isfinite(array).all():
            raise ModelError(f"training gave numbers that are not finite in {name}")
        value.const_value = ir.tensor(array, dtype=old.dtype, name=name)
