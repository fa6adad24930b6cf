"""What a training run is asked for, as values that check themselves; needs no torch."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxdecomp.core.options import convert, describe, from_text, suggest
from onnxdecomp.errors import UsageError

OPTIMIZERS = ("muon", "adam")
PRECISIONS = ("single", "mixed")
TRAINED = ("factors", "biases", "all")
AUGMENTATIONS = ("flip", "crop", "warp", "light", "mix", "cut")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """How to train; every field is an option of the command line.

    Attributes:
        rate: The learning rate, relative: a step changes a tensor by about this share of its own root mean
            square (an optimizer's steps are of about 1 before they are scaled). Absolute rates suit factors
            of one size only, and make chains of many factors diverge.
        decay: Weight of the squared norm of what the factors of a layer make together, a row's mean.
    """

    epochs: int = _option(10, "Passes over the training part of the data.")
    rate: float = _option(3e-3, "Largest learning rate, as a share of a tensor's root mean square.")
    optimizer: str = _option("muon", "muon (for matrices; adam for the rest) or adam.")
    batch: int = _option(32, "Samples in a step.")
    train: str = _option("factors", "What is trained: factors, biases (with normalisation), all.")
    objective: str = _option(
        "auto",
        "distill (to be as the teacher), labels, both, or module:callable; auto: distill, and both where "
        "there is a teacher and the data have labels.",
    )
    loss: str = _option("auto", "How outputs are compared: kl (they are scores), relative, or auto.")
    temperature: float = _option(4.0, "Of the scores that kl compares.")
    labels_weight: float = _option(0.5, "Share of the labels' loss where the objective is both.")
    hints: float = _option(0.0, "Weight of the relative error of the rewritten layers' outputs.")
    held_out: float = _option(0.1, "Share of the data that decides which weights are kept.")
    mask: str = _option(
        "",
        "Inputs that are 0 where a position is padding, which no loss counts; none: no input is "
        "(default: attention_mask, input_mask and their like).",
    )
    patience: int = _option(0, "Stop after so many epochs without a better one; 0: never early.")
    warmup: float = _option(0.05, "Share of the steps in which the rate rises; then it falls as a cosine.")
    decay: float = _option(0.0, "Weight of the squared norm of the composed weights.")
    augment: str = _option(
        "",
        "Of images, joined by commas: flip (sideways), crop (after a border of an eighth), warp (scaled, "
        "turned, shifted), light (contrast, brightness); and mix (with another image) and cut (a window of "
        "another) of half of them, which need a teacher.",
    )
    views: int = _option(
        8,
        "So many augmentations of an image, then the same again, which the teacher has seen; 0: always new.",
    )
    precision: str = _option(
        "single", "single, or mixed: products in bfloat16, but not where the held-out samples are judged."
    )
    seed: int = _option(0, "Of the order of samples, the augmentation and --from-scratch.")

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: One of them makes no sense.
        """
        checks = (
            (self.epochs >= 1, "epochs must be at least 1"),
            (self.rate > 0, "rate must be above 0"),
            (self.optimizer in OPTIMIZERS, f"optimizer is {' or '.join(OPTIMIZERS)}"),
            (self.precision in PRECISIONS, f"precision is {' or '.join(PRECISIONS)}"),
            (self.batch >= 1, "batch must be at least 1"),
            (set(self.trained) <= set(TRAINED) and self.trained, f"train is of {', '.join(TRAINED)}"),
            (
                self.objective in ("auto", "distill", "labels", "both") or ":" in self.objective,
                "objective is auto, distill, labels, both or module:callable",
            ),
            (self.loss in ("auto", "kl", "relative"), "loss is auto, kl or relative"),
            (self.temperature > 0, "temperature must be above 0"),
            (0 < self.labels_weight < 1, "labels_weight must be between 0 and 1"),
            (self.hints >= 0 and self.decay >= 0, "hints and decay must not be below 0"),
            (0 < self.held_out < 1, "held_out must be between 0 and 1"),
            (self.views >= 0, "views must not be below 0"),
            (self.seed >= 0, "seed must not be below 0"),
            (0 <= self.warmup < 1, "warmup must be at least 0 and below 1"),
            (set(self.augmentations) <= set(AUGMENTATIONS), f"augment is of {', '.join(AUGMENTATIONS)}"),
        )
        for fine, problem in checks:
            if not fine:
                raise UsageError(f"finetune: {problem}")

    @property
    def trained(self) -> tuple[str, ...]:
        """What is trained, a name each."""
        return _names(self.train)

    @property
    def augmentations(self) -> tuple[str, ...]:
        """What is done to images, a name each."""
        return _names(self.augment)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("+", ",").split(",") if name.strip())


def parse_settings(text: str | Mapping[str, Any] | Settings, *, seed: int = 0) -> Settings:
    """The settings in "epochs=2,rate=1e-3": names as in Settings; several values of one joined by "+".

    Args:
        text: What was given.
        seed: Where that names none.

    Raises:
        UsageError: A name or a value is not valid.
    """
    if isinstance(text, Settings):
        return text
    given = _pairs(text) if isinstance(text, str) else dict(text)
    hints = typing.get_type_hints(Settings)
    known = [f.name for f in dataclasses.fields(Settings)]
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"finetune has no setting {name!r}{suggest(name, known)}")
        try:
            reads = from_text if isinstance(value, str) else convert
            given[name] = reads(value, hints[name])
        except ValueError:
            raise UsageError(f"finetune: {name} must be {describe(hints[name])}, not {value!r}") from None
    return Settings(**{"seed": seed, **given})


def _pairs(text: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, separator, value = part.partition("=")
        if not separator:
            raise UsageError(f"finetune: {part!r} is not NAME=VALUE, such as epochs=2")
        given[name.strip().replace("-", "_")] = value.strip()
    return given


def require_torch() -> None:
    """Raise UsageError where torch is missing."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise UsageError("training needs torch: pip install 'onnxdecomp[train]'")
