"""Fields of dataclasses as options: described once, their types checked, read from text, shown to people."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Described:
    """What is said of an option, once: for the command line, the checks, the reference page.

    Attributes:
        help: What it does, without a full stop.
        group: What it is about.
        flag: On the command line, such as "--layer" or "--bench/--no-bench"; "" if it is spelled as its name
            is, None where there is none.
        metavar: What stands for its value there.
        at_least, above: The range of a number, or of each of several.
        otherwise: What holds where it is not given, if the default does not say it.
        places: Options of passes that it sets, as (pass, option).
    """

    help: str
    group: str = ""
    flag: str | None = ""
    metavar: str | None = None
    at_least: float | None = None
    above: float | None = None
    otherwise: str = ""
    places: tuple[tuple[str, str], ...] = ()

    def problem(self, value: object) -> str:
        """Why a value is out of range, as the end of a sentence about it; "" where it is not."""
        for number in value if isinstance(value, tuple | list) else (value,):
            if not isinstance(number, int | float):
                continue
            if self.at_least is not None and not number >= self.at_least:
                return f"must be {self.at_least:g} or more, not {number}"
            if self.above is not None and not self.above < number < float("inf"):
                return f"must be a number above {self.above:g}, not {number}"
        return ""


def option(
    default: T,
    help: str,
    *,
    group: str = "",
    flag: str | None = "",
    metavar: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    otherwise: str = "",
    places: tuple[tuple[str, str], ...] = (),
) -> T:
    """A field of a dataclass that is an option; see `Described`. A mapping as default is copied."""
    described = Described(help, group, flag, metavar, at_least, above, otherwise, places)
    metadata = {"help": help, "described": described}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


def described(field: dataclasses.Field[object]) -> Described:
    """What is said of a field; of those without `option` no more than a help text."""
    known = field.metadata.get("described")
    return known if isinstance(known, Described) else Described(str(field.metadata.get("help", "")))


def check_numbers(of: object, **least: float) -> None:
    """Check that fields of a dataclass are finite, and none below its least.

    Raises:
        ValueError: One is.
    """
    for name, bound in least.items():
        value = getattr(of, name)
        if not bound <= value < math.inf:
            raise ValueError(f"{name}={value}: give a number of {bound:g} or more")


def option_fields(of: type) -> tuple[dataclasses.Field[object], ...]:
    """The fields of a dataclass that have a help text."""
    return tuple(f for f in dataclasses.fields(of) if "help" in f.metadata)


def help_of(of: type, name: str) -> str:
    """What an option of a dataclass does: for another that is the same."""
    return next(described(field).help for field in option_fields(of) if field.name == name)


def spelled(field: dataclasses.Field[object]) -> str:
    """The option as messages call it: its flag, or its name in Python where it has none."""
    flag = described(field).flag
    if flag is None:
        return field.name
    return flag.partition("/")[0] or f"--{field.name.replace('_', '-')}"


def is_default(field: dataclasses.Field[object], value: object) -> bool:
    """Whether a value says nothing: it is the default, or as empty as that."""
    default = default_of(field)
    return value is None or value == default or (not value and not default and value is not False)


def from_text(text: str, hint: object) -> object:
    """The value that a command line's text stands for under a type; ValueError where it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in known:
            raise ValueError(text)
        return known[text.lower()]
    if hint is int:
        return int(text)
    if hint is float:
        return float(text)
    if origin is Literal:
        for value in arguments:
            if text == str(value):
                return value
        raise ValueError(text)
    return convert(text, hint)


def convert(value: object, hint: object) -> object:
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
    if hint is int or hint is float:
        return _number(value, hint)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ValueError
    return value


def _number(value: object, hint: object) -> int | float:
    """A number as one of Python, NumPy's too; ValueError where it is none, or no whole one."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value) if hint is int else float(value)
    if isinstance(value, numbers.Real) and hint is float and not isinstance(value, bool):
        return float(value)
    raise ValueError


def describe(hint: object) -> str:
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
    words: dict[object, str] = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Path: "a path",
    }
    return words.get(hint) or str(getattr(hint, "__name__", hint))


def default_of(option: dataclasses.Field[object]) -> object:
    """A field's default; None where it has none."""
    if option.default is not dataclasses.MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else None


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest one, and all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1) or [one for one in known if one == name.lower()]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
