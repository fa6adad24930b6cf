"""Every way in which the tool gives up, with the exit code that a pipeline sees."""

from __future__ import annotations

from typing import ClassVar


class OnnxDecompError(Exception):
    """Something that the user can act on: one line that says what is wrong and what to do."""

    exit_code: ClassVar[int] = 3


class GateError(OnnxDecompError):
    """A numeric or accuracy gate failed (exit code 1)."""

    exit_code = 1


class UsageError(OnnxDecompError):
    """The request makes no sense: an unknown method, a rank of 0, an unwritable output (exit code 2)."""

    exit_code = 2


class ModelError(OnnxDecompError):
    """The model is invalid, damaged or not supported (exit code 3)."""

    exit_code = 3


class DefectError(ModelError):
    """An error of ours: layers are kept, where that avoids it, before the run is given up (exit code 3).

    Attributes:
        layer: The layer that it comes from, as (graph, name), where that is known.
    """

    def __init__(self, message: str, *, layer: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.layer = layer


class ProviderError(OnnxDecompError):
    """The execution provider asked for cannot run here (exit code 4)."""

    exit_code = 4


class UnchangedError(OnnxDecompError):
    """Nothing was worth decomposing, and the caller asked to fail then (exit code 5)."""

    exit_code = 5
