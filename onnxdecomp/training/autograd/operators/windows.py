"""Windows that slide over an image: strides, dilations and pads as ONNX says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Tensor


@dataclass(frozen=True)
class Window:
    """Strides, dilations and kernel sizes, one per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @staticmethod
    def of(call: Call, kernel: Sequence[int]) -> Window:
        """Those of a node."""
        ones = [1] * len(kernel)
        return Window(
            tuple(kernel),
            tuple(call.attribute("strides", ones)),
            tuple(call.attribute("dilations", ones)),
        )

    @property
    def extents(self) -> tuple[int, ...]:
        """What a window covers from its first to its last point."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def pads(self, call: Call, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Pads before and after each axis of an input of these sizes."""
        n = len(self.kernel)
        how = call.attribute("auto_pad", "NOTSET")
        if how in ("SAME_UPPER", "SAME_LOWER"):
            total = [
                max((-(-size // stride) - 1) * stride + extent - size, 0)
                for size, stride, extent in zip(sizes, self.strides, self.extents, strict=True)
            ]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            return (less, more) if how == "SAME_UPPER" else (more, less)
        given = [0] * 2 * n if how == "VALID" else call.attribute("pads", [0] * 2 * n)
        return list(given[:n]), list(given[n:])


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """The last axes of a tensor, padded (cut off where negative)."""
    if not any(before) and not any(after):
        return x
    pairs = [p for pair in reversed(list(zip(before, after, strict=True))) for p in pair]
    return functional.pad(x, pairs, value=value)
