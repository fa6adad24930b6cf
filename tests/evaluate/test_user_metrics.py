"""Metrics of users: both forms of the function, what it may give, faults, and the commands that take one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdecomp
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics import measure
from onnxdecomp.evaluate.task_metrics.registry import task_metric
from onnxdecomp.workflow.compare import compare
from tests.builders.commands import command
from tests.builders.graphs import saved
from tests.builders.models import scores

WEIGHT = np.eye(4) + 0.01
DATA: dict[str, Any] = {
    "x": np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32),
    "labels": np.arange(12) % 4,
}
WORSE = WEIGHT[:, [1, 0, 2, 3]]
Capsys = pytest.CaptureFixture[str]

CODE = """
import numpy as np

def hits(outputs, data):
    assert set(outputs) == {"scores"} and set(data.inputs) == {"x"}
    assert len(data) == len(data.labels) == len(outputs["scores"]) == len(data.inputs["x"])
    return outputs["scores"].argmax(1) == data.labels

def decoded(session, data):
    found = [session.run(["scores"], feed)[0].argmax() for feed in data]
    return float(np.mean(np.array(found) == data.labels))

def errors(outputs, data):
    return 1 - hits(outputs, data).mean()

errors.higher_is_better = False

def broken(outputs, data):
    raise ValueError("no such\\nkey")

def forgetful(outputs, data):
    outputs["scores"].mean()

def nan(outputs, data):
    return float("nan")

def table(outputs, data):
    return outputs["scores"]

def text(outputs, data):
    return "good"

def few(outputs):
    return 1.0

LIMIT = 3
"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model, and another with two of its classes exchanged; in a folder with a user's module and data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metrics.py").write_text(CODE)
    np.savez(tmp_path / "data.npz", **DATA)
    return saved(scores(WEIGHT), tmp_path / "a.onnx"), saved(scores(WORSE), tmp_path / "b.onnx")


def by_hand(weight: Any) -> float:
    return float(np.mean((DATA["x"] @ weight).argmax(1) == DATA["labels"]))


@pytest.mark.parametrize("source", ["my_metrics.py:hits", "my_metrics.py:decoded"])
def test_outputs_or_a_session(pair: tuple[Path, Path], source: str) -> None:
    found = onnxdecomp.verify(*pair, data=DATA, max_error=None, metric=source).metric
    assert found is not None
    assert (found.original, found.new) == pytest.approx((by_hand(WEIGHT), by_hand(WORSE)))
    assert found.loss == pytest.approx(by_hand(WEIGHT) - by_hand(WORSE))
    assert (found.name, found.samples, found.labels, found.points) == (source, 12, True, False)
    # One number for each sample tells an interval, a single number does not.
    assert (found.low is None) == source.endswith("decoded")
    if found.low is not None:
        assert found.high is not None
        assert found.low < found.new - found.original < found.high


def test_lower_may_be_better_and_a_callable_will_do(pair: tuple[Path, Path]) -> None:
    found = onnxdecomp.verify(*pair, data=DATA, max_error=None, metric="my_metrics.py:errors").metric
    assert found is not None
    assert found.lower_is_better
    assert found.loss == pytest.approx(by_hand(WEIGHT) - by_hand(WORSE))

    def mean(outputs: dict[str, Any], data: Any) -> float:
        return float(outputs["scores"].mean())

    ours = onnxdecomp.verify(*pair, data=DATA, max_error=None, metric=mean).metric
    assert ours is not None
    assert ours.name.endswith("mean")
    assert not ours.lower_is_better


def test_outputs_of_several_shapes_come_as_a_list(pair: tuple[Path, Path]) -> None:
    feeds = [{"x": np.ones((rows, 4), np.float32)} for rows in (1, 3)]

    def count(outputs: dict[str, Any], data: Any) -> float:
        assert outputs["scores"].shape == data.inputs["x"].shape == (4, 4)
        assert data.labels is None
        assert len(data) == 4
        return 4.0

    found = onnxdecomp.verify(*pair, data=feeds, max_error=None, metric=count).metric
    assert found is not None
    assert found.new == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("forgetful", "my_metrics.py:forgetful gave nothing: does it return its number?"),
        ("broken", "my_metrics.py:broken failed with ValueError: no such key"),
        ("nan", "gave nan for the original"),
        ("table", "gave an array of shape (12, 4); a number is wanted"),
        ("text", "gave a str; a number is wanted"),
        ("few", "my_metrics.py:few failed with TypeError"),
        ("LIMIT", "a int of that name; a function is wanted"),
        ("absent", "nothing of that name"),
    ],
)
def test_faults_of_a_function_are_one_line(
    pair: tuple[Path, Path], capsys: Capsys, name: str, says: str
) -> None:
    line = ("verify", *pair, "--data", "data.npz", "--metric", f"my_metrics.py:{name}")
    command(capsys, *line).is_error(2, says)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("topp1", "there is no metric of that name; did you mean 'top1'"),
        ("nowhere.py:f", "no such file as nowhere.py"),
        ("no_such_module_here:f", "neither a file, nor a module"),
        ("wer", "needs an output of text or numbers"),
    ],
)
def test_metrics_that_there_are_not(pair: tuple[Path, Path], capsys: Capsys, source: str, says: str) -> None:
    outcome = command(capsys, "verify", *pair, "--data", "data.npz", "--metric", source)
    if source == "wer":
        outcome.is_error(2, "neither text, nor token numbers")
    else:
        outcome.is_error(2, says)


def test_a_metric_needs_data(pair: tuple[Path, Path], capsys: Capsys) -> None:
    command(capsys, "verify", *pair, "--metric", "top1").is_error(2, "--metric needs inputs")
    command(capsys, "bench", *pair, "--metric", "top1").is_error(2, "--metric needs inputs")
    np.savez("plain.npz", x=DATA["x"])
    command(capsys, "verify", *pair, "--data", "plain.npz", "--metric", "top1").is_error(2, "needs labels")


def test_verify_shows_it_with_its_interval(pair: tuple[Path, Path], capsys: Capsys) -> None:
    line = ("verify", *pair, "--data", "data.npz", "--max-error", "9", "--metric", "top1", "--json", "v.json")
    done = command(capsys, *line)
    assert done.code == 0
    assert f"top1 {by_hand(WEIGHT):.4g} -> {by_hand(WORSE):.4g}" in done.out
    found = json.loads(Path("v.json").read_text())["metric"]
    assert found["low"] < found["new"] - found["original"] < found["high"]


def test_gates_on_a_metric(pair: tuple[Path, Path], capsys: Capsys) -> None:
    quick: dict[str, Any] = {"iterations": 5, "memory": False, "data": "data.npz"}
    lost = by_hand(WEIGHT) - by_hand(WORSE)
    for gate, passed in ((f"drop<={lost + 0.01}", True), ("metric_low>-0.01", False), ("metric>0.99", False)):
        _, record = compare(pair, gate=gate, metric="top1", **quick)
        assert record["gate"]["passed"] is passed
        assert record["verify"][0]["metric"]["change"] == pytest.approx(-lost)
        assert record["run"]["request"]["metric"] == "top1"
    line = ("bench", *pair, "--iterations", 5, "--data", "data.npz", "--gate", "metric>0.5")
    command(capsys, *line).is_error(2, "name it by --metric")


def test_a_name_that_is_no_function_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="known: top1, psnr"):
        task_metric("f1")


def test_a_module_is_imported_once_and_may_import_from_its_folder(pair: tuple[Path, Path]) -> None:
    Path("helper_of_metrics.py").write_text("VALUE = 0.25\n")
    Path("counting.py").write_text(
        "from pathlib import Path\n"
        "Path('count').write_text(Path('count').read_text() + '.' if Path('count').exists() else '.')\n"
        "def f(outputs, data):\n"
        "    from helper_of_metrics import VALUE\n"
        "    return VALUE\n"
    )
    found = onnxdecomp.verify(*pair, data=DATA, max_error=None, metric="counting.py:f").metric
    assert found is not None
    assert found.new == 0.25
    assert Path("count").read_text() == "."


def test_the_original_runs_once_where_it_is_compared_with(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the original gets itself is told from the outputs that others are compared with."""
    count = [0]

    def counted(*args: Any) -> dict[str, Any]:
        count[0] += 1
        return plain(*args)

    plain = measure._outputs
    monkeypatch.setattr(measure, "_outputs", counted)
    feeds = Feeds(tuple({"x": DATA["x"][k : k + 1]} for k in range(12)), "the test")
    task = measure.Task(task_metric("kl"), pair[0], feeds)
    assert task.original.value == pytest.approx(0, abs=1e-9)
    assert count == [12]
    assert task.loss(pair[1]) > 0
    assert count == [24]
