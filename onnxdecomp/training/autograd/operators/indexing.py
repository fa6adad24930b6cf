"""Operators that pick or place numbers by index."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxdecomp.training.autograd.call import Call, Table, Tensor


def _gather(call: Call) -> Tensor:
    axis = call.attribute("axis", 0) % call.x.ndim
    index = _positive(call[1], call.x.shape[axis]).to(call.x.device)
    picked = call.x.index_select(axis, index.reshape(-1))
    return picked.reshape((*call.x.shape[:axis], *index.shape, *call.x.shape[axis + 1 :]))


def _positive(index: Tensor, size: int) -> Tensor:
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def _gather_elements(call: Call) -> Tensor:
    axis = call.attribute("axis", 0)
    return torch.gather(call.x, axis, _positive(call[1], call.x.shape[axis]))


def _gather_nd(call: Call) -> Tensor:
    if call.attribute("batch_dims", 0):
        raise call.refuse("it has batch_dims")
    index = call[1].to(torch.int64)
    return call.x[tuple(index.movedim(-1, 0))]


def _scatter_nd(call: Call) -> Tensor:
    where = tuple(call[1].to(torch.int64).movedim(-1, 0))
    how = call.attribute("reduction", "none")
    if how not in ("none", "add"):
        raise call.refuse(f"its reduction is {how}")
    return call.x.clone().index_put(where, call[2], accumulate=how == "add")


def _scatter_elements(call: Call) -> Tensor:
    axis = call.attribute("axis", 0)
    index = _positive(call[1], call.x.shape[axis])
    how = call.attribute("reduction", "none")
    if how == "none":
        return call.x.scatter(axis, index, call[2])
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return call.x.scatter_reduce(axis, index, call[2], names[how])


def _one_hot(call: Call) -> Tensor:
    depth, (off, on) = int(call[1]), call[2]
    index = _positive(call.x, depth)
    # What is out of range has a row of "off".
    hot = functional.one_hot(index.clamp(0, depth), depth + 1)[..., :depth].bool()
    axis = call.attribute("axis", -1)
    return torch.where(hot, on, off).movedim(-1, axis)


def _top_k(call: Call) -> tuple[Tensor, Tensor]:
    k = (call.numbers("k", 1) or [1])[0]
    found = torch.topk(call.x, k, call.attribute("axis", -1), bool(call.attribute("largest", 1)), sorted=True)
    return found.values, found.indices


TABLE: Table = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": lambda call: torch.nonzero(call.x).T,
    "OneHot": _one_hot,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}
