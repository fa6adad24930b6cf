"""Windows: values of a model that changes, held up to where it still changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration import activation_cache as module
from onnxdecomp.calibration.activation_cache import HELD, Window
from onnxdecomp.calibration.activations import Observer, open_observer
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array
from onnxdecomp.core.steps import Convolve
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.layers.find import find
from onnxdecomp.layers.replace import Rewriter
from tests.builders.feeds import images
from tests.builders.graphs import loaded, match_of
from tests.builders.models import residual
from tests.builders.running import values

FEEDS = images()
ORDER = ("stem", "first", "second")


def opened(model: ir.Model, held: int = HELD) -> Window:
    feeds = Feeds(tuple(FEEDS), "the test", stackable=True)
    return Window(model, feeds, batch=4, threads=1, held=held)


def joined(window: Window, names: list[str], pending: set[ir.Node] | None = None) -> list[Array]:
    windows = list(window.advance(names, pending or set()))
    return [np.concatenate(arrays) for arrays in zip(*windows, strict=True)]


def damage(model: ir.Model, name: str) -> None:
    """Replace a layer by itself with half its weight."""
    match = next(s for s in find(model)[0] if s.layer.name == name)
    assert match.layer.conv is not None
    half = Convolve(match.layer.weight / 2, match.layer.conv)
    Rewriter(model).replace(
        match, Chain((half,), match.layer.bias, match.layer.inputs, match.layer.groups), {}
    )


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """What the sessions that windows open are fed with."""
    found: list[frozenset[str]] = []

    def spy(*args: object, **more: object) -> Observer:
        observer = open_observer(*args, **more)  # type: ignore[arg-type]
        found.append(observer.inputs)
        return observer

    monkeypatch.setattr(module, "open_observer", spy)
    return found


@pytest.mark.parametrize("held", [0, HELD])
def test_a_model_that_changes_on_the_way(held: int) -> None:
    """Layers are replaced one after the other, each after a look: every look shows the model as it is."""
    model = loaded(residual())
    window = opened(model, held)
    for done, name in enumerate(ORDER):
        pending = {node for later in ORDER[done:] for node in match_of(model, later).nodes}
        names = [str(match_of(model, name).x.name), *(["s"] if name == "second" else [])]
        for found, direct in zip(joined(window, names, pending), values(model, names, FEEDS), strict=True):
            np.testing.assert_allclose(found, direct, rtol=1e-5, atol=1e-6)
        damage(model, name)
    (y,) = joined(window, ["y"])
    np.testing.assert_allclose(y, values(model, ["y"], FEEDS)[0], rtol=1e-5, atol=1e-6)
    assert np.abs(y - values(loaded(residual()), ["y"], FEEDS)[0]).max() > 0.1


def test_only_what_follows_the_cut_is_computed(ran: list[frozenset[str]]) -> None:
    window = opened(loaded(residual()))
    joined(window, ["s"])
    joined(window, ["r"])
    assert ran == [frozenset({"x"}), frozenset({"s"})]
    joined(window, ["r", "s"])
    assert len(ran) == 2  # both are held
    joined(window, ["y"])
    assert ran[2] == frozenset({"r", "s"})


def test_a_cut_that_takes_too_much_is_not_moved_to(ran: list[frozenset[str]]) -> None:
    window = opened(loaded(residual()), held=100)
    joined(window, ["s"])
    joined(window, ["r"])
    assert ran == [frozenset({"x"}), frozenset({"x"})]


def test_nothing_behind_a_pending_node_is_held(ran: list[frozenset[str]]) -> None:
    """The branch of a layer may hold layers that are still to be replaced: it is computed again."""
    model = loaded(residual())
    window = opened(model)
    pending = set(match_of(model, "first").nodes)
    joined(window, ["r"], pending)
    joined(window, ["r"], pending)
    assert ran == [frozenset({"x"}), frozenset({"s"})]


def test_an_abandoned_look_changes_nothing() -> None:
    model = loaded(residual())
    window = opened(model)
    next(window.advance(["s"]))
    np.testing.assert_allclose(joined(window, ["r"])[0], values(model, ["r"], FEEDS)[0], rtol=1e-6)


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(KeyError):
        list(opened(loaded(residual())).advance(["nothing"]))


def test_two_cuts_are_not_held_at_once() -> None:
    window = opened(loaded(residual()))
    joined(window, ["s"])
    count = len(window.held())
    assert count > 2
    assert [len(window.held()) for _ in window.advance(["r"])] == [count - done for done in range(count)]
    assert len(window.held()) == count


@pytest.mark.parametrize("taken", [1, 3])
def test_a_later_look_that_is_abandoned_starts_from_the_inputs(taken: int, ran: list[frozenset[str]]) -> None:
    model = loaded(residual())
    window = opened(model)
    joined(window, ["s"])
    windows = window.advance(["r"])
    for _ in range(taken):
        next(windows)
    windows.close()  # type: ignore[attr-defined]
    np.testing.assert_allclose(joined(window, ["r"])[0], values(model, ["r"], FEEDS)[0], rtol=1e-6)
    assert ran[-1] == frozenset({"s"} if taken == 1 else {"x"})


def test_an_input_that_outgrows_the_cut_loses_nothing() -> None:
    """The later of unlike inputs make it too large, when parts of the old cut were let go of."""
    model = loaded(residual())
    (sample, *_) = FEEDS
    wide = {name: np.concatenate([array] * 8) for name, array in sample.items()}
    feeds = Feeds((sample, sample, wide), "the test")
    size = values(model, ["s"], [sample])[0].nbytes
    window = Window(model, feeds, batch=1, threads=1, held=15 * size)
    list(window.advance(["s"]))
    for found, feed in zip(window.advance(["r"]), feeds, strict=True):
        np.testing.assert_allclose(found[0], values(model, ["r"], [feed])[0], rtol=1e-5, atol=1e-6)
    assert window.held() == []


def test_windows_that_are_held_together_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fit's two hold as much as the search's one: what both hold is never more than the budget."""
    model = loaded(residual())
    feeds = Feeds(tuple(FEEDS), "the test", stackable=True)
    size = sum(array.nbytes for array in values(model, ["s"], FEEDS))
    monkeypatch.setattr("onnxdecomp.calibration.statistics.HELD", 2 * size)
    fitter = Fitter.of(model, Calibration(feeds, batch=4, threads=1))
    for both in zip(fitter.now.advance(["s"]), fitter.original.advance(["s"]), strict=True):
        assert len(both) == 2
    for window in (fitter.now, fitter.original):
        assert sum(array.nbytes for own in window.held() for array in own.values()) == size
    monkeypatch.setattr("onnxdecomp.calibration.statistics.HELD", 2 * size - 2)
    fitter = Fitter.of(model, Calibration(feeds, batch=4, threads=1))
    list(fitter.now.advance(["s"]))
    assert fitter.now.held() == []


def test_the_original_waits_for_what_is_pending_in_the_model(ran: list[frozenset[str]]) -> None:
    """A cut looks at a reader first, and at the layers before it later: not from the inputs on."""
    original, model = loaded(residual()), loaded(residual())
    window = opened(original)
    pending = window.counterparts(match_of(model, "first").nodes)
    assert pending == set(match_of(original, "first").nodes)
    joined(window, ["y"], pending)
    joined(window, ["h"], pending)
    assert ran == [frozenset({"x"}), frozenset({"s"})]
