"""A pass of one's own: small weights become zero, before layers are decomposed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxdecomp.pipeline.base import Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class ZeroSmall(Pass):
    """Set to zero what is below a share of its weight's largest number."""

    name: ClassVar[str] = "zero-small"
    summary: ClassVar[str] = "Set numbers to zero that are small beside the largest of their weight"

    share: float = option(0.01, "of the largest number, below which others become zero")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        zeroed = 0
        for value in model.graph.initializers.values():
            array = value.const_value.numpy()
            if array.dtype != np.float32 or array.ndim < 2:
                continue
            small = np.abs(array) < self.share * np.abs(array).max()
            zeroed += int(np.count_nonzero(array[small]))
            value.const_value = ir.tensor(np.where(small, np.float32(0), array), name=value.name)
        return PassResult(
            model, zeroed > 0, notes=(f"{zeroed} numbers set to zero",), record={"zeroed": zeroed}
        )


PASSES = {"zero-small": "my_passes:ZeroSmall"}
