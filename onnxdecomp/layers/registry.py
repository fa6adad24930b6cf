"""The layer adapters by name, those of other packages too; to add one: one file and one line in ADAPTERS.

Other packages register theirs by an entry point of the group `onnxdecomp.layers` (see
onnxdecomp.core.plugins).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import onnx_ir as ir

from onnxdecomp.core import plugins
from onnxdecomp.core.layer import Layer
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.adapter import LayerAdapter, Operator

ADAPTERS: Mapping[str, str] = {
    "conv": "onnxdecomp.layers.conv:Conv",
    "linear": "onnxdecomp.layers.linear:Linear",
    "recurrent": "onnxdecomp.layers.recurrent:Recurrent",
    "embedding": "onnxdecomp.layers.embedding:Embedding",
    "einsum": "onnxdecomp.layers.einsum:Contraction",
    "dynamic-int8": "onnxdecomp.layers.dynamic_product:DynamicProduct",
    "matmul-nbits": "onnxdecomp.layers.matmul_nbits:MatMulNBits",
    "attention": "onnxdecomp.layers.attention:Attention",
}
"""Name to "module:Class" of our own; imported on use."""

GROUP = "onnxdecomp.layers"
_BUILTIN = EntryPoint("builtin", f"{__name__}:ADAPTERS", GROUP)


@dataclass(frozen=True)
class AdapterInfo(plugins.Plugin):
    """An adapter that is installed."""

    kind: ClassVar[str] = "layer adapter"

    def load(self) -> type[LayerAdapter]:
        """The adapter's class.

        Raises:
            UsageError: Two packages register the name; or the class cannot be imported, or is no LayerAdapter
                with all that one needs.
        """
        loaded = self.imported()
        if not (isinstance(loaded, type) and issubclass(loaded, LayerAdapter)):
            raise UsageError(
                f"{self.label} is not derived from onnxdecomp.layers.adapter.LayerAdapter: {self.target}"
            )
        lacks = sorted(getattr(loaded, "__abstractmethods__", ()))
        if not getattr(loaded, "operators", ()):
            lacks.insert(0, "operators")
        if lacks:
            raise UsageError(f"{self.label} lacks {', '.join(lacks)}: {self.target}")
        return loaded


@dataclass(frozen=True, eq=False)
class Adapters:
    """All adapters that are installed and can be used.

    Attributes:
        by_operator: The adapter of each operator, in the order in which they are listed: ONNX's own first.
        packages: The package, with its version, that an operator's adapter comes from; our own left out.
        problems: A line for everything that cannot be used.
    """

    by_operator: Mapping[Operator, type[LayerAdapter]]
    packages: Mapping[Operator, str]
    problems: tuple[str, ...]


def adapters() -> Adapters:
    """The installed adapters. One that is broken is left out, and named in `problems`."""
    return _adapters(tuple(sys.path))


@functools.lru_cache(maxsize=1)
def _adapters(path: tuple[str, ...]) -> Adapters:
    found, broken = plugins.discover(_BUILTIN, AdapterInfo)
    taken: dict[Operator, type[LayerAdapter]] = {}
    packages: dict[Operator, str] = {}
    problems = list(broken)
    for name, info in found.items():
        try:
            adapter = info.load()
        except UsageError as error:
            problems.append(str(error))
            continue
        for operator in adapter.operators:
            if operator in taken:
                problems.append(f"{info.label} is for {operator[1]}, which another one has already")
                continue
            taken[operator] = adapter
            if ADAPTERS.get(name) != info.target:
                packages[operator] = info.distribution
    ordered = sorted(taken.items(), key=lambda entry: entry[0][0] != "")
    return Adapters(dict(ordered), packages, tuple(problems))


def adapter_of(node: ir.Node) -> type[LayerAdapter] | None:
    """The adapter of a node's operator, if there is one."""
    return adapters().by_operator.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def timed(layer: Layer) -> LayerAdapter | None:
    """The adapter that such a layer is timed alone with; None where it is not."""
    for (_, op_type), adapter in adapters().by_operator.items():
        if op_type == layer.op_type:
            return adapter.timed(layer)
    return None


def per_channel() -> frozenset[str]:
    """Types of operators whose weights ONNX Runtime's quantizer takes channel by channel."""
    return frozenset().union(*(adapter.per_channel for adapter in adapters().by_operator.values()))
