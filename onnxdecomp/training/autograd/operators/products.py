"""Products of matrices."""

from __future__ import annotations

import torch

from onnxdecomp.training.autograd.call import Call, Table, Tensor


def gemm(call: Call) -> Tensor:
    """Gemm: alpha A' B' + beta C."""
    a = call.x.T if call.attribute("transA", 0) else call.x
    b = call[1].T if call.attribute("transB", 0) else call[1]
    c, alpha, beta = call.get(2), call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    y = a @ b if alpha == 1 else alpha * (a @ b)
    return y if c is None else y + (c if beta == 1 else beta * c)


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.attribute("equation"), *call.tensors())


TABLE: Table = {
    "Einsum": _einsum,
    "Gemm": gemm,
    "MatMul": lambda call: torch.matmul(call[0], call[1]),
}
