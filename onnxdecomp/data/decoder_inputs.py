"""What the inputs of a decoder are, by their names: tokens, caches of keys and values, masks, positions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.names import names
from onnxdecomp.data.random_inputs import is_batch
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec, dtype_of

Given: TypeAlias = Array | Callable[[int, int], Array]
"""An array, or what makes it of the number of tokens in the cache and of new ones."""

_PAST = re.compile(r"past(?:_key_values?|_kv)?[._/]*(.*)")
_PRESENT = re.compile(r"present(?:_key_values?|_kv)?[._/]*(.*)")
_TOKENS = ("input_ids", "decoder_input_ids", "tokens", "ids", "input")
_MASKS = ("attention_mask", "decoder_attention_mask")


@dataclass(frozen=True)
class Cache:
    """An input that takes what an output has given a step before, at that place among the outputs."""

    past: TensorSpec
    present: int


@dataclass(frozen=True)
class DecoderInputs:
    """The parts that a decoder's inputs and outputs play.

    Attributes:
        tokens: The input of the tokens.
        logits: The place of their scores among the outputs.
        caches: Pairs of an input and an output; none where every step reads the whole text.
        others: The other inputs.
    """

    tokens: TensorSpec
    logits: int
    caches: tuple[Cache, ...]
    others: tuple[TensorSpec, ...]

    @property
    def at_once(self) -> int | None:
        """The number of tokens that the model takes in a step, where that is fixed."""
        size = self.tokens.shape[-1]
        return size if isinstance(size, int) else None


def decoder_inputs(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    tokens: str = "",
    logits: str = "",
    caches: Mapping[str, str] | None = None,
) -> DecoderInputs:
    """What the inputs are, by their names or as told.

    Args:
        inputs, outputs: The model's.
        tokens, logits: Names; "" to look for them.
        caches: From names of inputs to names of the outputs that they take; None to look for them.

    Raises:
        UsageError: A name is not the model's, or something is not found.
    """
    by_name = {spec.name: spec for spec in inputs}
    places = {spec.name: place for place, spec in enumerate(outputs)}
    pairs = _found_caches(inputs, outputs) if caches is None else dict(caches)
    for past, present in pairs.items():
        if past not in by_name or present not in places:
            raise UsageError(
                f"the cache {past!r} of {present!r} is not the model's: its inputs are {names(by_name)}, its "
                f"outputs {names(places)}"
            )
    found = tuple(Cache(by_name[past], places[present]) for past, present in pairs.items())
    read = _tokens(inputs, tokens)
    others = tuple(spec for spec in inputs if spec.name not in pairs and spec is not read)
    return DecoderInputs(read, _logits(outputs, logits, set(pairs.values())), found, others)


def empty(spec: TensorSpec) -> Array:
    """A cache before the first step: of no length, one sample; zeros where all sizes are fixed.

    Raises:
        UsageError: The model does not tell which axis is the length.
    """
    free = [axis for axis, dim in enumerate(spec.shape) if not isinstance(dim, int)]
    lengths = [axis for axis in free if not is_batch(spec, axis)]
    if len(lengths) > 1:
        raise UsageError(
            f"the cache {spec} does not say which of its axes is the length: give the first one by `inputs`"
        )
    shape = [dim if isinstance(dim, int) else int(axis not in lengths) for axis, dim in enumerate(spec.shape)]
    return np.zeros(shape, dtype_of(spec))


def other_input(spec: TensorSpec, given: Mapping[str, Given], past: int, new: int, *, cached: bool) -> Array:
    """An input that is neither tokens nor a cache: as it is given, or made of the numbers of tokens.

    Args:
        spec: The input.
        given: What the user gives.
        past, new: Tokens in the cache, and those of this step.
        cached: Whether the cache is to be read at all, where the model has a switch for it.

    Raises:
        UsageError: It is not given, and not known by its name.
    """
    if spec.name in given:
        value = given[spec.name]
        return np.asarray(value(past, new) if callable(value) else value)
    kind, rank = dtype_of(spec), len(spec.shape)
    positions = np.arange(past, past + new).astype(kind)
    if spec.name in _MASKS and rank == 2:
        return np.ones((1, past + new), kind)
    if spec.name == "position_ids" and rank == 2:
        return positions[None]
    if spec.name == "cache_position" and rank == 1:
        return positions
    if spec.name == "use_cache_branch":
        return np.full((1,) * rank, cached, kind)
    raise UsageError(f"the decoder wants {spec}, which is not made of its own outputs: give it by `inputs`")


def _found_caches(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Inputs and outputs that are called the same but for "past" and "present"."""
    present = {
        found[1]: spec.name for spec in outputs if (found := _PRESENT.fullmatch(spec.name)) and spec.is_float
    }
    pairs = {}
    for spec in inputs:
        found = _PAST.fullmatch(spec.name)
        if found and spec.is_float and len(spec.shape) > 2 and found[1] in present:
            pairs[spec.name] = present[found[1]]
    return pairs


def _tokens(inputs: Sequence[TensorSpec], wanted: str) -> TensorSpec:
    by_name = {spec.name: spec for spec in inputs}
    found = [name for name in ((wanted,) if wanted else _TOKENS) if name in by_name]
    if found:
        return by_name[found[0]]
    numbers = [spec for spec in inputs if spec.dtype in ("int64", "int32") and len(spec.shape) == 2]
    if wanted or len(numbers) != 1:
        raise UsageError(f"which input takes the tokens? Say it by `tokens`: the inputs are {names(by_name)}")
    return numbers[0]


def _logits(outputs: Sequence[TensorSpec], wanted: str, caches: set[str]) -> int:
    own = [spec.name for spec in outputs]
    if (wanted or "logits") in own:
        return own.index(wanted or "logits")
    scores = [spec.name for spec in outputs if spec.is_float and spec.name not in caches]
    if wanted or len(scores) != 1:
        raise UsageError(f"which output has the scores? Say it by `logits`: the outputs are {names(own)}")
    return own.index(scores[0])
