"""Learning rates: each tensor's own, so that factors of any size and number move alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch

from onnxdecomp.training.roles import Role

Tensor: TypeAlias = torch.Tensor

_LEAST = 1e-3
"""Root mean square that a tensor counts as at least: a bias may begin at zero."""


def rates(parameters: Mapping[str, Tensor], roles: Iterable[Role], rate: float) -> dict[str, float]:
    """How far a step moves the numbers of each tensor, by name.

    Adam moves every number by about the rate, whatever its gradient. In a chain of k factors a step of one
    size for all changes a small factor by more than itself, and what the chain makes by the product of such
    changes; that is why CP and deep trains diverge at rates that suit dense layers (Novikov et al. 2015 and
    Lebedev et al. 2015 train with rates of 1e-3 to 1e-5). So a tensor's rate is `rate` times its root mean
    square, as Adafactor has it (Shazeer and Stern 2018), and divided by the square root of the number of
    factors in its layer: the composed weight then moves by the same share whatever the chain's length.
    """
    roles = tuple(roles)
    counts: dict[str, int] = {}
    for role in roles:
        if role.kind == "factor":
            counts[role.layer] = counts.get(role.layer, 0) + 1
    found = {}
    for role in roles:
        size = max(float(parameters[role.name].detach().square().mean().sqrt()), _LEAST)
        share = math.sqrt(counts[role.layer]) if role.kind == "factor" else 1.0
        found[role.name] = rate * size / share
    return found


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the largest rate at a step: a rise, then half a cosine (Loshchilov and Hutter 2017)."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
