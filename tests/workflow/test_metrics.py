"""Searches with a metric of the task as their goal: held, judged on samples of their own, recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdecomp
from onnxdecomp.calibration.statistics import Calibration, parted
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.measure import MetricChange
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.context import set_apart
from onnxdecomp.workflow.judging import judging, said_of_goal
from tests.builders.commands import Outcome, command, files
from tests.workflow.test_targets import OPTIONS, QUICK, filled

Capsys = pytest.CaptureFixture[str]
Array = np.ndarray[Any, Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx and calib.npz, alone in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return filled(tmp_path)


class Nearness:
    """How near outputs are to what the original would give; remembers which samples it was asked about."""

    def __init__(self) -> None:
        self.asked: list[set[float]] = []
        self.originals: dict[float, Array] = {}

    def __call__(self, outputs: dict[str, Any], data: Any) -> Array:
        keys = [float(row.ravel()[0]) for row in data.inputs["x"]]
        self.asked.append(set(keys))
        found = []
        for key, output in zip(keys, outputs["y"], strict=True):
            wanted = self.originals.setdefault(key, output)  # the original comes first
            found.append(1 - float(np.linalg.norm(output - wanted) / np.linalg.norm(wanted)))
        return np.array(found)


def images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 8), dtype=np.float32)


def test_a_drop_of_a_metric_is_held_on_samples_that_did_not_choose(folder: Path) -> None:
    metric, given = Nearness(), images(24, 5)
    data = {"x": given, "labels": np.zeros(24, np.int64)}
    found = onnxdecomp.compress(
        "net.onnx", calib="calib.npz", data=data, metric=metric, target="drop=10%", **OPTIONS
    )
    assert found.plan.decomposed
    measured = found.record["verify"]["metric"]
    assert measured["original"] == 1
    assert 0 < measured["loss"] < 0.12
    assert measured["low"] < measured["change"] < measured["high"] < 0
    assert [target["quantity"] for target in found.record["targets"]] == ["drop"]
    assert found.record["targets"][0]["target"] == "drop=10%"
    assert found.record["targets"][0]["reached"] == pytest.approx(measured["loss"])
    assert found.record["run"]["request"]["metric"] == "Nearness"
    assert "Nearness on 12 of the 24 samples" in " ".join(found.notes)
    # Half of the samples judged the plans; the other half is what is reported, by two runs of it.
    chosen, reported = metric.asked[0], metric.asked[-1]
    assert len(chosen) == len(reported) == measured["samples"] == 12
    assert not chosen & reported
    assert all(asked in (chosen, reported) for asked in metric.asked)
    assert sum(asked == reported for asked in metric.asked) == 2


def test_a_metric_without_labels_is_judged_by_calibration_inputs_that_trials_are_not_fitted_to(
    folder: Path,
) -> None:
    given = images(9, 6)
    found = onnxdecomp.compress(
        "net.onnx", calib="calib.npz", data={"x": given}, metric="psnr", target="metric>=25", **OPTIONS
    )
    assert found.plan.decomposed
    assert "psnr on 10 of the calibration inputs" in " ".join(found.notes)
    measured = found.record["verify"]["metric"]
    assert (measured["samples"], measured["labels"], measured["original"]) == (9, False, 100)
    assert measured["new"] > 24
    assert found.record["targets"][0]["kept"] == (measured["new"] >= 25)
    tries = found.record["search"]["tries"]
    assert all("metric" in entry for entry in tries)
    # What is allowed is what the original is above the value.
    assert min(abs(entry["metric"] - 75) for entry in tries) < 15


@pytest.mark.parametrize("refine", [False, True])
def test_what_judges_a_search_is_not_fitted_to(folder: Path, *, refine: bool) -> None:
    """Also where a pass wants inputs of its own that nothing is fitted to; labels go with their samples."""
    calib = Feeds(tuple({"x": np.full((1, 8, 8, 8), k)} for k in range(100)), "here", np.arange(100))
    config = CompressConfig(target="drop=1%", refine=refine)
    task = judging(config, Path("net.onnx"), calib, None, None, 1).search
    assert task is not None
    assert task.feeds.labels is not None
    judges = [int(feed["x"].flat[0]) for feed in task.feeds]
    assert judges == task.feeds.labels.tolist()
    rest, apart = set_apart(config.passes, calib)
    assert (apart is not None) == refine
    fitted = {int(feed["x"].flat[0]) for feed in parted(Calibration(rest))[0].feeds}
    assert len(fitted | set(judges)) == len(fitted) + len(judges) == (90 if refine else 100)


def test_calibration_inputs_with_labels_judge_and_all_others_are_reported(folder: Path) -> None:
    with np.load("calib.npz") as held:
        np.savez("calib.npz", x=held["x"], labels=np.arange(40))
    metric = Nearness()
    found = onnxdecomp.compress(
        *("net.onnx",),
        calib="calib.npz",
        data={"x": images(9, 7), "labels": np.arange(9)},
        metric=metric,
        target="drop=0.2",
        **OPTIONS,
    )
    assert found.record["verify"]["metric"]["samples"] == 9
    assert [len(asked) for asked in metric.asked[:2]] == [10, 10]


def test_a_metric_alone_may_drop_by_a_hundredth(folder: Path) -> None:
    metric = Nearness()
    found = onnxdecomp.compress("net.onnx", calib="calib.npz", metric=metric, **OPTIONS)
    assert found.record["run"]["request"]["target"] == "drop=1%"
    assert found.record["verify"]["metric"]["loss"] < 0.02


def test_a_metric_is_reported_with_other_targets(folder: Path) -> None:
    data = {"x": images(9, 8)}
    found = onnxdecomp.compress(
        "net.onnx", calib="calib.npz", data=data, metric="psnr", target="macs=2x", **OPTIONS
    )
    measured = found.record["verify"]["metric"]
    assert measured["samples"] == 9
    assert measured["new"] < 100
    assert f"psnr {measured['new']:.4g}" in found.record["verdict"]["text"].replace("−", "-")


@pytest.fixture
def run(folder: Path, capsys: Capsys) -> Callable[..., Outcome]:
    """Runs compress on net.onnx with calibration inputs."""
    return lambda *given: command(
        capsys, "compress", "net.onnx", *QUICK, "--calib", "calib.npz", "-o", "o.onnx", *given
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--target", "metric>=3"), "needs a metric: name it with --metric"),
        (("--target", "metric<=30", "--metric", "psnr"), "of psnr higher is better, give metric>=…"),
        (("--target", "metric>=101", "--metric", "psnr"), "out of reach: psnr of the original is 100"),
        (("--target", "metric>=-1", "--metric", "kl:y"), "of kl:y lower is better, give metric<=…"),
        (("--target", "drop=1%", "--metric", "kl"), "kl of the original is 0, which has no percents"),
        (("--target", "drop=1", "--metric", "token-agreement"), "give less than all of token-agreement"),
        (("--metric", "top1"), "needs labels"),
        (("--metric", "psnr", "--no-verify"), "exclude each other"),
        (("--metric", "psnr:z"), "outputs are y"),
        (("--metric", "nothing.py:f"), "no such file"),
        (("--target", "drop=0.1"), "needs labels"),
    ],
)
def test_requests_that_cannot_be_heeded(
    run: Callable[..., Outcome], given: tuple[str, ...], says: str
) -> None:
    before = files()
    run(*given).is_error(2, says)
    assert files() == before


def test_an_error_of_the_user_ends_the_run_before_the_search(folder: Path) -> None:
    def broken(outputs: dict[str, Any], data: Any) -> float:
        raise ValueError("of mine")

    with pytest.raises(UsageError, match="failed with ValueError: of mine"):
        onnxdecomp.compress("net.onnx", calib="calib.npz", metric=broken, target="drop=0.1", **OPTIONS)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("drop=0.05", ()),
        ("drop=0.02", ("drop=0.02", "0.04")),
        ("drop=10%", ()),
        ("drop=4%", ("drop=4%", "5%")),
        ("metric>=0.75,macs=2x", ()),
        ("metric>=0.77", ("metric>=0.77", "0.76")),
        ("macs=2x", ()),
    ],
)
def test_a_goal_that_is_not_kept_where_it_is_reported_is_said(target: str, said: tuple[str, ...]) -> None:
    change = MetricChange("f", 20, True, 0.8, 0.76, False, False, 0.04, None, None)
    config = CompressConfig.of(None, {"metric": "my.py:f", "target": target, "calib": "c.npz"})
    found = said_of_goal(config, change)
    assert len(found) == bool(said)
    assert all(part in found[0] for part in said)
    assert said_of_goal(config, None) == ()
