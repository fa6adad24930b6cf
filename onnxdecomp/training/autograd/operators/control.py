"""Branches and loops."""

from __future__ import annotations

import torch

from onnxdecomp.training.autograd.call import Call, Table, Tensor


def _if(call: Call) -> tuple[Tensor, ...]:
    branch = "then_branch" if bool(call.x) else "else_branch"
    return call.enter(call.attribute(branch), ())


def _loop(call: Call) -> tuple[Tensor, ...]:
    limit, going = call.get(0), call.get(1)
    body = call.attribute("body")
    state = call.tensors()[sum(value is not None for value in (limit, going)) :]
    seen: list[tuple[Tensor, ...]] = []
    running = going is None or bool(going)
    while running and (limit is None or len(seen) < int(limit)):
        condition, *values = call.enter(body, (torch.tensor(len(seen)), torch.tensor(running), *state))
        running, state = bool(condition), tuple(values[: len(state)])
        seen.append(tuple(values[len(state) :]))
    stacked = [torch.stack(values) for values in zip(*seen, strict=True)]
    if len(stacked) + len(state) < len(call.node.outputs):
        raise call.refuse("it makes no turn, so that the shape of what it scans is not known")
    return *state, *stacked


TABLE: Table = {"If": _if, "Loop": _loop}
