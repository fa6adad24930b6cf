"""The training loop: steps, epochs, what is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import ModelError
from onnxdecomp.training import checkpoint
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.autograd.tensors import as_tensor, as_tensors
from onnxdecomp.training.composed import Composed
from onnxdecomp.training.objective import Objective, Values
from onnxdecomp.training.optimizer import Optimizer
from onnxdecomp.training.padding import real
from onnxdecomp.training.rates import rates, schedule
from onnxdecomp.training.roles import Role
from onnxdecomp.training.samples import Batch, Samples
from onnxdecomp.training.settings import Settings
from onnxdecomp.training.teaching import HELD_OUT, Teaching, in_bfloat16
from onnxdecomp.training.views import View, drawn, shown

Tensor: TypeAlias = torch.Tensor

Report = Callable[[str, int, int], None]
"""Progress: (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the data; number 0 is what came in.

    Attributes:
        number: From 1.
        train: The objective's mean over the steps; None before the first.
        held_out: That on the held-out samples.
        accuracy: Top-1 accuracy there, or None without labels.
        train_accuracy: That on the samples of the steps, as they were drawn and augmented.
        seconds: How long it took, the held-out samples included.
    """

    number: int
    train: float | None
    held_out: float
    accuracy: float | None
    train_accuracy: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of it.

    Attributes:
        history: Every epoch, number 0 first.
        best: The number of the epoch whose weights are kept.
        weights: They, by name.
    """

    history: tuple[Epoch, ...]
    best: int
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Course:
    """All that a run works with.

    Attributes:
        student, teacher: The networks; the teacher may be None.
        roles: What is trained.
        objective, settings: What is asked for.
        train, held_out: The samples.
        layers: Rewritten layers, for the decay of their composed weights.
        scores: The output whose rows are classes, or None.
        mask: Which positions are padding.
        relative: Whether rates are relative to the tensors' sizes; False for comparisons only.
    """

    student: Network
    teacher: Network | None
    roles: Sequence[Role]
    objective: Objective
    settings: Settings
    train: Samples
    held_out: Samples
    layers: Sequence[Composed] = ()
    scores: str | None = None
    relative: bool = True
    mask: Mask | None = None

    def loss(
        self, feed: Mapping[str, Tensor], values: Values, taught: Values | None, classes: Tensor | None
    ) -> Tensor:
        """The objective of what the student makes of a feed, padding left out."""
        whole = () if self.scores is None else (self.scores,)
        values = real(self.mask, feed, values, whole)
        taught = None if taught is None else real(self.mask, feed, taught, whole)
        return self.objective.loss(values, taught, classes)


def fit(course: Course, *, report: Report, path: Path | None = None, mark: str = "") -> Trained:
    """Train the student's parameters in place.

    Args:
        course: What to work with.
        report: Told of every step.
        path, mark: Where a checkpoint is written after every epoch, and what it is recognised by.

    Raises:
        ModelError: The loss of what came in is not finite.
    """
    run = _Run(course)
    state = None if path is None else checkpoint.read(path, mark)
    if state is not None:
        run.load(state)
    else:
        run.history.append(run.judge(0))
        if not math.isfinite(run.history[0].held_out):
            raise ModelError("the loss of the model that came in is not finite: there is nothing to go on")
        run.keep()
    settings = course.settings
    for number in range(len(run.history), settings.epochs + 1):
        if settings.patience and number - 1 - run.best >= settings.patience:
            break
        began = time.perf_counter()
        train, train_accuracy = run.epoch(number, report)
        judged = run.judge(number)
        run.history.append(
            replace(
                judged,
                train=train,
                train_accuracy=train_accuracy,
                seconds=time.perf_counter() - began,
            )
        )
        if run.better():
            run.keep()
        if path is not None:
            checkpoint.write(path, run.state(), mark)
    return Trained(tuple(run.history), run.best, run.kept)


class _Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(self, course: Course) -> None:
        self.course = course
        settings = course.settings
        parameters = course.student.parameters
        largest = rates(parameters, course.roles, settings.rate)
        if not course.relative:
            largest = dict.fromkeys(largest, settings.rate)
        self.optimizer = Optimizer(settings.optimizer, parameters, course.roles, largest)
        self.steps = settings.epochs * math.ceil(len(course.train) / settings.batch)
        self.history: list[Epoch] = []
        self.best = 0
        self.kept: dict[str, Tensor] = {}
        self.step = 0
        needed = course.teacher is not None and course.objective.teacher
        self.teaching = Teaching(
            course.teacher if needed else None,
            course.objective.hints,
            mixed=settings.precision == "mixed",
            again=settings.views > 0 or not settings.augmentations,
        )

    def keep(self) -> None:
        """Remember the weights as they are."""
        self.best = self.history[-1].number
        self.kept = {name: t.detach().clone() for name, t in self.course.student.parameters.items()}

    def better(self) -> bool:
        """Whether the last epoch is better than the best, and no worse than what came in.

        Where labels are a part of what is wanted, the accuracy decides: a surer network has a larger loss on
        what it still gets wrong. Without, the loss does, for the accuracy on a few hundred samples is noise
        beside it; it must not fall all the same.
        """
        first, best, last = self.history[0], self.history[self.best], self.history[-1]
        if not math.isfinite(last.held_out):
            return False
        if last.accuracy is None or best.accuracy is None or first.accuracy is None:
            return last.held_out < best.held_out
        if self.course.objective.labels and ":" not in self.course.settings.objective:
            return (last.accuracy, -last.held_out) > (best.accuracy, -best.held_out)
        return last.accuracy >= first.accuracy and last.held_out < best.held_out

    def state(self) -> dict[str, Any]:
        """As a checkpoint has it: written at once, so nothing is copied."""
        return {
            "weights": {name: t.detach() for name, t in self.course.student.parameters.items()},
            "kept": self.kept,
            "optimizer": self.optimizer.state(),
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
            "step": self.step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        with torch.no_grad():
            for name, tensor in self.course.student.parameters.items():
                tensor.copy_(state["weights"][name])
        self.kept = {name: t.to(self.course.student.parameters[name]) for name, t in state["kept"].items()}
        self.optimizer.load(state["optimizer"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best, self.step = state["best"], state["step"]

    def epoch(self, number: int, report: Report) -> tuple[float, float | None]:
        """One pass over the training samples: the mean loss, and the accuracy on the way."""
        course, settings = self.course, self.course.settings
        order = np.random.default_rng((settings.seed, number)).permutation(len(course.train))
        noise = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        view = drawn(settings, number, len(course.train))
        total = right = seen = 0.0
        for start in range(0, len(order), settings.batch):
            rows = [int(row) for row in order[start : start + settings.batch]]
            self.optimizer.clear()
            loss, hits, labelled = self._backward(course.train.batch(rows), view, noise)
            if math.isfinite(loss):
                self.optimizer.step(schedule(self.step, self.steps, settings.warmup))
            total += loss * len(rows)
            right, seen = right + hits, seen + labelled
            self.step += 1
            report(self._told(number, total / (start + len(rows))), self.step, self.steps)
        return total / len(order), right / seen if seen else None

    def _backward(self, batch: Batch, view: View, noise: torch.Generator) -> tuple[float, int, int]:
        """Gradients of a batch: the loss, and how many labels of how many were met."""
        course, settings = self.course, self.course.settings
        names = (*course.student.outputs, *course.objective.hints)
        count = sum(map(len, batch.rows))
        total, hits, labelled = 0.0, 0, 0
        for feed, labels, rows in zip(batch.feeds, batch.labels, batch.rows, strict=True):
            seen = shown(course.train, feed, rows, view)
            taught = self.teaching.of(seen, view.number, rows)
            classes = None if labels is None else as_tensor(labels).to(course.student.device)
            values = in_bfloat16(course.student, seen, names, settings.precision == "mixed")
            loss = course.loss(seen, values, taught, classes) * (len(rows) / count)
            loss.backward()
            total += float(loss.detach())
            if not view.others:
                met, judged = self._hits(values, classes)
                hits, labelled = hits + met, labelled + judged
        if settings.decay:
            norms = [layer.response(course.student, noise) for layer in course.layers]
            penalty = settings.decay * torch.stack(norms).mean()
            penalty.backward()
            total += float(penalty.detach())
        return total, hits, labelled

    def judge(self, number: int) -> Epoch:
        """The held-out samples, as they are."""
        course = self.course
        total, hits, labelled = 0.0, 0, 0
        for seen, values, taught, classes, count in self._held_out():
            total += float(course.loss(seen, values, taught, classes)) * count
            met, judged = self._hits(values, classes)
            hits, labelled = hits + met, labelled + judged
        accuracy = hits / labelled if labelled else None
        return Epoch(number, None, total / len(course.held_out), accuracy, None, 0.0)

    def _held_out(
        self,
    ) -> Iterator[tuple[Values, Values, Values | None, Tensor | None, int]]:
        course = self.course
        names = (*course.student.outputs, *course.objective.hints)
        with torch.no_grad():
            for batch in course.held_out.passes():
                for feed, labels, rows in zip(batch.feeds, batch.labels, batch.rows, strict=True):
                    seen = as_tensors(feed)
                    taught = self.teaching.of(seen, HELD_OUT, rows)
                    classes = None if labels is None else as_tensor(labels).to(course.student.device)
                    yield seen, course.student(seen, names), taught, classes, len(rows)

    def _hits(self, values: Mapping[str, Tensor], classes: Tensor | None) -> tuple[int, int]:
        """How many labels are met, of how many."""
        if classes is None or self.course.scores is None:
            return 0, 0
        scores = values[self.course.scores]
        best = scores.reshape(scores.shape[0], -1).argmax(-1)
        return int((best == classes).sum()), len(classes)

    def _told(self, number: int, train: float) -> str:
        """What the progress bar says."""
        last = self.history[-1]
        shown = f"held out {last.held_out:.4g}"
        if last.accuracy is not None:
            shown += f", {last.accuracy:.1%}"
        return f"epoch {number} of {self.course.settings.epochs}, loss {train:.4g}, {shown}"
