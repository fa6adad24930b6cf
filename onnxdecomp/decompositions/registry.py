"""The decompositions by name, those of other packages too; to add one: one file and one line in METHODS.

Other packages register theirs by an entry point of the group `onnxdecomp.decompositions` (see
onnxdecomp.core.plugins).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import typing
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

from onnxdecomp.core import plugins
from onnxdecomp.core.options import convert, default_of, from_text, suggest
from onnxdecomp.core.options import describe as describe_type
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.errors import UsageError

METHODS: Mapping[str, str] = {
    "svd": "onnxdecomp.decompositions.svd:Svd",
    "tucker": "onnxdecomp.decompositions.tucker:Tucker",
    "cp": "onnxdecomp.decompositions.cp:Cp",
    "tt": "onnxdecomp.decompositions.tt:Tt",
    "tr": "onnxdecomp.decompositions.tr:Tr",
    "ht": "onnxdecomp.decompositions.ht:Ht",
    "spatial": "onnxdecomp.decompositions.spatial:Spatial",
    "kronecker": "onnxdecomp.decompositions.kronecker:Kronecker",
    "btt": "onnxdecomp.decompositions.btt:Btt",
    "tproduct": "onnxdecomp.decompositions.tproduct:Tproduct",
    "btd": "onnxdecomp.decompositions.btd:Btd",
    "shared": "onnxdecomp.decompositions.shared:Shared",
}
"""Name to "module:Class" of our own; imported on use. They are what "auto" chooses from: what a run does by
default does not depend on what else is installed."""

JOINT = frozenset(("shared",))
"""Those of them that take several layers at once: no candidate for one layer alone."""

GROUP = "onnxdecomp.decompositions"
_BUILTIN = EntryPoint("builtin", f"{__name__}:METHODS", GROUP)
_WORD = re.compile(r"[a-z]+")
_RESERVED = ("auto", "keep", *CUTS)


@dataclasses.dataclass(frozen=True)
class MethodInfo(plugins.Plugin):
    """A method that can be named."""

    kind: ClassVar[str] = "method"

    def load(self) -> type[Decomposition]:
        """The class of the method, a frozen dataclass.

        Raises:
            UsageError: Two packages register the name, or it cannot be one; or the class cannot be imported,
                or is no Decomposition of that name.
        """
        if not _WORD.fullmatch(self.name) or self.name in _RESERVED:
            taken = f", and not {', '.join(_RESERVED[:-1])} or {_RESERVED[-1]}"
            taken = taken if self.name in _RESERVED else ""
            raise UsageError(f"{self.label}: a method's name is a word of the letters a to z{taken}")
        loaded = self.imported()
        if isinstance(loaded, type) and dataclasses.is_dataclass(loaded):
            try:
                made = loaded()  # the protocol's attributes are looked for on a value
                typing.get_type_hints(loaded)
            except Exception as error:
                why = plugins.line(error)
                raise UsageError(f"{self.label} cannot be made with its defaults: {why}") from error
            if isinstance(made, Decomposition):
                if made.name != self.name:
                    raise UsageError(f"{self.label} calls itself {made.name!r}: {self.target}")
                return typing.cast(type[Decomposition], loaded)
        raise UsageError(
            f"{self.label} is not a dataclass with all that onnxdecomp.decompositions.base.Decomposition "
            f"asks for: {self.target}"
        )


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a method: a field of its class.

    Attributes:
        name, default: The field's.
        type: Its type.
        help: The first sentence that the class's docstring has on it.
    """

    name: str
    type: Any
    default: object
    help: str


@functools.lru_cache(maxsize=1)
def _discovered(path: tuple[str, ...]) -> tuple[Mapping[str, MethodInfo], tuple[str, ...]]:
    return plugins.discover(_BUILTIN, MethodInfo)


def discover() -> tuple[Mapping[str, MethodInfo], tuple[str, ...]]:
    """The methods that are installed, by name, and a line for every broken entry point."""
    return _discovered(tuple(sys.path))  # a search asks for methods thousands of times


def names() -> tuple[str, ...]:
    """The methods' names in the order in which they are listed: ours, then those of other packages."""
    return tuple(discover()[0])


@functools.lru_cache
def _loaded(info: MethodInfo) -> type[Decomposition]:
    return info.load()


def cls(name: str) -> type[Decomposition]:
    """The class of the method of that name, a frozen dataclass.

    Raises:
        UsageError: No such method, or the package that it comes from is broken.
    """
    return _loaded(_info(name))


def _info(name: str) -> MethodInfo:
    found, problems = discover()
    if name not in found:
        broken = f" ({'; '.join(problems)})" if problems else ""
        raise UsageError(f"unknown method {name!r}{suggest(name, (*found, *CUTS))}{broken}")
    return found[name]


def package_of(name: str) -> str | None:
    """The package that a method comes from, with its version; None for our own.

    Raises:
        UsageError: No such method.
    """
    return None if name in METHODS else _info(name).distribution


def options(name: str) -> tuple[Option, ...]:
    """The options of the method of that name."""
    method = cls(name)
    hints = typing.get_type_hints(method)
    text = inspect.getdoc(method) or ""
    return tuple(
        Option(f.name, hints[f.name], default_of(f), _sentence(text, f.name))
        for f in dataclasses.fields(method)  # type: ignore[arg-type]
    )


def _sentence(docstring: str, field: str) -> str:
    """The first sentence on a field in the Attributes section of a docstring."""
    found = re.search(rf"^    {field}: (.*?)(?=^    \w+: |^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    words = " ".join(found[1].split()) if found else ""
    return re.split(r"(?<=\.)\s(?=[A-Z])", words)[0].rstrip(".")


def get(name: str, **values: Any) -> Decomposition:
    """The method of that name with these options: values, or the text that a command line has for them.

    Raises:
        UsageError: No such method, or the method has no such option, or not this value for it.
    """
    known = {option.name: option.type for option in options(name)}
    arguments: dict[str, object] = {}
    for option, value in values.items():
        if option not in known:
            raise UsageError(f"method {name} has no option {option!r}{suggest(option, known)}")
        hint = known[option]
        try:
            arguments[option] = from_text(value, hint) if isinstance(value, str) else convert(value, hint)
        except ValueError:
            expected = describe_type(hint)
            raise UsageError(f"{option} of method {name} must be {expected}, not {value!r}") from None
    try:
        return cls(name)(**arguments)
    except ValueError as error:
        raise UsageError(f"method {name}: {error}") from error


def is_joint(name: str) -> bool:
    """Whether the method of that name takes several layers together."""
    return name in JOINT or name in CUTS


def describe() -> list[dict[str, Any]]:
    """What every method that can be loaded is, as plain values: name, summary, ranks, layers, options, paper.

    Those that cut channels, and so have neither ranks nor options, come last. Those that take several layers
    together say so ("joint"), those of other packages which one it is ("distribution").
    """
    chains = [_described(name) for name in names() if problem_of(name) is None]
    return chains + [
        {
            "name": cut.name,
            "summary": cut.summary,
            "ranks": [],
            "takes": list(cut.takes),
            "options": {},
            "paper": cut.paper,
            "joint": True,
        }
        for cut in CUTS.values()
    ]


def problem_of(name: str) -> str | None:
    """Why the method of that name cannot be used, where its package is broken; None where it can."""
    try:
        cls(name)
    except UsageError as error:
        return str(error)
    return None


def problems() -> tuple[str, ...]:
    """A line for every entry point and every method that cannot be loaded."""
    found, broken = discover()
    return (*broken, *(problem for name in found if (problem := problem_of(name)) is not None))


def _described(name: str) -> dict[str, Any]:
    method, package = cls(name), package_of(name)
    return {
        "name": name,
        "summary": method.summary,
        "ranks": list(method.rank_names),
        "takes": list(method.takes),
        "options": {option.name: option.default for option in options(name)},
        "paper": method.paper,
        **({"joint": True} if name in JOINT else {}),
        **({} if package is None else {"distribution": package}),
    }
