"""The goal where none is named: what the outputs seem to be for decides what they may lose.

A relative error of 0.05 is little for a classifier and very much to ask of a sentence encoder, which
finds what it found at five times of that (bench/results/default_goals.md). Of a denoiser, whose output is
its input with a correction, it is a large part of what the network does: there it is one of the correction.
Of a detector's outputs all but a few of some thousand places say that there is nothing: at 0.05 one face of
ten was left (bench/results/faces.md). Else only a model with one output of floating-point numbers is taken
for something, and where that is not clear it is the error of the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxdecomp.core.names import some
from onnxdecomp.runtime.metrics import are_classes
from onnxdecomp.runtime.session import open_session, outputs_of, run
from onnxdecomp.search.plan_options import DEFAULT_TARGET

if TYPE_CHECKING:
    from onnxdecomp.core.layer import Array
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask
    from onnxdecomp.runtime.session import Feed
    from onnxdecomp.workflow.config import CompressConfig

_ERROR = 0.05
"""What a correction may be off by, over its norm, as outputs may where nothing else is known."""

_FEWEST = 32
"""Calibration inputs from which on a metric on a quarter of them says enough."""

_LOOKED_AT = 4
"""Of them, those on which the outputs are looked at."""

_VOCABULARY = 4096
"""Features of a position from which on they are taken for scores of words."""

_FEATURES = 16
"""The fewest of an embedding."""

_CORRECTION = 0.5
"""The share of the output that a network may change of its input for that to be called a correction."""

_PLACES, _EACH = 100, 256
"""The fewest places of a detector, and the most numbers of each: scores of classes, a box."""

_MANY, _LEAST = 1000, 5
"""The same of one output that says all of each place: a box and at least one score."""

_OF_PLACES = 0.01
"""What outputs of many places may be off by."""

EMBEDDINGS, SCORES = "metric>=0.95", "metric<=0.02"
"""What is reached of `spearman` and of `kl`."""

_ADVICE = "; --metric and --target say something else, --target error=0.05 goes by the numbers alone"
_OF_SCORES = f"the fastest whose softmax diverges from the original's by at most 0.02 nats{_ADVICE}"
_ORDER = "similarities are ordered as by the original's, to a rank correlation of 0.95"
_OF_EMBEDDINGS = f"the fastest whose cosine {_ORDER}{_ADVICE}"
_OF_POSITIONS = f"the fastest with means over the real ones whose cosine {_ORDER}{_ADVICE}"

_SCORES = re.compile(r"logit|score|prob|softmax|class|label", re.IGNORECASE)
_EMBEDDINGS = re.compile(r"hidden|embed|pool|feature", re.IGNORECASE)


@dataclass(frozen=True)
class Goal:
    """A goal that nobody has named.

    Attributes:
        metric, target: As the options say them; no metric where the numbers themselves are compared.
        note: What was assumed, for people.
    """

    metric: str | None
    target: str
    note: str


def default_goal(
    config: CompressConfig, model: Path, calib: Feeds | None, given: Feeds | None, mask: Mask | None
) -> Goal | None:
    """A goal for what the model's output seems to be; None where one is named, or nothing is clear.

    Args:
        config: What is asked for.
        model: The file that came in.
        calib: Inputs to fit to, or None.
        given: Inputs to verify with, or None.
        mask: Which positions are real.

    Raises:
        ModelError: The model fails on an input.
    """
    unnamed = config.sought is not None and not config.target and config.max_error is None
    if not unnamed or config.metric is not None or not config.verify or calib is None:
        return None
    session = open_session(model, low_memory=True)
    names = [spec.name for spec in outputs_of(session)]
    floats = [spec.name for spec in outputs_of(session) if spec.is_float]
    if not floats:
        return None
    outputs: list[Array] = []
    masked, changed = False, list[float]()
    for feed in islice(calib, _LOOKED_AT):
        found = dict(zip(names, run(session, feed), strict=True))
        if not outputs:
            places = goal_of_places({name: np.asarray(found[name]) for name in floats}, feed)
            if places is not None or len(floats) > 1:
                return places
        outputs.append(np.asarray(found[floats[0]], np.float64))
        changed.append(_changed(feed, outputs[-1]))
        masks = [feed[spec.name].shape for spec in mask.inputs] if mask is not None else []
        masked = masked or any(outputs[-1].shape[:2] == (shape[0], shape[-1]) for shape in masks)
    if changed and max(changed) < _CORRECTION:
        return _of_correction(floats[0], float(np.mean(changed)))
    if len(calib) < _FEWEST:
        return None
    return goal_of(floats[0], outputs, masked=masked, labels=_classes(given, calib))


def said_of_unnamed(config: CompressConfig) -> tuple[str, ...]:
    """What is sought where neither the user nor the outputs say what they may lose."""
    if config.sought != DEFAULT_TARGET or config.target or config.max_error is not None:
        return ()
    what = "the fastest whose outputs are off by at most 0.05 of their norm"
    return (f"no goal was named: {what}, as by --target {DEFAULT_TARGET}; --target and --metric say others",)


def _changed(feed: Feed, output: Array) -> float:
    """How far an output is from the input of its shape that is nearest to it, over its own norm."""
    alike = (array for array in feed.values() if array.shape == output.shape and array.dtype.kind == "f")
    norm = float(np.linalg.norm(output)) or 1.0
    return min((float(np.linalg.norm(output - array)) / norm for array in alike), default=np.inf)


def _of_correction(name: str, changed: float) -> Goal | None:
    """The goal for an output that is its input but for so much."""
    if not changed > 0:
        return None
    target = f"error={_ERROR * changed:.2g}"
    note = (
        f"the output {name!r} is the input with a correction of {changed:.2g} of its norm, as a denoiser's: "
        f"the fastest whose correction is off by at most {_ERROR:g}, {target}{_ADVICE}"
    )
    return Goal(None, target, note)


def goal_of(name: str, outputs: Sequence[Array], *, masked: bool, labels: Array | None = None) -> Goal | None:
    """The goal for an output of this name, by some of its values; None where it is not clear what it is.

    Args:
        name: Of the output.
        outputs: For some inputs, [samples, …].
        masked: A mask says which of the positions along its second axis are real.
        labels: Class indices that the data have, or None.
    """
    shape = outputs[0].shape
    size = shape[-1] if len(shape) > 1 else 1
    if len(shape) not in (2, 3) or size < 2:
        return None
    rows = np.concatenate(
        [output.reshape(-1, output.shape[-1]) for output in outputs if output.shape[-1] == size]
    )
    if not np.isfinite(rows).all():
        return None
    shares = bool(rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-2))
    classes = labels is not None and labels.max(initial=0) < size and len(shape) == 2
    if shares or classes or _SCORES.search(name) or (masked and size >= _VOCABULARY):
        what = "probabilities" if shares else "scores"
        return Goal("kl", SCORES, f"the output {name!r} is taken for {what} of {size} classes: {_OF_SCORES}")
    unit = len(shape) == 2 and bool(np.allclose((rows**2).sum(1), 1, atol=1e-2))
    if len(shape) == 3 and masked:
        where = f"embeddings of {size} features at each position: {_OF_POSITIONS}"
        return Goal("spearman", EMBEDDINGS, f"the output {name!r} is taken for {where}")
    if len(shape) == 2 and size >= _FEATURES and (unit or _EMBEDDINGS.search(name)):
        where = f"embeddings of {size} features: {_OF_EMBEDDINGS}"
        return Goal("spearman", EMBEDDINGS, f"the output {name!r} is taken for {where}")
    return None


def goal_of_places(outputs: Mapping[str, Array], feed: Feed) -> Goal | None:
    """The goal where outputs say something of each of many places, [samples, places, numbers].

    One of a picture may say all of very many, also the other way round.

    Args:
        outputs: Those of floating-point numbers, for one input.
        feed: That input: places that are its own are positions of a sequence, and none of a picture.
    """
    own = {size for array in feed.values() for size in array.shape}
    found: dict[int, list[str]] = {}
    for name, output in outputs.items():
        shape = output.shape
        if len(shape) == 3 and shape[1] >= _PLACES and shape[1] not in own and shape[2] <= _EACH:
            found.setdefault(shape[1], []).append(name)
    places, names = max(found.items(), key=lambda entry: len(entry[1]), default=(0, []))
    if len(names) < 2:
        places, names = _all_in_one(outputs, feed)
    if not names:
        return None
    told = f"outputs {some(list(map(repr, names)))} are" if names[1:] else f"output {names[0]!r} is"
    note = (
        f"the {told} taken for a detector's, of {places} places: "
        f"the fastest whose outputs are off by at most {_OF_PLACES:g}, since little of their norm is what is "
        f"found; a metric that counts what is found says more{_ADVICE}"
    )
    return Goal(None, f"error={_OF_PLACES:g}", note)


def _all_in_one(outputs: Mapping[str, Array], feed: Feed) -> tuple[int, list[str]]:
    """The places of a picture of which one output says everything, and its name; none where there is none."""
    if not any(array.ndim == 4 for array in feed.values()):
        return 0, []
    for name, output in outputs.items():
        if output.ndim == 3:
            each, places = sorted(output.shape[1:])
            if places >= _MANY and _LEAST <= each <= _EACH:
                return places, [name]
    return 0, []


def _classes(given: Feeds | None, calib: Feeds) -> Array | None:
    """Class indices that stand at the data, or None."""
    found = [feeds.labels for feeds in (given, calib) if feeds is not None and feeds.labels is not None]
    return next((labels for labels in found if are_classes(labels)), None)
