"""What only a card can show: sessions, recorded runs, branches, a search, training.

Elsewhere all are skipped.

python -m pytest -m cuda tests
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdecomp
from onnxdecomp.latency.as_run import as_run
from onnxdecomp.latency.cache import where
from onnxdecomp.latency.meter import timed_input
from onnxdecomp.latency.opened import runnable, runnables
from onnxdecomp.runtime import provider_start
from onnxdecomp.runtime.device import device_of
from onnxdecomp.runtime.session import open_session, run
from onnxdecomp.runtime.setting import setting_of
from onnxdecomp.tensor.device_product import inner
from tests.latency.test_branches import models

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not provider_start.started("cuda"), reason="CUDA does not start here"),
]

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits.onnx"


@pytest.fixture(scope="module")
def images() -> dict[str, Any]:
    with np.load(ROOT / "models" / "digits_test.npz") as arrays:
        return {"image": arrays["image"][:256]}


@pytest.mark.parametrize("profile", ["default", "deploy"])
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("tf32", 5e-3), ("fp16", 1e-2)])
def test_outputs_are_the_processors(profile: str, precision: str, error: float, tmp_path: Path) -> None:
    under = setting_of("cuda", 0, precision=precision, profile=profile)
    file = as_run(DIGITS, under, tmp_path)
    feed = timed_input(DIGITS, batch=8)[0]
    expected = run(open_session(DIGITS), feed)
    opened = open_session(file, provider="cuda", options=under.without_graph.options)
    for got, own in zip(run(opened, feed), expected, strict=True):
        assert np.linalg.norm(got - own) <= error * np.linalg.norm(own)
    loaded = device_of(under).load(file, under, feed, count=True)
    loaded.run()
    assert loaded.bound
    assert loaded.graph == (profile == "deploy")
    assert loaded.nodes["cuda"] > 5


@pytest.mark.parametrize("profile", ["default", "deploy"])
def test_branches_take_as_long_as_their_models(profile: str) -> None:
    on = where(setting_of("cuda", 0, profile=profile).without_graph)
    alone = models(6)
    joint = runnables(alone, on)
    assert not any(isinstance(found, str) for found in (*joint, runnable(alone[1], on)))


@pytest.mark.parametrize("target", ["macs=1.5x", "latency=1.05x"])
def test_a_search(target: str, images: dict[str, Any], tmp_path: Path) -> None:
    new = tmp_path / "new.onnx"
    asked: dict[str, Any] = {"batch": 64, "profile": "deploy", "precision": "fp16", "calib": images}
    done = onnxdecomp.compress(DIGITS, new, target=target, provider="cuda", allow_slower=True, **asked)
    assert done.latency is not None
    (timed,) = done.latency.settings
    assert (timed.provider, timed.precision, timed.profile, timed.graph) == ("cuda", "fp16", "deploy", True)
    assert all(set(model.nodes) == {"cuda"} for model in timed.models)
    assert done.verification is not None


def test_refinement_and_training(images: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    new, trained = tmp_path / "new.onnx", tmp_path / "trained.onnx"
    onnxdecomp.compress(DIGITS, new, rank="0.3", calib=images, provider="cuda", bench=False, refine=True)
    settings = {"epochs": 1, "batch": 64}
    done = onnxdecomp.finetune(new, trained, teacher=DIGITS, data=images, settings=settings, device="cuda")
    assert done.training["device"] == "cuda"
    assert done.verification is not None


def test_moments_on_the_card() -> None:
    pytest.importorskip("torch")
    x, y = (np.random.default_rng(k).standard_normal((1 << 14, 256)) for k in range(2))
    np.testing.assert_allclose(inner(x, y, "cuda"), x.T @ y, rtol=1e-9, atol=1e-9)
