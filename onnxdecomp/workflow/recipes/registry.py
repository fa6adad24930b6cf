"""What recipes there are, and the configuration that one of them stands for.

A recipe's file has its `version`, a `summary`, what the run needs besides (`needs`), perhaps a `remark`, and
the options of CompressConfig by group, as the JSON form of a configuration has them. Its version is raised
when its options change: `cnn-cpu@1` says which one is meant.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from onnxdecomp.core.options import suggest
from onnxdecomp.errors import UsageError
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.config_json import VERSION, from_json

_PACKAGE = "onnxdecomp.workflow.recipes"


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        name: As --recipe takes it.
        version: Of its options.
        summary: What it is for, a sentence.
        needs: What a run needs besides the model, such as "--calib"; "" for nothing.
        groups: Its options, by group and name.
        remark: What else one should know before trusting it; "" for nothing.
    """

    name: str
    version: int
    summary: str
    needs: str
    groups: Mapping[str, Mapping[str, object]]
    remark: str = ""

    @property
    def config(self) -> CompressConfig:
        """What it asks for; options beside it win."""
        return from_json({"version": VERSION, **self.groups})

    @property
    def options(self) -> dict[str, object]:
        """Its options without their groups."""
        return {name: value for table in self.groups.values() for name, value in table.items()}


def names() -> list[str]:
    """The recipes of this release, in alphabetical order."""
    suffix = ".toml"
    found = (file.name for file in files(_PACKAGE).iterdir())
    return sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix))


def recipe(name: str) -> Recipe:
    """A recipe by its name, or by name and version.

    Args:
        name: Such as "cnn-cpu" or "cnn-cpu@1".

    Raises:
        UsageError: There is none of that name, or this release has another version of it.
    """
    short, _, version = name.partition("@")
    if short not in names():
        raise UsageError(f"--recipe {name}: unknown recipe {short!r}{suggest(short, names())}")
    said = tomllib.loads(files(_PACKAGE).joinpath(f"{short}.toml").read_text(encoding="utf-8"))
    number, summary, needs = said.pop("version"), said.pop("summary"), said.pop("needs")
    remark = said.pop("remark", "")
    if version not in ("", str(number)):
        raise UsageError(
            f"--recipe {name}: this release has version {number} of it; see 'onnxdecomp recipes'"
        )
    return Recipe(short, number, summary, needs, said, remark)
