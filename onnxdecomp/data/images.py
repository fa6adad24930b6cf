"""Feeds from image files."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.check import check_feed
from onnxdecomp.data.feeds import Feeds, Part, first_parts, join
from onnxdecomp.data.pixels import Target, check_preprocess, prepare, target_of
from onnxdecomp.data.preprocess import NAMES, Preprocess
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.process_state import no_warnings
from onnxdecomp.runtime.session import Feed, TensorSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def image_files(path: Path) -> list[Path]:
    """The image if `path` is one, else all below the folder, sorted by their paths; hidden ones left out."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    found = [
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def image_feeds(
    path: Path,
    files: Sequence[Path],
    inputs: Sequence[TensorSpec],
    preprocess: Preprocess | None,
    *,
    samples: int | None = None,
) -> Feeds:
    """The feeds of image files, which are decoded when they are read.

    A model with a fixed batch gets as many images a feed; those left over are not used.

    Raises:
        UsageError: No preprocessing is given, the model's input takes no images, there are too few, or
            Pillow is not installed. Iterating raises it for an image that is damaged.
    """
    if preprocess is None:
        raise UsageError(
            f"{path} holds images: say how they become the model's input with --preprocess "
            f"{'|'.join(NAMES)} (mean=, std=, size=, crop=, bgr change details)"
        )
    _require_pillow()
    target = target_of(inputs)
    check_preprocess(preprocess, target)
    step = max(1, target.batch)
    groups = [files[k : k + step] for k in range(0, len(files) - step + 1, step)]
    if files and not groups:
        raise UsageError(f"{path} has {len(files)} images, the model takes {step} at a time")
    read = (Part(1, partial(_read, group, preprocess, target), name=str(group[0])) for group in groups)
    parts = first_parts(read, samples)
    used = len(parts) * step
    count = str(used) if used == len(files) else f"{used} of {len(files)}"
    source = f"{path}, {count} images, {preprocess.name}"
    return join(parts, source, stackable=target.free_batch)


def _read(files: Sequence[Path], preprocess: Preprocess, target: Target) -> Iterator[Feed]:
    images = [_open(file, preprocess, target) for file in files]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UsageError(
            f"{files[0]} and the next images differ in size, and the model takes {len(files)} at a time: "
            "add :size=HxW to the preprocessing"
        )
    array = np.stack(images) if target.batch else images[0]
    yield check_feed({target.spec.name: array}, [target.spec], str(files[0]))


def _open(file: Path, preprocess: Preprocess, target: Target) -> Array:
    from PIL import Image, ImageOps

    try:
        with no_warnings(), Image.open(file) as opened:  # odd metadata, large photographs
            return prepare(ImageOps.exif_transpose(opened), preprocess, target)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} is no readable image: {error}") from error


def _require_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise UsageError("reading images needs Pillow: pip install 'onnxdecomp[images]'")
