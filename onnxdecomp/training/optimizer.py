"""The optimizer: Muon for what multiplies as a matrix, Adam for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from onnxdecomp.training.roles import Role

Tensor: TypeAlias = torch.Tensor

_RMS = 0.2
"""Root mean square of a step of torch's Muon at a rate of 1, where its rates are to match those of Adam."""


class Optimizer:
    """Steps of about a given size for each tensor.

    Muon (Jordan et al. 2024; as torch has it) takes a matrix' gradient with all its singular values made
    equal: a factor whose columns see inputs of very different sizes, as factors of a fitted chain do, moves
    in all directions alike. Adam (Kingma and Ba 2015) scales each number by itself.
    """

    def __init__(
        self, kind: str, parameters: Mapping[str, Tensor], roles: Sequence[Role], rates: Mapping[str, float]
    ) -> None:
        """Of a kind (as Settings has it), with the largest rate of each tensor."""
        matrices = [role.name for role in roles if kind == "muon" and role.matrix]
        others = [role.name for role in roles if role.name not in matrices]
        self._tensors = [parameters[name] for name in (*matrices, *others)]
        # Leaves of their own that share the tensors' memory: torch's Muon takes matrices only.
        self._matrices = [parameters[name].detach().view(len(parameters[name]), -1) for name in matrices]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            pairs = zip(matrices, self._matrices, strict=True)
            groups = [{"params": [matrix], "lr": rates[name] / _RMS} for name, matrix in pairs]
            self._parts.append(
                torch.optim.Muon(groups, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", momentum=0.95)
            )
        if others:
            groups = [{"params": [parameters[name]], "lr": rates[name]} for name in others]
            self._parts.append(torch.optim.Adam(groups, betas=(0.9, 0.99)))
        self._largest = [[float(group["lr"]) for group in part.param_groups] for part in self._parts]

    def clear(self) -> None:
        """Forget the gradients."""
        for tensor in self._tensors:
            tensor.grad = None

    def step(self, share: float) -> None:
        """One step, at a share of the largest rates."""
        for tensor, matrix in zip(self._tensors, self._matrices, strict=False):
            matrix.grad = None if tensor.grad is None else tensor.grad.reshape(matrix.shape)
        for part, largest in zip(self._parts, self._largest, strict=True):
            for group, rate in zip(part.param_groups, largest, strict=True):
                group["lr"] = rate * share
            part.step()

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [part.state_dict() for part in self._parts]

    def load(self, state: Iterable[dict[str, Any]]) -> None:
        """Go on from a checkpoint."""
        for part, of_part in zip(self._parts, state, strict=True):
            part.load_state_dict(of_part)
