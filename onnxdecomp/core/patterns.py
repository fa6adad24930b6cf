"""Names as people give them: a name as it is, else a shell pattern of names."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Protocol, TypeAlias

from onnxdecomp.errors import UsageError

Names: TypeAlias = tuple[str, ...]
"""What a thing is called: any of these names may be given for it."""


class Named(Protocol):
    """A layer, or an operator that is none."""

    @property
    def name(self) -> str: ...
    @property
    def graph(self) -> str: ...


def names_of(layer: Named) -> Names:
    """A layer's name, and the one that inspect shows where it stands in a subgraph or function."""
    return (layer.name, f"{layer.graph}/{layer.name}") if layer.graph else (layer.name,)


def literal(patterns: Sequence[str], known: Iterable[Names]) -> tuple[str, ...]:
    """The patterns, those that are known names read literally: "layers[0]/fc" is that and nothing else."""
    names = set(chain.from_iterable(known))
    return tuple(glob.escape(pattern) if pattern in names else pattern for pattern in patterns)


def of_layers(patterns: Sequence[str], layers: Iterable[Named]) -> tuple[str, ...]:
    """The patterns as `literal` has them, each of which must match a layer of a model that has some.

    Raises:
        UsageError: A pattern matches none.
    """
    known = [names_of(layer) for layer in layers]
    made = literal(patterns, known)
    for given, pattern in zip(patterns, made, strict=True):
        if known and not any(matches(names, [pattern]) for names in known):
            brackets = " (in a pattern a bracket is written [[])" if "[" in given else ""
            raise UsageError(f"no layer matches {given!r}{brackets}; 'onnxdecomp inspect' lists their names")
    return made


def matches(names: Collection[str], patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, as `literal` returns them, fits one of the names."""
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def selected(names: Names, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether patterns let what has these names through; an empty `include` takes all."""
    return (not include or matches(names, include)) and not matches(names, exclude)
