"""Where a model's time goes: ONNX Runtime's own trace of its kernels, added up by layer.

The runtime fuses nodes and renames them on the way, so its names are traced back to the model's: a fused
node has the name of one of its nodes with something before or behind it, or, on the CPU's blocked layout,
that of its last output.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxdecomp.graph.attributes import node_name
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.session import Feed, open_session, run

MIN_RUNS, MAX_RUNS = 5, 50
_CONTAINERS = frozenset(("If", "Loop", "Scan"))
_HOPS = 4
"""Nodes that are fused behind a layer's own, at most: a normalisation, an addition, an activation."""


@dataclass(frozen=True)
class Profile:
    """Milliseconds of one run.

    Attributes:
        layers: By the name of the layer.
        other: Of all kernels that belong to no layer.
    """

    layers: Mapping[str, float]
    other: float

    @property
    def total(self) -> float:
        return sum(self.layers.values()) + self.other


def profile(
    path: Path, model: ir.Model, layers: Iterable[str], feed: Feed, *, threads: int, seconds: float = 1.0
) -> Profile:
    """Time the kernels of a model on the CPU, where a kernel's time is that of its work.

    Args:
        path: The file.
        model: The same, loaded.
        layers: Names of layers (those of names that several graphs use are not told apart).
        feed: One input.
        threads: Threads within an operator.
        seconds: About the time to take; the model runs at least MIN_RUNS times.

    Raises:
        ModelError: The model does not run.
    """
    return _by_layer(_kernels(path, feed, threads, seconds), model, set(layers))


def _kernels(path: Path, feed: Feed, threads: int, seconds: float) -> dict[str, float]:
    """Milliseconds of one run by ONNX Runtime's names of its kernels."""
    with temporary_files.folder() as folder:
        session = open_session(path, threads=threads, profile=folder / "trace")
        runs, start = 0, time.perf_counter()
        while runs < MIN_RUNS or (runs < MAX_RUNS and time.perf_counter() - start < seconds):
            run(session, feed)
            runs += 1
        trace = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in trace:
        name, ending = event.get("name", ""), "_kernel_time"
        if event.get("cat") == "Node" and name.endswith(ending):
            facts = event.get("args", {})
            # What a container takes, its inner kernels take.
            if facts.get("op_name") not in _CONTAINERS:
                spent[name.removesuffix(ending), str(facts.get("node_index"))].append(event["dur"])
    found: dict[str, float] = defaultdict(float)
    for (name, _), microseconds in spent.items():
        # A kernel in a loop's body runs several times in a run.
        found[name] += float(np.median(microseconds)) * len(microseconds) / runs / 1e3
    return found


def _by_layer(kernels: Mapping[str, float], model: ir.Model, layers: set[str]) -> Profile:
    owners, producers = _owners(model, layers)
    found: dict[str, float] = defaultdict(float)
    other = 0.0
    claimed: set[str] = set()
    for kernel, ms in kernels.items():
        node = _named(kernel, owners) or _behind(kernel, owners, producers, claimed)
        if owners.get(node):
            found[owners[node]] += ms
            claimed.add(node)
        else:
            other += ms
    return Profile(dict(found), other)


def _owners(model: ir.Model, layers: set[str]) -> tuple[dict[str, str], dict[str, ir.Node]]:
    """The layer that a node belongs to, "" where none, by the node's name; and the nodes by their outputs."""
    owners: dict[str, str] = {}
    producers: dict[str, ir.Node] = {}
    for place in places(model):
        for node in place.graph:
            own = node_name(node)
            owners[own] = node.metadata_props.get(LAYER) or (own if own in layers else "")
            producers |= {output.name: node for output in node.outputs if output.name}
    return owners, producers


def _named(kernel: str, owners: Mapping[str, str]) -> str:
    """The node whose name the kernel has, with what fusing has put around it; "" where there is none."""
    name = kernel.removeprefix("fused ")
    if name in owners:
        return name
    ends = [match.start() for match in re.finditer(r"[/_:]", name)]
    return next((name[:end] for end in reversed(ends) if owners.get(name[:end])), "")


def _behind(
    kernel: str, owners: Mapping[str, str], producers: Mapping[str, ir.Node], claimed: set[str]
) -> str:
    """The nearest node of a layer before the value that the kernel is named after."""
    first = producers.get(kernel.removesuffix("_nchwc"))
    nodes = [] if first is None else [first]
    for _ in range(_HOPS):
        for node in nodes:
            name = node_name(node)
            if owners.get(name) and name not in claimed:
                return name
        above = (value.producer() for node in nodes for value in node.inputs if value is not None)
        nodes = [node for node in above if node is not None]
    return ""
