"""What the networks of this folder learn: inputs and what is wanted, drawn from a seed, as NumPy arrays.

The digits are those of `models/digits.py`; training draws from its training images alone, and tests from its
test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]

CANVAS, PLACES = 32, 8
"""Height and width of the pictures of several digits; cells along each side."""
LINE, LETTERS = 48, 5
"""Width of a line of text, 8 high; digits on it."""
BINS, FRAMES = 65, 40
"""Frequencies of a spectrum; spectra of a sound."""
WORDS, TOPICS, LENGTH = 400, 20, 16
"""Words of the made-up language, what its sentences are about, words of a sentence."""
TOKENS, CONTEXT = 96, 48
"""Printable characters; how many a language model reads."""


@dataclass(frozen=True)
class Source:
    """What is drawn from: images [n, 8, 8] in 0..1, their labels [n], and a text."""

    images: Floats
    labels: Ints
    text: str


def pictures(source: Source, count: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Pictures [count, 1, 32, 32] of one to four digits, and of each cell [count, 8, 8] its class.

    A digit is in the cell that holds its centre; 10 is none.
    """
    found = np.zeros((count, 1, CANVAS, CANVAS), np.float32)
    classes = np.full((count, PLACES, PLACES), 10, np.int64)
    size = CANVAS // PLACES
    for k in range(count):
        for quarter in rng.permutation(4)[: rng.integers(1, 5)]:
            chosen = rng.integers(len(source.labels))
            top, left = np.array(divmod(int(quarter), 2)) * 16 + rng.integers(0, 9, 2)
            found[k, 0, top : top + 8, left : left + 8] = source.images[chosen]
            classes[k, (top + 4) // size, (left + 4) // size] = source.labels[chosen]
    return found + 0.1 * rng.random(found.shape, np.float32), classes


def halves(source: Source, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Pictures [count, 1, 16, 16] of half the height and width of pictures [count, 1, 32, 32]."""
    large = pictures(source, count, rng)[0]
    small = large.reshape(count, 1, CANVAS // 2, 2, CANVAS // 2, 2).mean((3, 5))
    return small, np.minimum(large, np.float32(1))


def lines(source: Source, count: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Lines of text [count, 1, 8, 48] and the five digits on each [count, 5]."""
    found = np.zeros((count, 1, 8, LINE), np.float32)
    chosen = rng.integers(0, len(source.labels), (count, LETTERS))
    for k in range(count):
        spare = rng.multinomial(LINE - 8 * LETTERS, [1 / (LETTERS + 1)] * (LETTERS + 1))
        at = 0
        for letter, gap in zip(chosen[k], spare[:-1], strict=True):
            at += int(gap)
            found[k, 0, :, at : at + 8] = source.images[letter]
            at += 8
    return found + 0.15 * rng.random(found.shape, np.float32), source.labels[chosen]


def sounds(source: Source, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Log spectra [count, 40, 65] of harmonic sounds in noise, and without it."""
    bins = np.arange(BINS)
    clean = np.zeros((count, FRAMES, BINS), np.float32)
    for k in range(count):
        pitch = rng.uniform(3, 9) + np.cumsum(rng.normal(0, 0.08, FRAMES))
        formants = rng.uniform(5, 60, 3)
        envelope = sum(np.exp(-((bins - f) ** 2) / 60) for f in formants)
        comb = np.exp(6 * (np.cos(2 * np.pi * bins / pitch[:, None]) - 1))
        spoken = np.convolve(rng.random(FRAMES) > 0.3, np.ones(5) / 5, "same")
        clean[k] = 4 * comb * envelope * spoken[:, None]
    noise = rng.gamma(1.5, 0.3, clean.shape) * rng.uniform(0.2, 1.5, (count, 1, BINS))
    return np.log1p(clean + noise).astype(np.float32), np.log1p(clean)


def sentences(source: Source, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Sentences [count, 16] of words and what each is about [count]; half of the words belong to no topic."""
    topics = rng.integers(0, TOPICS, count)
    of_topic = WORDS // 2 // TOPICS
    about = WORDS // 2 + topics[:, None] * of_topic + rng.integers(0, of_topic, (count, LENGTH))
    others = rng.integers(0, WORDS // 2, (count, LENGTH))
    return np.where(rng.random((count, LENGTH)) < 0.3, about, others), topics


def passages(source: Source, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Passages [count, 48] of the text, its printable ASCII characters as 0 to 95; twice."""
    characters = np.frombuffer(source.text.encode("ascii", "ignore"), np.uint8).astype(np.int64)
    codes = np.clip(characters - 32, 0, TOKENS - 1)
    starts = rng.integers(0, len(codes) - CONTEXT, count)
    found = codes[starts[:, None] + np.arange(CONTEXT)]
    return found, found
