"""What would fail after the work is found before it: the provider, a model that does not load, bad data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.data.culprit import culprit
from onnxdecomp.data.mask import Mask, masked_inputs
from onnxdecomp.data.random_inputs import sizes_given
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import provider_start, providers
from onnxdecomp.runtime.fatal import refuse_fatal_feed, refuse_fatal_on_cpu
from onnxdecomp.runtime.interface import interface_of
from onnxdecomp.runtime.session import TensorSpec, inputs_of, open_session, run

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.read import Data


_NAMED = 4
"""Arrays that a note names."""


def inputs(model: Path) -> tuple[TensorSpec, ...]:
    """The inputs that must be fed.

    Raises:
        ModelError: ONNX Runtime does not load the model.
    """
    return inputs_of(open_session(model, low_memory=True))


def mask(model: Path, wanted: str) -> Mask | None:
    """The inputs of the model that are masks, see onnxdecomp.data.mask.

    Raises:
        ModelError: The file is not a model.
        UsageError: `wanted` names no mask.
    """
    ports = interface_of(model).inputs
    return masked_inputs([TensorSpec(port.name, port.shape or (), port.dtype) for port in ports], wanted)


def read(model: Path, data: Data, *, samples: int | None = None) -> Feeds:
    """The feeds that `data` holds for the model, which runs on the first of them.

    Raises:
        ModelError: ONNX Runtime does not load the model.
        UsageError: The data do not fit the model, or it fails on the first feed.
    """
    refuse_fatal_on_cpu(model)
    session = open_session(model, low_memory=True)
    feeds = read_feeds(data, inputs_of(session), samples=samples)
    refuse_fatal_feed(model, next(iter(feeds)))
    if (found := culprit(feeds, lambda feed: run(session, feed), first=1)) is not None:
        raise UsageError(found)
    return feeds


def said_of_unused(feeds: Feeds | None) -> tuple[str, ...]:
    """That arrays are left alone which are no inputs of the model: a name may have been meant otherwise."""
    if feeds is None or not feeds.unused:
        return ()
    found = ", ".join(map(repr, feeds.unused[:_NAMED]))
    more = f" and {len(feeds.unused) - _NAMED} more" if len(feeds.unused) > _NAMED else ""
    hint = "" if feeds.labels is not None else ", nor labels, which are the array 'labels'"
    return (f"{feeds.source}: left alone, for no inputs of the model{hint}: {found}{more}",)


def check(model: Path, *, provider: str, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
    """Check that the model runs where it is to be verified and timed, and has inputs of these shapes.

    The model is loaded on the CPU, which every provider falls back on.

    Raises:
        ProviderError: The provider does not start.
        ModelError: ONNX Runtime does not load the model.
        UsageError: There is no such provider, or a shape fits no input.
    """
    if providers.ort_name(provider) != providers.ort_name("cpu"):
        start = provider_start.start(provider)
        if not start.started:
            raise provider_start.not_started(start)
    else:
        refuse_fatal_on_cpu(model)
    sizes_given(inputs_of(open_session(model, low_memory=True)), shapes or {})
