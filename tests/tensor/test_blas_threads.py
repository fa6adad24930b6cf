"""Threads of the linear algebra: who gets how many, and that all is as before afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec, Layer
from onnxdecomp.decompositions import cp, tucker
from onnxdecomp.decompositions.registry import get
from onnxdecomp.fitting import fit, refit_kept
from onnxdecomp.fitting.als import alternate
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from onnxdecomp.pipeline import pipeline
from onnxdecomp.tensor import blas_threads
from onnxdecomp.workflow import compress
from tests.builders.models import network
from tests.builders.moments import LAYERS, asymmetric, gathered

BOTH = {"numpy.libs", "scipy.libs"}
ONE, TWO = dict.fromkeys(BOTH, 1), dict.fromkeys(BOTH, 2)
SPEC = ConvSpec((1, 1), (1, 1), (0,) * 4)


def threads() -> dict[str, int]:
    """Of every BLAS in this process, by its file's folder."""
    loaded = ThreadpoolController().select(user_api="blas")
    return {Path(found["filepath"]).parent.name: int(found["num_threads"]) for found in loaded.info()}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The tests run with one; here it is the difference that counts."""
    import scipy.linalg

    assert scipy.linalg  # its library must be there before its threads are counted
    if set(threads()) != BOTH:
        pytest.skip(f"NumPy and SciPy do not come with a BLAS each, but with {sorted(threads())}")
    with ThreadpoolController().limit(limits=2):
        yield


def test_a_small_problem_has_one_thread_and_a_large_one_all() -> None:
    with blas_threads.one_thread():
        assert threads() == ONE
        with blas_threads.threads_for(blas_threads.LARGE - 1):
            assert threads() == ONE
        with blas_threads.threads_for(blas_threads.LARGE):
            assert threads() == TWO
            with blas_threads.one_thread():
                assert threads() == ONE
            assert threads() == TWO
        assert threads() == ONE
    assert threads() == TWO


def test_what_was_set_before_is_the_most() -> None:
    with ThreadpoolController().limit(limits=1):
        with blas_threads.threads_for(blas_threads.LARGE):
            assert threads() == ONE
        assert threads() == ONE


def test_scopes_of_several_threads_overlap() -> None:
    """The first to enter is the first to leave; what it found must not come back before the last has left."""
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with blas_threads.one_thread():
            entered.set()
            assert leave.wait(10)
        left.set()

    other = threading.Thread(target=first)
    other.start()
    assert entered.wait(10)
    with blas_threads.one_thread():
        with blas_threads.threads_for(blas_threads.LARGE):  # the other thread wants one
            assert threads() == ONE
        leave.set()
        assert left.wait(10)
        assert threads() == ONE
        with blas_threads.threads_for(blas_threads.LARGE):
            assert threads() == TWO
    other.join()
    assert threads() == TWO


def test_fits_have_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[dict[str, int]]] = {"alternate": [], "repair": []}

    def posing(*arguments: Any, **named: Any) -> Problem:
        seen["repair"].append(threads())
        return problem(*arguments, **named)

    def alternating(*arguments: Any, **named: Any) -> Chain:
        seen["alternate"].append(threads())
        return alternate(*arguments, **named)

    monkeypatch.setattr(refit_kept, "problem", posing)
    monkeypatch.setattr(fit, "alternate", alternating)
    layer = LAYERS["conv2d"]
    moments = gathered(layer, *asymmetric(layer, 200))
    method = get("tucker")
    ranks = method.fraction_ranks(layer, 0.5)
    found = fit.fit(method, layer, ranks, moments)
    fit.refit(found, layer, moments)
    fit.sketch(get("cp"), layer, (4,), problem(moments, as_rows(layer.weight, layer)))
    refit_kept.repair(layer, moments)
    assert len(seen["alternate"]) == 3
    assert len(seen["repair"]) >= 1
    assert all(found == ONE for found in (*seen["alternate"], *seen["repair"]))
    assert threads() == TWO


@pytest.mark.parametrize(("name", "module", "inner"), [("cp", cp, "alternate"), ("tucker", tucker, "hooi")])
def test_alternations_have_one_thread(
    name: str, module: object, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []
    original = getattr(module, inner)

    def spy(*arguments: object) -> Array:
        seen.append(threads())
        found: Array = original(*arguments)
        return found

    monkeypatch.setattr(module, inner, spy)
    weight = np.random.default_rng(0).standard_normal((12, 10, 3, 3), dtype=np.float32)
    layer = Layer("layer", "Conv", weight, None, SPEC)
    method = get(name)
    method.fit(layer, method.fraction_ranks(layer, 0.5))
    assert seen
    assert all(found == ONE for found in seen)
    assert threads() == TWO


def test_compress_works_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, int]] = []
    run = pipeline.run

    def spy(*arguments: object) -> pipeline.PipelineResult:
        seen.append(threads())
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run", spy)
    compress.compress(network(tmp_path / "model.onnx"), rank="0.5", verify=False, bench=False)
    assert seen == [ONE]
    assert threads() == TWO
