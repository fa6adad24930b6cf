"""The passes that are installed, and their options.

Passes come from the entry points of the group `onnxdecomp.passes` (see onnxdecomp.core.plugins).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, ClassVar

from onnxdecomp.core import plugins
from onnxdecomp.core.options import default_of, describe, option_fields
from onnxdecomp.core.plugins import Plugin
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnxdecomp.pipeline.base import Pass

GROUP = "onnxdecomp.passes"

# Stands in for our own entry point in a checkout that is on the path but not installed.
_BUILTIN = EntryPoint("builtin", "onnxdecomp_passes:PASSES", GROUP)


@dataclass(frozen=True)
class PassInfo(Plugin):
    """A pass that can be named in a pipeline."""

    kind: ClassVar[str] = "pass"

    def load(self) -> type[Pass]:
        """The pass's class, a frozen dataclass.

        Raises:
            UsageError: Two packages register the name, or the class cannot be imported or is no Pass.
        """
        from onnxdecomp.pipeline.base import Pass

        loaded = self.imported()
        if not (isinstance(loaded, type) and issubclass(loaded, Pass) and dataclasses.is_dataclass(loaded)):
            raise UsageError(
                f"{self.label} is not a dataclass derived from onnxdecomp.pipeline.base.Pass: {self.target}"
            )
        return loaded

    @property
    def summary(self) -> str:
        """What the pass does, in a sentence; raises as `load` does."""
        return self.load().summary


@dataclass(frozen=True)
class OptionInfo:
    """An option of a pass, as a configuration may set it."""

    name: str
    type: str
    default: object
    help: str


def discover() -> tuple[Mapping[str, PassInfo], tuple[str, ...]]:
    """The passes that are installed, by name, and a line for every broken entry point."""
    return plugins.discover(_BUILTIN, PassInfo)


def available() -> Mapping[str, PassInfo]:
    """The passes that are installed, by name. A package whose entry point is broken is left out."""
    return discover()[0]


def options(kind: type[Pass]) -> tuple[OptionInfo, ...]:
    """The options of a pass for people: the fields of its dataclass that have a help text."""
    hints = typing.get_type_hints(kind)
    return tuple(
        OptionInfo(f.name, describe(hints[f.name]), default_of(f), str(f.metadata["help"]))
        for f in option_fields(kind)
    )
