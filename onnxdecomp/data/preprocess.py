"""How images become a network's input: named ways, and what is said differently in their place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, cast

from onnxdecomp.core.options import suggest
from onnxdecomp.errors import UsageError

Order: TypeAlias = Literal["rgb", "bgr"]
Resampling: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

RESAMPLINGS: tuple[Resampling, ...] = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """A pixel 0..255 becomes (pixel / divide - mean) / std, after the image was resized and cropped.

    Attributes:
        name: What it is called.
        size: Height and width where the model leaves them free; None: then each image keeps its own.
        crop: The share of the resized image's sides that a centre crop of the input's size is; None: the
            image is stretched to the size.
        divide: 255 for values of 0..1, 1 for 0..255.
        mean, std: Per channel in `order`, or one number for all channels.
        order: Of the channels.
        resampling: Of the resizing.
    """

    name: str
    size: tuple[int, int] | None = None
    crop: float | None = None
    divide: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: Order = "rgb"
    resampling: Resampling = "bilinear"

    @property
    def keeps_bytes(self) -> bool:
        """Whether the values are the pixels themselves, integers of 0..255."""
        return self.divide == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}


_CLASSIFIER = Preprocess("", size=(224, 224), crop=0.875)

PRESETS: tuple[Preprocess, ...] = (
    # torchvision's and timm's networks.
    replace(_CLASSIFIER, name="imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # Caffe's and Keras' VGG and ResNet.
    replace(_CLASSIFIER, name="imagenet-bgr-caffe", divide=1.0, mean=(103.939, 116.779, 123.68), order="bgr"),
    Preprocess("zero-one"),
    Preprocess("minus-one-one", mean=(0.5,), std=(0.5,)),
    Preprocess("raw", divide=1.0),
)

NAMES = tuple(preset.name for preset in PRESETS)

_BASE = Preprocess("zero-one")
_SETTINGS = tuple(field.name for field in fields(Preprocess) if field.name not in ("name", "order"))
_FORM = (
    "NAME, then :mean=R,G,B :std=R,G,B :size=N or HxW :crop=0.875 or none :divide=255 :resampling=NAME :bgr"
)


def parse_preprocess(text: str) -> Preprocess:
    """The preprocessing that a text names: "imagenet", "imagenet:size=288:crop=1", "mean=0.5:std=0.25:bgr".

    A preset's name comes first; without one the settings change "zero-one". Settings: mean, std, size, crop,
    divide, resampling, and rgb or bgr.

    Raises:
        UsageError: There is no such preset or setting, or not this value for it.
    """
    first, *rest = text.split(":")
    known = {preset.name: preset for preset in PRESETS}
    if first in known:
        base = known[first]
    elif "=" in first or first in ("rgb", "bgr"):
        base, rest = _BASE, [first, *rest]
    else:
        raise UsageError(f"unknown preprocessing {first!r}{suggest(first, NAMES)}")
    changes: dict[str, Any] = {}
    for part in rest:
        setting, equals, value = part.partition("=")
        if part in ("rgb", "bgr"):
            changes["order"] = cast(Order, part)
            continue
        if setting not in _SETTINGS or not equals:
            hint = suggest(setting, (*_SETTINGS, "rgb", "bgr"))
            raise UsageError(f"preprocessing {text!r}: {part!r} is no setting{hint}")
        try:
            changes[setting] = _value(setting, value)
        except ValueError:
            raise UsageError(f"preprocessing {text!r}: {part!r} makes no sense; it is {_FORM}") from None
    return replace(base, name=text, **changes)


def _value(setting: str, text: str) -> object:
    """A setting's value; ValueError where the text is none."""
    if setting in ("mean", "std"):
        numbers = tuple(_number(part) for part in text.split(","))
        if len(numbers) not in (1, 3) or (setting == "std" and min(numbers) <= 0):
            raise ValueError(text)
        return numbers
    if setting == "size":
        sizes = [int(part) for part in text.split("x")]
        if len(sizes) > 2 or min(sizes) < 1:
            raise ValueError(text)
        return (sizes[0], sizes[-1])
    if setting == "crop":
        share = None if text == "none" else _number(text)
        if share is not None and not 0 < share <= 1:
            raise ValueError(text)
        return share
    if setting == "divide":
        divide = _number(text)
        if divide <= 0:
            raise ValueError(text)
        return divide
    if text not in RESAMPLINGS:
        raise ValueError(text)
    return text


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
