"""Entry points of packages that are not installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint

import pytest

from onnxdecomp.core import plugins


class Dist:
    """As much of a distribution as an entry point is asked for."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name, "1.0"


def register_points(
    monkeypatch: pytest.MonkeyPatch, group: str, module: str, mappings: Mapping[str, str]
) -> None:
    """Have these entry points found, and no others.

    Args:
        monkeypatch: Undoes it.
        group: Of the entry points.
        module: Where attributes are that are named without one.
        mappings: Package to "attribute" or "module:attribute"; each is of version 1.0.
    """
    points = []
    for name, attribute in mappings.items():
        value = attribute if ":" in attribute else f"{module}:{attribute}"
        point = EntryPoint(name, value, group)
        vars(point).update(dist=Dist(name))
        points.append(point)
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
