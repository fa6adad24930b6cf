"""What a record says of the run itself: who made it, where, from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxdecomp.core.json_values import Json


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What wrote the record."""

    name: Literal["onnxdecomp"] = "onnxdecomp"
    version: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a result depends on besides the model.

    Attributes:
        onnxruntime: Version of ONNX Runtime.
        provider_requested: The execution provider asked for; null in a dry run.
        provider_used: The one that the models ran on; null if none was run.
        device: Name of the processor, or of the graphics card.
        threads: Threads within an operator.
        platform: Operating system.
        versions: Of Python and of the packages that results depend on.
    """

    onnxruntime: str | None
    provider_requested: str | None
    provider_used: str | None
    device: str
    threads: int | None
    platform: str
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where inputs came from.

    Attributes:
        source: The file, or what they were.
        samples: How many.
        sha256: Of the file, where the data are one.
    """

    source: str
    samples: int | None
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the run came about: what repeats it.

    Attributes:
        command: The command line; null where a Python function was called.
        started: ISO 8601, UTC.
        seconds: How long it took, without writing the record.
        seed: Of everything random.
        request: What was asked for: target, rank, rules, method, mask, plan and max_error of a compression,
            the gate of a comparison.
        data: By use: calib and eval, or data.
    """

    command: str | None
    started: str
    seconds: float
    seed: int
    request: Mapping[str, Json]
    data: Mapping[str, Inputs | None]


@dataclass(frozen=True, kw_only=True)
class File:
    """A model's file.

    Attributes:
        path: Null for a model in memory.
        sha256: Of the .onnx file.
        bytes: With external data.
    """

    path: str | None
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelFile(File):
    """A model that came in.

    Attributes:
        opset: Of ai.onnx.
        ir_version: Of the file.
    """

    opset: int | None
    ir_version: int | None
