"""Images with labels for bench/training.py: the corpus' MNIST and CIFAR-10 images as inputs of networks."""

from __future__ import annotations

import gzip
import io
import itertools
from pathlib import Path

import numpy as np

from bench.corpus import Corpus
from onnxdecomp.core.layer import Array

MNIST_TRAIN = 8000
"""Of the 10,000 images; the others test."""

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""What the CIFAR-10 networks of the corpus take off and divide by."""


def mnist(corpus: Corpus, shape: tuple[int, ...]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Training and test images in 0…1, each of a shape, with labels."""
    folder = next(iter(sorted((corpus.folder / "data").glob("mnist*"))))
    images = _idx(folder, "*images*", 16).astype(np.float32) / np.float32(255)
    labels = _idx(folder, "*labels*", 8).astype(np.int64)
    images = images.reshape(len(labels), *shape)
    # The file's second half is cleaner than its first.
    order = np.random.default_rng(0).permutation(len(labels))
    parts = order[:MNIST_TRAIN], order[MNIST_TRAIN:]
    train, test = ({"image": images[part], "labels": labels[part]} for part in parts)
    return train, test


def cifar(corpus: Corpus, *, labelled: bool = True) -> dict[str, Array]:
    """The training images with labels; or without these, the calibration images among them."""
    images, labels = _jpegs(corpus.folder / "data" / "cifar10_train_finetune_5000.npz")
    if labelled:
        return {"input": images, "labels": labels}
    more, _ = _jpegs(corpus.folder / "data" / "cifar10_train_calib_1000.npz")
    return {"input": np.concatenate([images, more])}


def cifar_test(corpus: Corpus) -> dict[str, Array]:
    """The test images with labels."""
    images, labels = _jpegs(corpus.folder / "data" / "cifar10_test_5000.npz")
    return {"input": images, "labels": labels}


def _idx(folder: Path, pattern: str, header: int) -> Array:
    (file,) = folder.rglob(pattern)
    return np.frombuffer(gzip.decompress(file.read_bytes())[header:], np.uint8)


def _jpegs(file: Path) -> tuple[Array, Array]:
    from PIL import Image

    with np.load(file) as archive:
        blob, offsets = archive["jpeg"].tobytes(), archive["offsets"]
        labels = archive["labels"].astype(np.int64) if "labels" in archive else np.zeros(0, np.int64)
    parts = [blob[start:end] for start, end in itertools.pairwise(offsets)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("RGB"), np.float32) for part in parts])
    scaled = (pixels - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels
