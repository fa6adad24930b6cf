"""One block's weights, fitted together by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from onnxdecomp.training.rates import schedule
from onnxdecomp.training.refinement.steps import Steps
from onnxdecomp.training.refinement.values import Passage
from onnxdecomp.training.roles import Role

Tensor: TypeAlias = torch.Tensor
Values: TypeAlias = Mapping[str, Tensor]


_LESS = 0.3
"""Share of the rates that is left where an epoch has ended above the beginning."""

_OBSERVED = 8
"""Examples that tell what weights multiply."""


@dataclass(frozen=True, eq=False)
class Example:
    """Some samples that run together.

    Attributes:
        given: What the block reads of them.
        wanted: What the original has at the block's end.
        hints: What it has inside the block: fitted to as well, but it does not decide.
        real: Which of these values are real, where others are padding; by name.
        weight: What it counts in a mean over examples.
        positions: Which rows of [batch x positions] are real, where others are padding.
    """

    given: Values
    wanted: Values
    hints: Values
    real: Mapping[str, Tensor]
    weight: int
    positions: Tensor | None = None

    def distance(self, made: Values, energy: Mapping[str, float]) -> Tensor:
        """Mean over the values that are wanted of E|made - wanted|² / E|wanted|²."""
        return self._mean(self.wanted, made, energy)

    def loss(self, made: Values, energy: Mapping[str, float]) -> Tensor:
        """The same, and as much of the hints."""
        found = self.distance(made, energy)
        return found + self._mean(self.hints, made, energy) if self.hints else found

    def _mean(self, wanted: Values, made: Values, energy: Mapping[str, float]) -> Tensor:
        terms = []
        for name, value in wanted.items():
            difference = made[name] - value
            if name in self.real:
                difference = difference[self.real[name]]
            terms.append(difference.square().mean() / energy[name])
        return torch.stack(terms).mean()


@dataclass(frozen=True)
class Descent:
    """How a block is refined.

    Attributes:
        epochs: Passes over the examples.
        rate: As in onnxdecomp.training.settings.
        warmup: Share of the steps in which the rate rises.
        seed: Of the order of examples.
    """

    epochs: int
    rate: float
    warmup: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """The loss on the examples held out, before and at the best epoch (0: the first numbers are best)."""

    before: float
    after: float
    epoch: int


def energy_of(examples: Sequence[Example]) -> dict[str, float]:
    """The mean square of each value."""
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for example in examples:
        for name, value in {**example.hints, **example.wanted}.items():
            shown = value[example.real[name]] if name in example.real else value
            totals[name] = totals.get(name, 0.0) + float(shown.double().square().sum())
            counts[name] = counts.get(name, 0) + shown.numel()
    return {name: max(total / max(counts[name], 1), 1e-20) for name, total in totals.items()}


def descend(
    passage: Passage,
    roles: Sequence[Role],
    train: Sequence[Example],
    held_out: Sequence[Example],
    how: Descent,
    step: Callable[[], None],
) -> Outcome:
    """Fit the weights of these roles; afterwards they are those that were best on what is held out.

    Args:
        passage: The block.
        roles: Its weights.
        train, held_out: Examples.
        how: Rates and epochs.
        step: Called after every example.
    """
    parameters = passage.network.parameters
    energy = energy_of(train)
    optimizer = Steps(passage, roles, [(one.given, one.positions) for one in train[:_OBSERVED]], how.rate)
    before = best = _judged(passage, held_out, energy)
    kept = _copies(parameters, roles)
    epoch = 0
    steps, done = how.epochs * len(train), 0
    for number in range(1, how.epochs + 1):
        for index in np.random.default_rng((how.seed, number)).permutation(len(train)):
            example = train[index]
            optimizer.clear()
            loss = example.loss(passage(example.given), energy)
            if math.isfinite(float(loss.detach())):
                loss.backward()
                optimizer.step(schedule(done, steps, how.warmup))
            done += 1
            step()
        optimizer.clear()
        judged = _judged(passage, held_out, energy)
        if judged < best:
            best, epoch, kept = judged, number, _copies(parameters, roles)
        elif judged > before:  # the steps were too large
            _put(parameters, kept)
            optimizer.again(_LESS)
    _put(parameters, kept)
    return Outcome(before, best, epoch)


def _put(parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in kept.items():
            parameters[name].copy_(tensor)


def _judged(passage: Passage, examples: Sequence[Example], energy: Mapping[str, float]) -> float:
    whole = sum(example.weight for example in examples)
    with torch.no_grad():
        terms = [float(one.distance(passage(one.given), energy)) * one.weight for one in examples]
    return sum(terms) / whole


def _copies(parameters: Mapping[str, Tensor], roles: Sequence[Role]) -> dict[str, Tensor]:
    return {role.name: parameters[role.name].detach().clone() for role in roles}
