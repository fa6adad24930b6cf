"""Seeded random inputs for a model of which nothing is known but its file.

Dimensions that the model leaves free are bound by trying: the same symbolic name gets the same size, a
first axis is taken for the batch, and the other sizes come from a short list, until the model runs.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime.session import Feed, TensorSpec, dtype_of

_BATCH = re.compile(r"batch", re.IGNORECASE)
_TIME = re.compile(r"^t$|time|seq|frame|step|token|length|_len$|^len$", re.IGNORECASE)
"""Names of sizes that are a batch wherever they stand, and of those that are none where they stand first."""

SIZES = (32, 64, 96, 128, 224, 16, 320, 256, 512, 160, 48, 640, 8, 4, 2, 1)
"""Sizes tried for free dimensions, usual image and sequence sizes first."""

_VOLUMES = tuple(dict.fromkeys((32, 24, 16, 48, *SIZES)))
"""The same where three dimensions or more are free: volumes grow fast."""

INTEGERS = ((0, 32, 1), (0, 32, 16000), (0, 32, 8000), (0, 2, 1), (0, 1, 0), (1, 2, 1))
"""Tried for integer inputs: array values in [low, high), and the value of a scalar (a sample rate)."""

_LARGE = 200_000
"""Numbers in a feed from which one of each size says enough for the time it takes."""

_MOST = 1 << 29
"""Numbers in a feed that are made up at most: 4 GB of them."""

Key: TypeAlias = str | tuple[str, int]
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Trial: TypeAlias = Callable[[Feed], str | None]
"""Runs the model on a feed; returns why it fails, or None."""


@dataclass(frozen=True)
class Binding:
    """A size for every dimension and the values for integers, on which the model runs."""

    shapes: Mapping[str, tuple[int, ...]]
    integers: tuple[int, int, int]

    @property
    def values(self) -> int:
        """Numbers in one feed."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def feed(self, inputs: Sequence[TensorSpec], seed: Sequence[int], *, ends: bool = False) -> Feed:
        """Random arrays: normal floats, images of 0..255 in uint8, small integers.

        Args:
            inputs, seed: Of what, and of the numbers.
            ends: Put the largest integer into every array of them: what runs on that runs on any other feed.

        Raises:
            ModelError: They would be larger than any input is meant to be.
        """
        if self.values > _MOST:
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
            raise ModelError(f"random inputs of {self.values} numbers are not made ({sizes})")
        rng = np.random.default_rng(seed)
        found = {spec.name: _random(spec, self.shapes[spec.name], self.integers, rng) for spec in inputs}
        for name, array in found.items() if ends else ():
            if _is_drawn(name, array):
                array.flat[-1] = self.integers[1] - 1
        return found


def trial_of(run: Callable[[Feed], object]) -> Trial:
    """What says why a feed makes `run` raise ModelError."""

    def trial(feed: Feed) -> str | None:
        try:
            run(feed)
        except ModelError as error:
            return str(error)
        return None

    return trial


def random_feeds(
    inputs: Sequence[TensorSpec],
    trial: Trial,
    *,
    seed: int = 0,
    shapes: Shapes | None = None,
    per_binding: int | None = None,
    count: int = 2,
    batch: int = 1,
) -> Feeds | str:
    """`per_binding` feeds (2, or 1 large one) at each of up to `count` sizes of the free dimensions.

    Returns the reason where no input was found that the model runs on.

    Raises:
        UsageError: `shapes` do not fit the inputs.
    """
    found = bindings(inputs, trial, count=count, batch=batch, shapes=shapes, seed=seed)
    if isinstance(found, str):
        return found
    items = tuple(
        binding.feed(inputs, (seed, index, sample))
        for index, binding in enumerate(found)
        for sample in range(per_binding or (1 if binding.values > _LARGE else 2))
    )
    return Feeds(items, f"random, seed {seed}")


def bindings(
    inputs: Sequence[TensorSpec],
    trial: Trial,
    *,
    count: int = 2,
    batch: int = 1,
    shapes: Shapes | None = None,
    seed: int = 0,
    seconds: float = 20,
    attempts: int = 300,
) -> tuple[Binding, ...] | str:
    """Up to `count` bindings on which `trial` succeeds, the sizes in each different from the one before.

    The search for each ends after `seconds` or `attempts`; where it finds none at all, the reason is
    returned.
    """
    for spec in inputs:
        if not spec.is_tensor or spec.dtype == "bfloat16":
            return f"random values for the input {spec.name!r} of type {spec.dtype} are not made"
    fixed = sizes_given(inputs, shapes or {})
    integral = any(dtype_of(spec).kind in "iu" for spec in inputs)
    fills = INTEGERS if integral else INTEGERS[:1]
    found: list[Binding] = []
    sizes: list[dict[Key, int]] = []
    failure = ""
    for index in range(count):
        if index and not _free(inputs, fixed):
            break
        before = sizes[-1] if sizes else {}
        deadline = time.monotonic() + seconds
        candidates = _assignments(inputs, fixed, batch + index, before)
        preferred = tuple(binding.integers for binding in found)[:1]
        for assignment, integers in itertools.islice(
            itertools.product(candidates, preferred or fills), attempts
        ):
            binding = Binding(_bound(inputs, shapes or {}, {**fixed, **assignment}), integers)
            reason = trial(binding.feed(inputs, (seed, index, 0), ends=True))
            if reason is None:
                found.append(binding)
                sizes.append(assignment)
                break
            failure = reason
            if time.monotonic() > deadline:
                break
        if len(found) <= index:
            break
    return tuple(found) or f"the original runs on no random input; it last said: {failure}"


def sizes_given(inputs: Sequence[TensorSpec], shapes: Shapes) -> dict[Key, int]:
    """The sizes of symbols that the user's shapes imply.

    Raises:
        UsageError: A shape is of no input, or does not fit it.
    """
    specs = {spec.name: spec for spec in inputs}
    fixed: dict[Key, int] = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise UsageError(f"no input is named {name!r}; the model's inputs are {', '.join(specs)}")
        spec = specs[name]
        if len(shape) != len(spec.shape) or any(
            isinstance(dim, int) and dim != size for dim, size in zip(spec.shape, shape, strict=False)
        ):
            raise UsageError(f"the shape {'x'.join(map(str, shape))} does not fit the input {spec}")
        if any(size < 1 for size in shape):
            raise UsageError(f"the shape {'x'.join(map(str, shape))} of {name!r} has a size below 1")
        for axis, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
            if not isinstance(dim, int):
                fixed.setdefault(dimension(spec, axis), size)
    return fixed


def dimension(spec: TensorSpec, axis: int) -> Key:
    """What stands for a free dimension: equal for all that have the same size."""
    dim = spec.shape[axis]
    return dim if isinstance(dim, str) else (spec.name, axis)


def is_batch(spec: TensorSpec, axis: int) -> bool:
    """Whether a free dimension looks like a batch: by its name where that tells, else as the first axis."""
    dim = spec.shape[axis]
    if isinstance(dim, int):
        return False
    if dim is not None and _BATCH.search(dim):
        return True
    return axis == 0 and not (dim is not None and _TIME.search(dim))


def _free(inputs: Sequence[TensorSpec], fixed: Mapping[Key, int]) -> dict[Key, bool]:
    """The keys of dimensions still to be bound: whether they look like a batch."""
    free: dict[Key, bool] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            key = dimension(spec, axis)
            if not isinstance(dim, int) and key not in fixed:
                free[key] = free.get(key, False) or is_batch(spec, axis)
    return free


def _assignments(
    inputs: Sequence[TensorSpec], fixed: Mapping[Key, int], batch: int, before: Mapping[Key, int]
) -> Iterator[dict[Key, int]]:
    """Sizes to try for the free dimensions, likely ones first, each unlike `before`."""
    free = _free(inputs, fixed)
    if not free:
        yield {}
        return
    batches = [key for key, batched in free.items() if batched]
    others = [key for key, batched in free.items() if not batched]

    def candidates() -> Iterator[dict[Key, int]]:
        used = {before[key] for key in others if key in before}
        sizes = [size for size in (_VOLUMES if len(others) > 2 else SIZES) if size not in used]
        for rows in (batch, 1) if batch > 1 else (batch,):
            lead = dict.fromkeys(batches, rows)
            if not others:
                yield lead
                continue
            for size in sizes:
                yield {**lead, **dict.fromkeys(others, size)}
        if others and before:
            yield {**before, **dict.fromkeys(batches, batch)}
        if len(others) > 1:  # each on its own, as where a state has the batch on its second axis
            tail = (*SIZES[-2:][::-1], *SIZES[:-2])
            for combination in itertools.product(SIZES, *[tail] * (len(others) - 1)):
                yield {**dict.fromkeys(batches, batch), **dict(zip(others, combination, strict=True))}
        if not others and len(batches) == 1 and not before:  # a lone axis that was no batch after all
            for size in SIZES:
                yield dict.fromkeys(batches, size)

    seen: list[dict[Key, int]] = [dict(before)] if before else []
    for candidate in candidates():
        if candidate not in seen:
            seen.append(candidate)
            yield candidate


def _bound(
    inputs: Sequence[TensorSpec], shapes: Shapes, sizes: Mapping[Key, int]
) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(shapes[spec.name])
        if spec.name in shapes
        else tuple(
            dim if isinstance(dim, int) else sizes[dimension(spec, axis)]
            for axis, dim in enumerate(spec.shape)
        )
        for spec in inputs
    }


def _random(
    spec: TensorSpec, shape: tuple[int, ...], integers: tuple[int, int, int], rng: np.random.Generator
) -> Array:
    dtype = dtype_of(spec)
    low, high, scalar = integers
    if dtype.hasobject:
        return np.asarray(np.full(shape, "a", dtype=object))
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    if _is_scalar(shape):
        value = min(scalar, np.iinfo(dtype).max)  # type: ignore[type-var]
        return np.asarray(np.full(shape, value)).astype(dtype)
    if _is_image(dtype, shape):
        return rng.integers(0, 256, shape).astype(dtype)
    if _is_mask(spec.name):
        return np.ones(shape, dtype)
    return rng.integers(low, high, shape).astype(dtype)


def _is_drawn(name: str, array: Array) -> bool:
    """Whether an array holds integers of a binding's range."""
    others = _is_scalar(array.shape) or _is_image(array.dtype, array.shape) or _is_mask(name)
    return array.dtype.kind in "iu" and array.size > 0 and not others


def _is_scalar(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) == 1 and len(shape) < 2


def _is_image(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    return dtype == np.uint8 and len(shape) >= 3


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()
