"""Values as JSON and arrays, and back: what a work folder holds is never code that runs.

Numbers, texts, tuples, lists, mappings, arrays, and dataclasses that were named before. What is read back is
equal to what was written, arrays bit by bit and in the same order of memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from onnxdecomp.core.json_values import Json
from onnxdecomp.core.layer import Array

Packed: TypeAlias = tuple[Json, list[Array]]
"""The JSON, in which arrays are numbers of their places in the list."""


class Codec:
    """Packs values and unpacks them.

    Attributes:
        kinds: The dataclasses that may be among them, by name.
    """

    def __init__(self, kinds: Iterable[type]) -> None:
        self.kinds: Mapping[str, type] = {kind.__name__: kind for kind in kinds}

    def pack(self, value: object) -> Packed:
        """The value in two parts.

        Raises:
            TypeError: Something in it is of no kind that was named.
        """
        arrays: list[Array] = []
        return self._packed(value, arrays), arrays

    def unpack(self, packed: Packed) -> object:
        """The value again.

        Raises:
            ValueError: What is packed is no value, or of a kind that was not named.
        """
        try:
            return self._unpacked(*packed)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"is no packed value: {error}") from error

    def _packed(self, value: object, arrays: list[Array]) -> Json:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case np.ndarray() | np.generic():
                array = np.asarray(value)
                kept = array.flags.c_contiguous or array.flags.f_contiguous
                arrays.append(array if kept else np.ascontiguousarray(array))
                return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
            case tuple() | list():
                kind = "tuple" if isinstance(value, tuple) else "list"
                return {kind: [self._packed(one, arrays) for one in value]}
            case Mapping():
                pairs = ([self._packed(key, arrays), self._packed(one, arrays)] for key, one in value.items())
                return {"pairs": list(pairs)}
        name = type(value).__name__
        if self.kinds.get(name) is not type(value) or not dataclasses.is_dataclass(value):
            raise TypeError(f"{name} is none of what is kept: {', '.join(self.kinds)}")
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {"kind": name, "fields": {own: self._packed(getattr(value, own), arrays) for own in fields}}

    def _unpacked(self, packed: Json, arrays: list[Array]) -> object:
        if not isinstance(packed, dict):
            return packed
        if "array" in packed:
            array = arrays[int(str(packed["array"]))]
            return array[()] if packed["scalar"] else array
        for name, made in (("tuple", tuple), ("list", list)):
            if name in packed:
                return made(self._unpacked(one, arrays) for one in _list(packed[name]))
        if "pairs" in packed:
            pairs = (_list(pair) for pair in _list(packed["pairs"]))
            return {self._unpacked(key, arrays): self._unpacked(one, arrays) for key, one in pairs}
        fields = packed["fields"]
        assert isinstance(fields, dict)
        return self.kinds[str(packed["kind"])](**{k: self._unpacked(v, arrays) for k, v in fields.items()})


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def digest(*parts: object) -> str:
    """A hash that is equal for equal parts: of what `Codec` packs, bytes, and any dataclasses.

    Raises:
        TypeError: A part is of another kind.
    """
    found = hashlib.sha256()
    for part in parts:
        _feed(found, part)
    return found.hexdigest()


def _feed(into: hashlib._Hash, value: object) -> None:
    """Every value with its type and its length, so that no two sequences of them look alike."""
    match value:
        case None | bool() | int() | float() | str():
            text = f"{value!r}".encode(errors="surrogatepass")
            into.update(f"{type(value).__name__}{len(text)}:".encode() + text)
        case bytes():
            into.update(f"bytes{len(value)}:".encode() + value)
        case np.ndarray() if value.dtype == object:
            _feed(into, value.tolist())
        case np.ndarray() | np.generic():
            array = np.ascontiguousarray(value)
            into.update(f"{array.dtype.str}{array.shape}:".encode())
            into.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
        case tuple() | list():
            into.update(f"sequence{len(value)}:".encode())
            for one in value:
                _feed(into, one)
        case set() | frozenset():
            _feed(into, sorted(map(repr, value)))
        case Mapping():
            into.update(f"mapping{len(value)}:".encode())
            for key, one in value.items():
                _feed(into, key)
                _feed(into, one)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            into.update(f"{type(value).__module__}.{type(value).__qualname__}:".encode())
            for field in dataclasses.fields(value):
                _feed(into, field.name)
                _feed(into, getattr(value, field.name))
        case _:
            raise TypeError(f"{type(value).__name__} has no hash by its content")
