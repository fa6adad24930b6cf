"""What several tests share: the corpus of real models, and hypothesis' profiles."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before NumPy is imported, here and in child processes: the tests run side by side, and linear algebra whose
# threads fight for the cores takes many times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent

# "ci" repeats itself: a red run is the change's fault. HYPOTHESIS_PROFILE=thorough looks further; with "few"
# the tests themselves are tested (bench/mutation.py).
_slow_data = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=50, suppress_health_check=_slow_data
)
settings.register_profile(
    "few", settings.get_profile("ci"), max_examples=15, phases=[Phase.explicit, Phase.generate]
)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=_slow_data)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Every pass is followed by a collection of garbage: it need not look through all the tests each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def brief_timings() -> Iterator[None]:
    """Models and chains are timed for a moment: how fast one is on a busy machine no test can say.

    For the fixtures of whole sessions, too, which are made before those of a test.
    """
    from onnxdecomp.runtime.timing import Timings, interleave

    def brief(*runs: Any, duration: float = 2.0, limit: float = 0.0, **options: Any) -> Timings:
        return interleave(*runs, duration=min(duration, 0.2), limit=min(limit, 1.0), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxdecomp.evaluate.benchmark.interleave", brief)
        patch.setattr("onnxdecomp.latency.measure.MAX_ROUNDS", 30)
        yield


def corpus_root() -> Path:
    """Where the corpus would be: $ONNXDECOMP_CORPUS, else ../shared/corpus from the repository."""
    named = os.environ.get("ONNXDECOMP_CORPUS")
    return Path(named) if named else ROOT.parent / "shared" / "corpus"


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The corpus' folder, with corpus.json, models/ and data/; skips the test where there is none."""
    root = corpus_root()
    if not (root / "corpus.json").is_file():
        if os.environ.get("ONNXDECOMP_CORPUS"):
            pytest.fail(f"ONNXDECOMP_CORPUS={root}: there is no corpus.json in this folder")
        pytest.skip(f"no corpus in {root}: set ONNXDECOMP_CORPUS to the folder with corpus.json")
    return root
