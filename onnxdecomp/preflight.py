"""What would fail after the work is found before it: the provider, a model that does not load, bad data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.data.read import Prepared, read_feeds
from onnxdecomp.runtime import providers
from onnxdecomp.runtime.session import TensorSpec, inputs_of, open_session

if TYPE_CHECKING:
    from onnxdecomp.data.read import Data


def inputs(model: Path) -> tuple[TensorSpec, ...]:
    """The inputs that must be fed.

    Raises:
        ModelError: ONNX Runtime does not load the model.
    """
    return inputs_of(open_session(model, low_memory=True))


def check(model: Path, *, provider: str, data: Data | None) -> None:
    """Check that the model runs where it is to be verified and timed, and that the data fits it.

    The model is loaded on the CPU, which every provider falls back on. Of data given by name only the first
    sample is looked at; other data are left for the verification, since they may be read once only.

    Raises:
        ProviderError: The provider does not start.
        ModelError: ONNX Runtime does not load the model.
        UsageError: There is no such provider, or the data does not fit the model.
    """
    if providers.ort_name(provider) != providers.ORT_NAMES["cpu"]:
        start = providers.start(provider)
        if not start.started:
            raise providers.not_started(start)
    session = open_session(model, low_memory=True)
    if isinstance(data, str | Path | Prepared):
        read_feeds(data, inputs_of(session), samples=1)
