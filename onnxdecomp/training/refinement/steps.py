"""Steps of the descent: Adam, for matrices in coordinates in which all that they multiply is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from onnxdecomp.training.rates import rates
from onnxdecomp.training.refinement.values import Passage
from onnxdecomp.training.roles import Role

Tensor: TypeAlias = torch.Tensor
Seen: TypeAlias = tuple[Mapping[str, Tensor], "Tensor | None"]

_DAMPING = 1e-2
"""What is added to the variance of every direction, as a share of the mean."""

_LARGEST = 2048
"""Inputs of a matrix whose coordinates are changed: it takes the cube of their number."""

_ROWS = 4096
"""Rows of a batch that moments are taken of."""


@dataclass(frozen=True, eq=False)
class _Whitened:
    """A weight as V = W L, where what it multiplies has the second moments L L'.

    Attributes:
        weight: The parameter.
        root, inverse: L and its inverse, [inputs, inputs].
        axis: Of the inputs in the weight.
        tensor: V, [outputs, inputs].
    """

    weight: Tensor
    root: Tensor
    inverse: Tensor
    axis: int
    tensor: Tensor

    @staticmethod
    def of(weight: Tensor, moments: Tensor, axis: int) -> _Whitened:
        eye = torch.eye(len(moments), dtype=torch.float64, device=moments.device)
        root = torch.linalg.cholesky(moments.double() + _DAMPING * moments.diagonal().mean() * eye)
        inverse = torch.linalg.solve_triangular(root, eye, upper=False)
        matrix = _matrix(weight.detach(), axis)
        return _Whitened(weight, root.float(), inverse.float(), axis, (matrix @ root.float()).contiguous())

    def take(self) -> None:
        """The gradient in these coordinates."""
        grad = self.weight.grad
        self.tensor.grad = None if grad is None else _matrix(grad, self.axis) @ self.inverse.T

    def read(self) -> None:
        """V of a weight that was put back to what it was."""
        with torch.no_grad():
            self.tensor.copy_(_matrix(self.weight.detach(), self.axis) @ self.root)

    def put(self) -> None:
        """The weight, after a step."""
        found = self.tensor.detach() @ self.inverse
        with torch.no_grad():
            self.weight.copy_((found.T if self.axis == 0 else found).reshape(self.weight.shape))


def _matrix(tensor: Tensor, axis: int) -> Tensor:
    """[outputs, inputs]."""
    return tensor.T if axis == 0 else tensor.reshape(len(tensor), -1)


class Steps:
    """Adam (Kingma and Ba 2015) whose rates are shares of the tensors' sizes.

    A layer's inputs vary thousands of times as much in some directions as in others. A step of one size for
    all numbers of its weight ruins the outputs by the large ones before the small ones have moved. In
    whitened coordinates, the input side of K-FAC (Martens and Grosse 2015), it changes outputs alike in all.
    """

    def __init__(
        self, passage: Passage, roles: Sequence[Role], examples: Sequence[Seen], rate: float
    ) -> None:
        """For the weights of these roles; the examples are what the block reads, and which rows are real."""
        parameters = passage.network.parameters
        self._tensors = [parameters[role.name] for role in roles]
        self._whitened = [
            _Whitened.of(parameters[name], moments, axis)
            for name, (moments, axis) in _moments(passage, {role.name for role in roles}, examples).items()
        ]
        groups = []
        own = {id(one.weight) for one in self._whitened}
        for one in self._whitened:
            size = float(one.tensor.square().mean().sqrt())
            groups.append({"params": [one.tensor], "lr": rate * max(size, 1e-12)})
        others = [role for role in roles if id(parameters[role.name]) not in own]
        for name, largest in rates(parameters, others, rate).items():
            groups.append({"params": [parameters[name]], "lr": largest})
        self._adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self._largest = [float(group["lr"]) for group in self._adam.param_groups]

    def again(self, share: float) -> None:
        """Go on from what the weights are by now, at a share of the rates."""
        for one in self._whitened:
            one.read()
        self._adam.state.clear()
        self._largest = [share * largest for largest in self._largest]

    def clear(self) -> None:
        """Forget the gradients."""
        for tensor in self._tensors:
            tensor.grad = None

    def step(self, share: float) -> None:
        """One step, at a share of the largest rates."""
        for one in self._whitened:
            one.take()
        for group, largest in zip(self._adam.param_groups, self._largest, strict=True):
            group["lr"] = largest * share
        self._adam.step()
        for one in self._whitened:
            one.put()


def _moments(passage: Passage, names: set[str], examples: Sequence[Seen]) -> dict[str, tuple[Tensor, int]]:
    """Second moments [inputs, inputs] of what weights multiply, and the axis of the inputs.

    Weights that several nodes read in different ways, and very large ones, are left out.
    """
    sums: dict[str, Tensor] = {}
    axes: dict[str, int] = {}
    counts: dict[str, int] = {}
    left: set[str] = set()
    with torch.no_grad():
        for given, real in examples:
            for name, rows, axis in passage.network.rows(passage.nodes, given):
                if name not in names or rows.shape[1] > _LARGEST or axes.setdefault(name, axis) != axis:
                    left.add(name)
                    continue
                shown = rows[real] if real is not None and len(real) == len(rows) else rows
                shown = shown[:: max(1, len(shown) // _ROWS)].float()
                sums[name] = sums.get(name, torch.zeros(())) + shown.T @ shown
                counts[name] = counts.get(name, 0) + len(shown)
    return {
        name: (moments / counts[name], axes[name])
        for name, moments in sums.items()
        if name not in left and bool(torch.isfinite(moments).all()) and float(moments.diagonal().mean()) > 0
    }
