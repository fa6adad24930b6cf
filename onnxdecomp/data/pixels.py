"""What an image becomes: resized, cropped, scaled, in the layout that the model's input shape says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.data.preprocess import Preprocess
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec, dtype_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Target:
    """What an image must become for an input.

    Attributes:
        spec: The input.
        batch: Images of a feed; 0 where the input has no batch axis.
        free_batch: Whether the batch size is free.
        channels: 3, or 1 for grey.
        channels_first: [C, H, W] rather than [H, W, C].
        height, width: None where free.
    """

    spec: TensorSpec
    batch: int
    free_batch: bool
    channels: int
    channels_first: bool
    height: int | None
    width: int | None


def target_of(inputs: Sequence[TensorSpec]) -> Target:
    """What images must become for the model's one input: [N, C, H, W], [N, H, W, C], or without N.

    Where the channel axis is free too, it is taken for NCHW with three channels.

    Raises:
        UsageError: There are several inputs, or this one takes no images.
    """
    if len(inputs) != 1:
        given = ", ".join(spec.name for spec in inputs) or "none"
        raise UsageError(f"images are for models of one input, this one has {given}: give .npz files")
    spec = inputs[0]
    if len(spec.shape) not in (3, 4):
        raise _no_images(spec)
    shape = spec.shape[-3:]
    if shape[0] in (1, 3) or not isinstance(shape[0], int):
        channels_first = shape[0] in (1, 3) or shape[2] not in (1, 3)
    elif shape[2] in (1, 3):
        channels_first = False
    else:
        raise _no_images(spec)
    channels = shape[0] if channels_first else shape[2]
    height, width = shape[1:] if channels_first else shape[:2]
    lead: Dim = spec.shape[0] if len(spec.shape) == 4 else 0
    return Target(
        spec,
        lead if isinstance(lead, int) else 1,
        not isinstance(lead, int),
        channels if isinstance(channels, int) else 3,
        channels_first,
        height if isinstance(height, int) else None,
        width if isinstance(width, int) else None,
    )


def check_preprocess(preprocess: Preprocess, target: Target) -> None:
    """Check that the values of a preprocessing can be the input's.

    Raises:
        UsageError: The input holds integers and the values are none, or it is grey and they are per colour.
    """
    if dtype_of(target.spec).kind != "f" and not preprocess.keeps_bytes:
        raise UsageError(
            f"the model's input {target.spec} holds integers: --preprocess raw gives them, "
            f"{preprocess.name} does not"
        )
    if target.channels == 1 and max(len(set(preprocess.mean)), len(set(preprocess.std))) > 1:
        raise UsageError(
            f"the model's input {target.spec} is grey and {preprocess.name} has a mean or std for each "
            "of three colours: add :mean=M:std=S"
        )


def prepare(image: Image, preprocess: Preprocess, target: Target) -> Array:
    """The image as an array [C, H, W] or [H, W, C] of the input, float32, or uint8 where that is wanted.

    Its way is that of torchvision: the short side is resized to size / crop, then the centre is cut out.
    """
    image = _with_channels(image, target.channels)
    image = _fit(image, _size(image, preprocess, target), preprocess)
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], target.channels)
    if preprocess.order == "bgr":
        pixels = pixels[..., ::-1]
    if not (preprocess.keeps_bytes and dtype_of(target.spec).kind != "f"):
        mean, std = (np.array(numbers, np.float32) for numbers in (preprocess.mean, preprocess.std))
        pixels = (pixels.astype(np.float32) / np.float32(preprocess.divide) - _one(mean, target)) / _one(
            std, target
        )
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if target.channels_first else pixels)


def _one(numbers: Array, target: Target) -> Array:
    """The numbers of three equal channels as that of the one."""
    return numbers[:1] if target.channels == 1 else numbers


def _with_channels(image: Image, channels: int) -> Image:
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    if image.mode == "P":  # palettes may have transparent colours
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def _size(image: Image, preprocess: Preprocess, target: Target) -> tuple[int, int]:
    """Height and width of the input: the model's, else the preprocessing's, else the image's own."""
    free = preprocess.size or (None, None)
    height, width = target.height or free[0], target.width or free[1]
    if height is None and width is None:
        share = preprocess.crop or 1
        return max(1, int(image.height * share)), max(1, int(image.width * share))
    if height is None:
        assert width is not None
        height = max(1, round(image.height * width / image.width))
    if width is None:
        width = max(1, round(image.width * height / image.height))
    return height, width


def _fit(image: Image, size: tuple[int, int], preprocess: Preprocess) -> Image:
    from PIL.Image import Resampling

    resampling = Resampling[preprocess.resampling.upper()]
    height, width = size
    if preprocess.crop is None:
        return image if image.size == (width, height) else image.resize((width, height), resampling)
    tall, wide = int(height / preprocess.crop), int(width / preprocess.crop)
    scale = max(tall / image.height, wide / image.width)
    # 1e-6: 375 * (256 / 375) must not become 255.
    resized = max(wide, int(image.width * scale + 1e-6)), max(tall, int(image.height * scale + 1e-6))
    if image.size != resized:
        image = image.resize(resized, resampling)
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _no_images(spec: TensorSpec) -> UsageError:
    return UsageError(f"the model's input {spec} takes no images of 1 or 3 channels: give .npz files")
