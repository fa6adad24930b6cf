"""Operators that move numbers without changing them, and those that compute shapes."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor

_PADDING = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _reshape(call: Call) -> Tensor:
    wanted = call.numbers("shape", 1) or []
    if not call.attribute("allowzero", 0):
        wanted = [call.x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return call.x.reshape(wanted)


def _transpose(call: Call) -> Tensor:
    return call.x.permute(call.attribute("perm", list(reversed(range(call.x.ndim)))))


def _flatten(call: Call) -> Tensor:
    axis = call.attribute("axis", 1)
    axis = axis + call.x.ndim if axis < 0 else axis
    rows = 1
    for size in call.x.shape[:axis]:
        rows *= size
    return call.x.reshape(rows, -1)


def _squeeze(call: Call) -> Tensor:
    axes = call.numbers("axes", 1)
    return call.x.squeeze() if axes is None else call.x.squeeze(axes)


def _unsqueeze(call: Call) -> Tensor:
    axes = call.numbers("axes", 1) or []
    x = call.x
    for axis in sorted(axis % (call.x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(call: Call) -> tuple[Tensor, ...]:
    axis = call.attribute("axis", 0)
    sizes = call.numbers("split", 1)
    if sizes is None:
        parts = call.attribute("num_outputs", len(call.node.outputs))
        total = call.x.shape[axis]
        each = -(-total // parts)
        sizes = [min(each, total - each * part) for part in range(parts)]
    return tuple(torch.split(call.x, sizes, axis))


def _slice(call: Call) -> Tensor:
    x = call.x
    starts, ends = call.numbers("starts", 1) or [], call.numbers("ends", 2) or []
    axes = call.numbers("axes", 3)
    steps = call.numbers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
            continue
        at = torch.tensor(list(range(*slice(start, end, step).indices(x.shape[axis]))), dtype=torch.int64)
        x = x.index_select(axis, at.to(x.device))
    return x


def _shape(call: Call) -> Tensor:
    sizes = list(call.x.shape)[call.attribute("start", 0) : call.attribute("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _expand(call: Call) -> Tensor:
    wanted = call.numbers("", 1) or []
    shape = torch.broadcast_shapes(call.x.shape, tuple(wanted))
    return call.x.expand(shape)


def _constant_of_shape(call: Call) -> Tensor:
    given = call.node.attributes.get("value")
    value = torch.zeros(1) if given is None else torch.from_numpy(given.as_tensor().numpy().copy())
    return value.reshape(()).expand(call.numbers("", 0) or []).clone()


def _range(call: Call) -> Tensor:
    return torch.arange(call[0].item(), call[1].item(), call[2].item(), dtype=call[0].dtype)


def _tile(call: Call) -> Tensor:
    return call.x.repeat(call.numbers("", 1) or [])


def _pad(call: Call) -> Tensor:
    given = call.numbers("pads", 1) or call.numbers("paddings", 1) or []
    n, x = len(given) // 2, call.x
    axes = call.numbers("", 3) or list(range(n))
    pads = [(0, 0)] * x.ndim
    for axis, before, after in zip(axes, given[:n], given[n:], strict=True):
        pads[axis] = before, after
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        fill = call.get(2)
        value = call.attribute("value", 0.0) if fill is None else fill.item()
        return functional.pad(x, [p for pair in reversed(pads) for p in pair], value=value)
    for axis, (before, after) in enumerate(pads):
        x = _border(x, axis, before, after, _PADDING[mode])
    return x


def _border(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """One axis padded with numbers of its own, or cut."""
    cut = x.narrow(axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
    before, after = max(before, 0), max(after, 0)
    if before == after == 0:
        return cut
    rows = cut.movedim(axis, -1)
    flat = rows.reshape(1, -1, rows.shape[-1])
    padded = functional.pad(flat, (before, after), mode=mode)
    return padded.reshape(*rows.shape[:-1], -1).movedim(-1, axis)


def _crop(call: Call) -> Tensor:
    left, top, right, bottom = call.attribute("border")
    scale = call.attribute("scale")
    height, width = scale or (call.x.shape[2] - top - bottom, call.x.shape[3] - left - right)
    return call.x[:, :, top : top + height, left : left + width]


def _depth_to_space(call: Call) -> Tensor:
    n, c, h, w = call.x.shape
    b = call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        x = call.x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        x = call.x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(call: Call) -> Tensor:
    n, c, h, w = call.x.shape
    b = call.attribute("blocksize")
    x = call.x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)


def _trilu(call: Call) -> Tensor:
    shift = call.get(1)
    cut = torch.triu if call.attribute("upper", 1) else torch.tril
    return cut(call.x, 0 if shift is None else int(shift))


TABLE: Table = {
    "Concat": lambda call: torch.cat(call.tensors(), call.attribute("axis", 1)),
    "ConstantOfShape": _constant_of_shape,
    "Crop": _crop,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda call: torch.tensor(call.x.numel()),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
