"""What a record says of several models against the first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SizeRatios:
    """The first model's sizes over a model's own; null where one is not known."""

    bytes: float | None
    params: float | None
    macs: float | None


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """A file, and what it holds.

    Attributes:
        bytes: With external data.
        opset: Of ai.onnx.
        params: Numbers stored.
        macs: Of the layers with a constant weight.
        ratio: The first model's sizes over its own.
    """

    path: str
    sha256: str
    bytes: int
    opset: int | None
    ir_version: int | None
    params: int | None
    macs: int | None
    ratio: SizeRatios


@dataclass(frozen=True, kw_only=True)
class GateFailure:
    """A setting in which a model does not keep the gate, and why."""

    model: str
    provider: str
    batch: int
    threads: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What came of a gate."""

    expression: str
    passed: bool
    failures: tuple[GateFailure, ...]
