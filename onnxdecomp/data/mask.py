"""Masks: inputs that say which positions of a sequence are real and which only fill it up.

Padding is computed like everything else, and what comes of it concerns nobody. So the positions where a mask
is 0 are left out of what layers are fitted to and of every error. Which axes of a tensor they are is told by
its shape, and where that is not clear the whole tensor counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.data.names import names
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec

NONE = "none"
"""What is given where no input is to be taken for a mask."""

_USUAL = re.compile(r"(.*[/._])?((encoder_|decoder_)?attention_mask|input_mask)([:._]\d+)?", re.IGNORECASE)


_Axes: TypeAlias = tuple[int, int] | int
"""The axes of batch and positions, or the one that holds both."""

_Finder: TypeAlias = Callable[[tuple[int, ...], int, int], _Axes | None]
"""Finds them in a shape, by the sizes of batch and positions."""


@dataclass(frozen=True)
class Mask:
    """Which inputs are masks [batch, positions]: 1 where a position is real, 0 where it is padding.

    Attributes:
        inputs: They, as the model declares them; several where there are several sequences.
        given: Whether the user named them; an input that was found by its name may hold other numbers,
            and is no mask then.
    """

    inputs: tuple[TensorSpec, ...]
    given: bool = True

    @property
    def text(self) -> str:
        """The names, as they are given."""
        return ",".join(spec.name for spec in self.inputs)

    @property
    def note(self) -> str:
        """What a user should know of a mask that was found by its name; "" of one that was given."""
        if self.given:
            return ""
        return (
            f"{self.text} is taken for a mask: positions where it is 0 count neither in fits nor in errors "
            "(--mask none counts them)"
        )

    def rows(self, feed: Mapping[str, Array], shape: Sequence[int]) -> Array | None:
        """Which rows of an activation are real, [*shape] of booleans; None for all.

        Args:
            feed: What the model was given.
            shape: Of the activation without its features: [batch, positions], [batch, heads, positions],
                [positions, batch] or [batch x positions].

        Raises:
            UsageError: A mask that the user named holds other numbers than 0 and 1.
        """
        return self._only(feed, shape, [_row_axes] * len(self.inputs))

    def values(
        self, feed: Mapping[str, Array], shape: Sequence[int], declared: Sequence[Dim] | None = None
    ) -> Array | None:
        """Which values of an output are real, [*shape] of booleans; None for all.

        Args:
            feed: What the model was given.
            shape: Of the output: [batch, positions, features], [batch, heads, positions, ...],
                [batch, features, positions], [positions, batch, features] or [batch x positions, features].
            declared: The shape that the model declares. Only this tells [batch, positions] from a pooled
                output with as many features.

        Raises:
            UsageError: As `rows`.
        """
        return self._only(
            feed, shape, [partial(_value_axes, own=spec.shape[-1], declared=declared) for spec in self.inputs]
        )

    def _only(
        self, feed: Mapping[str, Array], shape: Sequence[int], finders: Sequence[_Finder]
    ) -> Array | None:
        """What the mask says whose axes are found; None where several say different things."""
        found: list[Array] = []
        for spec, axes_of in zip(self.inputs, finders, strict=True):
            real = self._real(feed[spec.name], spec.name)
            axes = None if real is None else axes_of(tuple(shape), *real.shape)
            if real is not None and axes is not None:
                found.append(_expand(real, tuple(shape), axes))
        same = all(np.array_equal(found[0], other) for other in found[1:])
        return found[0] if found and same and not found[0].all() else None

    def _real(self, mask: Array, name: str) -> Array | None:
        """The mask as booleans [batch, positions]; axes of size 1 between the two are dropped."""
        plain = mask.astype(bool)
        if not np.array_equal(plain, mask):
            if self.given:
                raise UsageError(f"the mask {name!r} holds other numbers than 0 and 1")
            return None
        return plain.reshape(len(mask), -1) if mask.shape[-1] * len(mask) == mask.size else None


def masked_inputs(inputs: Sequence[TensorSpec], wanted: str = "") -> Mask | None:
    """The mask that is named, or that is found under the usual names; None where there is none.

    Args:
        inputs: The model's.
        wanted: Names with commas between them, "none", or "" to look for "attention_mask", "input_mask" and
            their like among inputs with two axes.

    Raises:
        UsageError: No input has that name, or it is not of the form [batch, positions].
    """
    if wanted == NONE and not any(spec.name == NONE for spec in inputs):
        return None
    if not wanted:
        found = tuple(spec for spec in inputs if len(spec.shape) == 2 and _USUAL.fullmatch(spec.name))
        return Mask(found, given=False) if found else None
    by_name = {spec.name: spec for spec in inputs}
    parts = [wanted] if wanted in by_name else wanted.split(",")
    for name in parts:
        if name not in by_name:
            raise UsageError(
                f"--mask {name}: no input has that name; the model's inputs are {names(by_name)}"
            )
        spec = by_name[name]
        middle = spec.shape[1:-1]
        if (
            len(spec.shape) < 2
            or any(isinstance(dim, int) and dim != 1 for dim in middle)
            or spec.dtype in ("str", "string")
        ):
            raise UsageError(f"--mask {name}: a mask has the form [batch, positions], the input is {spec}")
    return Mask(tuple(by_name[name] for name in parts))


def _row_axes(shape: tuple[int, ...], batch: int, length: int) -> _Axes | None:
    if len(shape) == 1:
        return 0 if shape[0] == batch * length else None
    if len(shape) > 1 and shape[0] == batch:
        fitting = [axis for axis in (1, 2) if axis < len(shape) and shape[axis] == length]
        return (0, fitting[0]) if len(fitting) == 1 else None
    return (1, 0) if shape[:2] == (length, batch) else None


def _value_axes(
    shape: tuple[int, ...], batch: int, length: int, own: Dim, declared: Sequence[Dim] | None
) -> _Axes | None:
    """As `_row_axes`, the features among the axes; `own` is what the model declares the mask's length as."""
    known = tuple(declared) if declared is not None and len(declared) == len(shape) else None

    def fits(axis: int) -> bool:
        fixed = known is not None and isinstance(known[axis], int)
        return shape[axis] == length and not (fixed and not isinstance(own, int))

    if len(shape) < 2:
        return None
    if shape[0] == batch:
        if len(shape) == 2:
            told = known is not None and not isinstance(own, int)
            return (0, 1) if told and fits(1) else None
        fitting = [axis for axis in (1, 2) if fits(axis)]
        if (
            isinstance(own, str)
            and known is not None
            and len(same := [a for a in fitting if known[a] == own]) == 1
        ):
            fitting = same
        if len(fitting) == 1 or (fitting and len(shape) == 3):  # features come last
            return 0, fitting[0]
        return None
    if len(shape) > 2 and shape[1] == batch and fits(0):
        return 1, 0
    return 0 if shape[0] == batch * length else None


def _expand(real: Array, shape: tuple[int, ...], axes: _Axes) -> Array:
    """The mask [batch, positions] over all axes of a tensor."""
    if isinstance(axes, int):
        laid = real.reshape(-1, *(1,) * (len(shape) - 1))
    else:
        sizes = [1] * len(shape)
        sizes[axes[0]], sizes[axes[1]] = real.shape
        laid = (real if axes[0] < axes[1] else real.T).reshape(sizes)
    return np.broadcast_to(laid, shape)
