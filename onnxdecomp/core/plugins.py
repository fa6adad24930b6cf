"""Finding what packages register in a group of entry points: names, each with its "module:Class".

An entry point names a mapping from names to "module:Class". A class is imported only when it is used, so a
broken package harms only those who ask for what it registers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, TypeVar

from onnxdecomp.errors import UsageError

P = TypeVar("P", bound="Plugin")


@dataclass(frozen=True)
class Plugin:
    """A class that is registered under a name. Subclasses say of which kind, and check what they load.

    Attributes:
        kind: "pass" or "method", for messages.
        name: What it is called.
        target: "module:Class".
        distribution: The installed package it comes from, with its version.
        rivals: Other distributions that register the same name.
    """

    kind: ClassVar[str]

    name: str
    target: str
    distribution: str
    rivals: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What messages call it: its kind, name and package."""
        return f"{self.kind} {self.name!r} of {self.distribution}"

    def imported(self) -> object:
        """What stands at the target.

        Raises:
            UsageError: Two packages register the name, or the class cannot be imported.
        """
        if self.rivals:
            both = " and ".join((self.distribution, *self.rivals))
            raise UsageError(f"{self.kind} {self.name!r} is registered by {both}: uninstall one of them")
        module, _, attribute = self.target.partition(":")
        try:
            found: object = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise UsageError(f"{self.label} cannot be imported: {line(error)}") from error
        return found


def discover(builtin: EntryPoint, make: Callable[[str, str, str], P]) -> tuple[dict[str, P], tuple[str, ...]]:
    """What is registered, by name, and a line for every broken entry point.

    Args:
        builtin: Our own entry point, which also stands in for itself in a checkout that is on the path but
            not installed. Its group is the one that is looked through.
        make: A plugin of its name, target and distribution.
    """
    found: dict[str, P] = {}
    problems: list[str] = []
    points = list(entry_points(group=builtin.group))
    if not any(point.value == builtin.value for point in points):
        points.append(builtin)

    def origin(point: EntryPoint) -> str:
        if point.dist is not None:
            return f"{point.dist.name} {point.dist.version}"
        return "onnxdecomp" if point.value == builtin.value else "an unknown package"

    # Ours first, then by name: the listing does not depend on the order of sys.path.
    for point in sorted(points, key=lambda p: (p.value != builtin.value, origin(p), p.name)):
        whose = origin(point)
        try:
            registered = {str(name): str(target) for name, target in point.load().items()}
        except Exception as error:
            problems.append(f"{whose}: entry point {point.name!r} cannot be loaded: {line(error)}")
            continue
        for name, target in registered.items():
            if name in found:
                found[name] = replace(found[name], rivals=(*found[name].rivals, whose))
            else:
                found[name] = make(name, target, whose)
    return found, tuple(problems)


def line(error: BaseException) -> str:
    """An error's message in one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
