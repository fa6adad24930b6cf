"""Fields of dataclasses as options: their types checked, read from text, described to people."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal


def from_text(text: str, hint: Any) -> object:
    """The value that a command line's text stands for under a type; ValueError where it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    if hint in (int, float):
        return hint(text)
    if origin is Literal:
        for value in arguments:
            if text == str(value):
                return value
        raise ValueError(text)
    return convert(text, hint)


def convert(value: object, hint: Any) -> object:
    """`value` as the type says; ValueError where it is not one. Types unknown here take anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for member in arguments:
            try:
                return convert(value, member)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in arguments):
            raise ValueError
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ValueError
        variadic = origin is list or arguments[-1:] == (Ellipsis,)
        members = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(members) != len(value):
            raise ValueError
        return origin(convert(v, m) for v, m in zip(value, members, strict=True))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        raise ValueError
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ValueError
    return value


def describe(hint: Any) -> str:
    """The type in words for people: "a whole number", "left|right"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments if a is not type(None))
    if origin is Literal:
        return "|".join(str(a) for a in arguments)
    if origin in (tuple, list):
        return "a list of " + describe(arguments[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table"
    words = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Path: "a path",
    }
    return words.get(hint) or str(getattr(hint, "__name__", hint))


def default_of(option: dataclasses.Field[Any]) -> object:
    """A field's default; None where it has none."""
    if option.default is not dataclasses.MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else None


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest one, and all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
