"""Threads of the linear algebra: who gets how many, and that all is as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from onnxdecomp import api, blas, pipeline
from onnxdecomp.layer import Array, ConvSpec, Layer
from onnxdecomp.methods import cp, get, tucker
from tests.cli.small import network

BOTH = {"numpy.libs", "scipy.libs"}


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


def test_one_pool() -> None:
    with blas.one_pool():
        assert threads() == {"numpy.libs": 2, "scipy.libs": 1}
    assert threads() == {"numpy.libs": 2, "scipy.libs": 2}


def test_one_thread_in_one_pool() -> None:
    with blas.one_pool():
        with blas.one_thread():
            assert threads() == {"numpy.libs": 1, "scipy.libs": 1}
        assert threads() == {"numpy.libs": 2, "scipy.libs": 1}


def test_a_large_problem_has_the_threads_of_the_products() -> None:
    with blas.one_pool():
        with blas.threads_for(blas.LARGE - 1):
            assert threads() == {"numpy.libs": 2, "scipy.libs": 1}
        with blas.threads_for(blas.LARGE):
            assert threads() == {"numpy.libs": 2, "scipy.libs": 2}
        with blas.one_thread(), blas.threads_for(blas.LARGE):
            assert threads() == {"numpy.libs": 1, "scipy.libs": 1}
        assert threads() == {"numpy.libs": 2, "scipy.libs": 1}


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
    layer = Layer("layer", "Conv", weight, None, ConvSpec((1, 1), (1, 1), (0,) * 4))
    method = get(name)
    method.fit(layer, method.fraction_ranks(layer, 0.5))
    assert seen
    assert all(found == dict.fromkeys(BOTH, 1) for found in seen)
    assert threads() == dict.fromkeys(BOTH, 2)


def test_compress_works_in_one_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, int]] = []
    run = pipeline.run

    def spy(*arguments: object) -> pipeline.PipelineResult:
        seen.append(threads())
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "run", spy)
    api.compress(network(tmp_path / "model.onnx"), rank="0.5", verify=False, bench=False)
    assert seen == [{"numpy.libs": 2, "scipy.libs": 1}]
    assert threads() == dict.fromkeys(BOTH, 2)
