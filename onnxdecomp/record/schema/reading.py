"""JSON values read as the dataclasses of a record."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from onnxdecomp.core.json_values import Json
from onnxdecomp.runtime.jsonio import plain

T = TypeVar("T")


class MalformedError(ValueError):
    """A value that is not of the form wanted; the message begins with the place."""


def read(kind: type[T], value: Json) -> T:
    """The value as a dataclass; keys that it does not have are left out.

    Raises:
        MalformedError: A key is missing, or a value is of another type.
    """
    return cast(T, _read(kind, value, ""))


def recorded(kind: type[T], value: object) -> T:
    """A value of a run as a part of the record, which has the same names.

    A number that is not finite is None where the part may have that, and fields that it lacks are left out.

    Raises:
        MalformedError: The value lacks what the part holds.
    """
    return read(kind, plain(value, finite=False))


@cache
def hints(kind: type) -> Mapping[str, object]:
    """The types of a dataclass's fields; what is open (Json) is `object`."""
    return get_type_hints(kind, localns={"Json": object}, include_extras=True)


def _read(hint: object, value: object, place: str) -> object:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint(**dict(_fields(hint, value, place)))
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _read(parts[0], value, place)
    if kind in (Union, types.UnionType):
        return _any_of(parts, value, place)
    if kind is Literal:
        return _expect(value in parts, value, place)
    if kind is tuple:
        items = cast(Sequence[object], _expect(isinstance(value, list | tuple), value, place))
        return tuple(_read(parts[0], item, f"{place}/{index}") for index, item in enumerate(items))
    if kind is not None and issubclass(kind, Mapping):
        held = cast(Mapping[object, object], _expect(isinstance(value, Mapping), value, place))
        return {str(key): _read(parts[1], item, f"{place}/{key}") for key, item in held.items()}
    if hint in (int, float):
        wanted = int if hint is int else (int, float)
        return _expect(isinstance(value, wanted) and not isinstance(value, bool), value, place)
    return _expect(isinstance(value, cast(type, hint)), value, place)


def _fields(kind: type, value: object, place: str) -> Iterator[tuple[str, object]]:
    held = cast(Mapping[str, object], _expect(isinstance(value, Mapping), value, place))
    for field in dataclasses.fields(kind):
        if field.name in held:
            yield field.name, _read(hints(kind)[field.name], held[field.name], f"{place}/{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise MalformedError(f"{place or 'top level'}: {field.name!r} is missing")


def _any_of(kinds: Sequence[object], value: object, place: str) -> object:
    """The value as one of the types; where None is among them it stands for numbers that are not finite."""
    if type(None) in kinds and (value is None or (isinstance(value, float) and not math.isfinite(value))):
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return _read(others[0], value, place)
    return _expect(isinstance(value, tuple(cast(type, kind) for kind in others)), value, place)


def _expect(holds: bool, value: T, place: str) -> T:
    if not holds:
        raise MalformedError(f"{place or 'top level'}: {str(value)[:60]!r} is not what belongs there")
    return value
