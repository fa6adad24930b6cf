"""What was timed once, kept on disk.

One SQLite file for all models, since a timing belongs to shapes and to a machine and not to a model. It is a
convenience: what goes wrong with it becomes a note for the user, and the chains are timed again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import ConvSpec, Layer
from onnxdecomp.core.steps import Shape, Step
from onnxdecomp.latency.context import Neighbours
from onnxdecomp.runtime.cache_folder import cache_folder
from onnxdecomp.runtime.providers import Options
from onnxdecomp.runtime.setting import Setting

FILE = "latency-3.sqlite"
"""Its number changes with what is stored and how it is measured."""

_SECONDS = 5.0
"""How long to wait for another process that writes."""

_AT_ONCE = 500
"""Keys asked for in one query: SQLite once took at most 999."""


@dataclass(frozen=True)
class Where:
    """What a timing depends on besides the model timed.

    Attributes:
        provider: The short name, see onnxdecomp.runtime.providers.
        runtime: ONNX Runtime's version.
        device: What it runs on, see onnxdecomp.runtime.environment.device.
        threads: Threads within an operator; 0 for ONNX Runtime's own choice.
        precision: "float" (as the layer is), or the kernels of a quantized model.
        options: Of the provider.
    """

    provider: str
    runtime: str
    device: str
    threads: int
    precision: str = "float"
    options: Options = ()

    @property
    def setting(self) -> Setting:
        """What a session is opened under."""
        return Setting(self.provider, self.threads, given=self.options)

    def described(self) -> dict[str, Any]:
        """As plain values; without options it is what it was before there were some."""
        return {name: value for name, value in asdict(self).items() if value != ()}


@dataclass(frozen=True)
class Stored:
    """A chain's latency: that of its dense layer in milliseconds, and its ratio to that."""

    dense_ms: float
    ratio: float


def where(setting: Setting, precision: str = "float") -> Where:
    """What timings of layers on this machine depend on, under a setting.

    Its batch is in the shapes of the layers, and its own precision in the provider's options or, where models
    are converted for it, in `precision`: the kernels.

    Raises:
        UsageError: There is no such provider.
    """
    import onnxruntime

    from onnxdecomp.runtime import environment, providers

    short = providers.short_name(providers.ort_name(setting.provider))
    options = tuple(sorted(setting.options.items()))
    device = environment.device(short)
    # What a card takes has nothing to do with the threads of the processor.
    threads = setting.threads if providers.provider_of(short).device == "processor" else 0
    return Where(short, onnxruntime.__version__, device, threads, precision, options)


def cache_file() -> Path:
    """The file, see onnxdecomp.runtime.cache_folder."""
    return cache_folder() / FILE


def key_of(
    chain: Chain, dense: Chain, layer: Layer, input_shape: Shape, around: Neighbours, on: Where
) -> str:
    """Equal for chains that take the same time: shapes, attributes, neighbours and machine, no numbers."""
    described = {
        "chain": _described(chain),
        "dense": _described(dense),
        "op_type": layer.op_type,
        "dtype": layer.dtype,
        "input": list(input_shape),
        "around": asdict(around),
        "where": on.described(),
    }
    if layer.recurrence:
        described |= {"recurrence": [layer.recurrence]}
    text = json.dumps(described, sort_keys=True, default=int)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(chain: Chain) -> list[Any]:
    return [[_step(step) for step in chain.steps], chain.bias is not None, chain.groups]


def _step(step: Step) -> dict[str, Any]:
    """The step's fields but its label, of its weight the shape."""
    known: dict[str, Any] = {"step": type(step).__name__}
    for name in (option.name for option in fields(step) if option.name != "label"):
        value = getattr(step, name)
        if isinstance(value, np.ndarray):
            value = list(value.shape)
        known[name] = asdict(value) if isinstance(value, ConvSpec) else value
    return known


def load(keys: Iterable[str], file: Path) -> tuple[dict[str, Stored], str | None]:
    """What is stored of these keys; and a note where the cache could not be read."""
    if not file.exists():
        return {}, None
    wanted = list(dict.fromkeys(keys))
    found: dict[str, Stored] = {}
    try:
        with closing(_open(file)) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'timings'").fetchone():
                return {}, None
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(
                    f"SELECT key, dense_ms, ratio FROM timings WHERE key IN ({marks})", part
                )
                found |= {key: Stored(float(dense), float(ratio)) for key, dense, ratio in rows}
    except (sqlite3.Error, OSError, TypeError, ValueError) as error:
        return {}, _note(file, "not read", error)
    return found, None


def store(entries: Mapping[str, Stored], file: Path) -> str | None:
    """Keep these, in place of what was stored under their keys; a note where that is not possible."""
    if not entries:
        return None
    rows = [(key, entry.dense_ms, entry.ratio) for key, entry in entries.items()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(_open(file)) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS timings (key TEXT PRIMARY KEY, dense_ms REAL, ratio REAL)"
            )
            database.executemany("INSERT OR REPLACE INTO timings VALUES (?, ?, ?)", rows)
    except (sqlite3.Error, OSError) as error:
        return _note(file, "not written", error)
    return None


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=_SECONDS)


def _note(file: Path, what: str, error: Exception) -> str:
    return f"the cache of timings {file} was {what} ({error}); delete it, or set ONNXDECOMP_CACHE"
