"""From a model, its teacher and data to a trained model: everything that needs torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
import torch

from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate import preflight
from onnxdecomp.training import checkpoint
from onnxdecomp.training.agreement import check_agreement
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.autograd.tensors import as_tensors
from onnxdecomp.training.composed import composed
from onnxdecomp.training.device import torch_device
from onnxdecomp.training.loop import Course, Report, fit
from onnxdecomp.training.objective import Values, objective, scored_output
from onnxdecomp.training.padding import real
from onnxdecomp.training.roles import chosen, roles
from onnxdecomp.training.samples import Samples, split
from onnxdecomp.training.scratch import initialise
from onnxdecomp.training.settings import Settings
from onnxdecomp.training.store import store
from onnxdecomp.training.threads import torch_threads

Tensor: TypeAlias = torch.Tensor

_CHECKED = 4
"""Feeds on which torch and ONNX Runtime are compared."""


@dataclass(frozen=True)
class File:
    """A model and the file that it was read from."""

    model: ir.Model
    path: Path
    sha256: str = ""


def train(
    student: File,
    teacher: File | None,
    feeds: Feeds,
    settings: Settings,
    *,
    report: Report,
    device: str = "auto",
    threads: int | None = None,
    from_scratch: bool = False,
    path: Path | None = None,
    relative: bool = True,
) -> dict[str, Any]:
    """Train the student's initializers, in its model.

    Args:
        student: What is trained; only numbers of its initializers change.
        teacher: The original, or None where labels alone say what is wanted.
        feeds: Inputs, with or without labels.
        settings: How.
        report: Told of every step.
        device: "auto", or as torch names it.
        threads: Of torch; None is as torch has it.
        from_scratch: Begin from random numbers, in all weights and biases.
        path: The checkpoint's file.
        relative: As in Course.

    Returns:
        The record's `training`.

    Raises:
        ModelError, UsageError: See onnxdecomp.errors.
    """
    began = time.perf_counter()
    where = torch_device(device)
    found = roles(student.model)
    trained = chosen(found, ("all",) if from_scratch else settings.trained)
    mask = preflight.mask(student.path, settings.mask)
    training, held_out = split(feeds, settings.held_out, settings.seed)
    with torch_threads(threads):
        network = Network(student.model, [role.name for role in trained], device=where)
        apart = check_agreement(student.model, student.path, network, training.feeds[:_CHECKED], mask)
        taught = None if teacher is None else Network(teacher.model, device=where)
        if taught is not None and taught.outputs != network.outputs:
            theirs, ours = ", ".join(taught.outputs), ", ".join(network.outputs)
            raise UsageError(f"the teacher's outputs are {theirs}, the model's {ours}")
        first = _tensors(training)
        layers = composed(network, first) if from_scratch or settings.decay else ()
        hints = _hints(network, taught, first) if settings.hints and taught is not None else ()
        goal = objective(
            settings,
            student.model,
            teacher=taught is not None,
            labels=feeds.labels is not None,
            energy=None if taught is None else _energy(taught, training, hints, mask),
            hints=hints,
        )
        if from_scratch:
            initialise(network, found, layers, first, torch.Generator().manual_seed(settings.seed))
        course = Course(
            network,
            taught,
            trained,
            goal,
            settings,
            training,
            held_out,
            layers if settings.decay else (),
            scored_output(student.model),
            relative,
            mask,
        )
        mark = (
            ""
            if path is None
            else checkpoint.fingerprint(
                settings,
                student=student.sha256,
                teacher=teacher and teacher.sha256,
                data=checkpoint.digest((training, held_out)),
                from_scratch=from_scratch,
            )
        )
        result = fit(course, report=report, path=path, mark=mark)
    store(student.model, {**result.weights, **network.replaced})
    return {
        "settings": asdict(settings),
        "objective": goal.text,
        "from_scratch": from_scratch,
        "tensors": len(trained),
        "parameters": sum(int(network.parameters[role.name].numel()) for role in trained),
        "samples": {"train": len(training), "held_out": len(held_out), "labels": feeds.labels is not None},
        "device": where,
        "agreement": apart,
        "epochs": [asdict(epoch) for epoch in result.history],
        "best": result.best,
        "seconds": time.perf_counter() - began,
    }


def _tensors(samples: Samples) -> dict[str, Tensor]:
    """The first batch of the training samples."""
    batch = samples.batch(range(min(len(samples), 64)))
    return as_tensors(batch.feeds[0])


def _hints(network: Network, teacher: Network, feed: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The outputs of rewritten layers that have a counterpart in the teacher; cuts leave fewer units."""
    names = [layer.leaves for layer in composed(network, feed)]
    names = [name for name in names if teacher.knows(name)]
    with torch.no_grad():
        ours, theirs = network(feed, names), teacher(feed, names)
    return tuple(name for name in names if ours[name].shape == theirs[name].shape)


def _energy(teacher: Network, samples: Samples, hints: Sequence[str], mask: Mask | None) -> Values:
    """The mean square of the teacher's values, over some of the samples."""
    names = (*teacher.outputs, *hints)
    totals = dict.fromkeys(names, 0.0)
    counts = dict.fromkeys(names, 0)
    with torch.no_grad():
        for batch in islice(samples.passes(), 8):
            for feed in batch.feeds:
                for name, value in real(mask, as_tensors(feed), teacher(feed, names)).items():
                    totals[name] += float(value.double().square().sum())
                    counts[name] += value.numel()
    return {name: torch.tensor(max(totals[name] / max(counts[name], 1), 1e-20)) for name in names}
