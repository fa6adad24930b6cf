"""What is made small: the distance to the teacher, the labels' cross-entropy, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch.nn import functional

from onnxdecomp.data.callables import guarded, imported
from onnxdecomp.errors import UsageError
from onnxdecomp.training.images import blends
from onnxdecomp.training.settings import Settings

Tensor: TypeAlias = torch.Tensor
Values: TypeAlias = Mapping[str, Tensor]

Loss = Callable[[Values, "Values | None", "Tensor | None"], Tensor]
"""From the student's outputs, the teacher's, and the class indices [rows] to a number."""


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss, and what it needs.

    Attributes:
        loss: The function.
        teacher: Whether it needs the teacher's outputs.
        labels: Whether it needs labels.
        text: What it is, for the record.
        hints: Values inside the network that are compared too, by name.
    """

    loss: Loss
    teacher: bool
    labels: bool
    text: str
    hints: tuple[str, ...] = ()


def objective(
    settings: Settings,
    model: ir.Model,
    *,
    teacher: bool,
    labels: bool,
    energy: Values | None,
    hints: tuple[str, ...] = (),
) -> Objective:
    """The objective that the settings ask for.

    Args:
        settings: The settings.
        model: The model to train.
        teacher, labels: Whether there is a teacher, and whether the data have labels.
        energy: The mean square of each of the teacher's values, which relative errors are divided by.
        hints: Names of values inside both networks.

    Raises:
        UsageError: It needs what there is not.
    """
    kind = settings.objective
    if ":" in kind:
        return Objective(_users(kind), teacher, labels, kind)
    if kind == "auto" and not (teacher or labels):
        raise UsageError("nothing says what is wanted: give the original with --teacher, or data with labels")
    if kind == "auto":
        kind = "both" if teacher and labels else "distill" if teacher else "labels"
    if kind in ("distill", "both") and not teacher:
        raise UsageError("distillation needs the original: give it with --teacher")
    if kind in ("labels", "both") and not labels:
        raise UsageError(f"objective {kind} needs data with labels")
    if kind in ("labels", "both") and blends(settings.augmentations):
        raise UsageError("augment mix and cut make images of no class: they need objective distill")
    if kind == "distill" and settings.hints == 0:
        hints = ()
    scores = _scores(model)
    how = settings.loss
    if how == "auto":
        how = "kl" if scores is not None and (labels or scores[1]) else "relative"
    if (how == "kl" or kind != "distill") and scores is None:
        raise UsageError(
            "no output is a row of scores [N, classes]: use objective distill with loss relative"
        )
    share = {"distill": 0.0, "both": settings.labels_weight, "labels": 1.0}[kind]

    def loss(student: Values, taught: Values | None, classes: Tensor | None) -> Tensor:
        terms: list[Tensor] = []
        if share < 1:
            assert taught is not None
            if how == "kl":
                assert scores is not None
                terms.append((1 - share) * _kl(student, taught, scores, settings.temperature))
            else:
                terms.append((1 - share) * _relative(student, taught, energy or {}, model_outputs))
            if settings.hints and hints:
                terms.append(settings.hints * _relative(student, taught, energy or {}, hints))
        if share:
            assert scores is not None
            assert classes is not None
            terms.append(share * functional.cross_entropy(_logits(student[scores[0]], scores[1]), classes))
        return sum(terms[1:], start=terms[0])

    model_outputs = tuple(str(value.name) for value in model.graph.outputs)
    compared = f"{how} to the teacher" + (f" at temperature {settings.temperature:g}" if how == "kl" else "")
    parts = [compared] * (share < 1) + ["cross-entropy of the labels"] * (share > 0)
    text = " and ".join(parts) + (", layers' outputs too" if settings.hints and hints and share < 1 else "")
    return Objective(loss, share < 1, share > 0, text, hints if share < 1 and settings.hints else ())


def scored_output(model: ir.Model) -> str | None:
    """The output whose rows are scores of classes, if there is one."""
    found = _scores(model)
    return None if found is None else found[0]


def _scores(model: ir.Model) -> tuple[str, bool] | None:
    """The first output that is a row of numbers per sample, and whether a Softmax made them probabilities."""
    for value in model.graph.outputs:
        if value.shape is None or len(value.shape) == 2:
            producer = value.producer()
            return str(value.name), producer is not None and producer.op_type == "Softmax"
    return None


def _logits(scores: Tensor, probabilities: bool) -> Tensor:
    scores = scores.reshape(scores.shape[0], -1)
    return torch.log(scores.clamp_min(1e-12)) if probabilities else scores


def _kl(student: Values, teacher: Values, scores: tuple[str, bool], temperature: float) -> Tensor:
    """Divergence of the softened scores, times the temperature's square (Hinton et al. 2015)."""
    name, probabilities = scores
    ours = functional.log_softmax(_logits(student[name], probabilities) / temperature, -1)
    theirs = functional.log_softmax(_logits(teacher[name], probabilities) / temperature, -1)
    divergence = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def _relative(student: Values, teacher: Values, energy: Values, names: tuple[str, ...]) -> Tensor:
    """Mean over the values of E|student - teacher|² / E|teacher|²."""
    terms = [
        (student[name] - teacher[name]).square().mean() / energy[name]
        for name in names
        if student[name].is_floating_point()
    ]
    return torch.stack(terms).mean()


def _users(name: str) -> Loss:
    """A function of the user's, which may import its neighbours while it is looked up."""
    with imported(name) as function:
        pass

    def loss(student: Values, teacher: Values | None, labels: Tensor | None) -> Tensor:
        with guarded(name):
            value = function(student, teacher, labels)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise UsageError(f"{name} must give a tensor with one number, not {type(value).__name__}")
        return value.reshape(())

    return loss
