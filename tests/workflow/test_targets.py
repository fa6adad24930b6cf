"""Targets, calibration inputs and plans, from the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.errors import UsageError
from tests.builders.commands import Outcome, command, files
from tests.builders.models import network, write
from tests.conftest import ROOT

Capsys = pytest.CaptureFixture[str]
Run = Callable[..., Outcome]

DIGITS = ROOT / "models" / "digits.onnx"
DIGITS_TEST = ROOT / "models" / "digits_test.npz"

QUICK = ("--simplify", "none", "--no-bench", "--method", "tucker,svd")
PLANNED: dict[str, Any] = {"simplify": "none", "bench": False}
OPTIONS: dict[str, Any] = {**PLANNED, "method": "tucker,svd"}


def thin(path: Path) -> Path:
    """x [N, 8, 8, 8] -> Conv c1 -> Relu -> Conv c2 -> y; both weights have little but a rank of 3."""
    rng = np.random.default_rng(0)

    def weight(outputs: int, inputs: int) -> Any:
        low = np.einsum(
            "tr,rskl->tskl", rng.standard_normal((outputs, 3)), rng.standard_normal((3, inputs, 3, 3))
        )
        return ((low + 0.02 * rng.standard_normal(low.shape)) / 20).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="c2", pads=[1, 1, 1, 1]),
    ]
    return write(path, nodes, {"w1": weight(16, 8), "w2": weight(16, 16)})


def wide(path: Path) -> Path:
    """The same with 32 units between, of which 12 say something, and weights of full rank."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((32, 8, 3, 3)) / 8
    first[12:] *= 0.01
    second = rng.standard_normal((16, 32, 3, 3)) / 16
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="c2", pads=[1, 1, 1, 1]),
    ]
    return write(path, nodes, {"w1": first.astype(np.float32), "w2": second.astype(np.float32)})


def filled(folder: Path, network: Callable[[Path], Path] = thin) -> Path:
    """The folder, with net.onnx and calib.npz, 40 samples."""
    network(folder / "net.onnx")
    images = np.random.default_rng(1).standard_normal((40, 8, 8, 8), dtype=np.float32)
    np.savez(folder / "calib.npz", x=images)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx and calib.npz, alone in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return filled(tmp_path)


@pytest.fixture
def run(folder: Path, capsys: Capsys) -> Run:
    """Runs compress on net.onnx."""

    def compress(*given: object) -> Outcome:
        quick = QUICK[:-2] if "--plan" in given else QUICK  # a plan has its methods
        return command(capsys, "compress", "net.onnx", *quick, *given)

    return compress


def saved(record: dict[str, Any], quantity: str) -> float:
    total = record["totals"][quantity]
    return float(total["before"] / total["after"])


def test_a_target_is_met_and_the_output_close(run: Run) -> None:
    done = run("--target", "macs=2x", "--calib", "calib.npz", "-o", "out.onnx", "--json", "run.json")
    (note,) = done.err.splitlines()
    assert done.code == 0
    assert note.startswith("note: the error is that on the calibration inputs")
    record = json.loads(Path("run.json").read_text())
    assert saved(record, "macs") >= 2
    assert record["verify"]["data"] == "calib.npz"
    assert record["verify"]["samples"] == 40
    assert record["verify"]["rel_l2"] < 0.05
    onnx.checker.check_model(onnx.load("out.onnx"))


def test_a_target_from_the_configuration(run: Run) -> None:
    Path("pipeline.toml").write_text('[decompose]\ntarget = "macs=3x"\n')
    assert run("--config", "pipeline.toml", "--calib", "calib.npz", "--json", "run.json").code == 0
    assert saved(json.loads(Path("run.json").read_text()), "macs") >= 3


@pytest.mark.parametrize("given", [("--target", "error=0.05"), ("--max-error", "0.05"), ()])
def test_an_error_holds_on_the_calibration_inputs(given: tuple[str, ...], run: Run) -> None:
    # Without a word it is 0.05, too.
    assert run(*given, "--calib", "calib.npz", "--json", "run.json").code == 0
    record = json.loads(Path("run.json").read_text())
    assert record["verify"]["rel_l2"] <= 0.05
    assert saved(record, "macs") > 2


def test_a_wider_error_saves_more(folder: Path) -> None:
    after = []
    for limit in (0.002, 0.2):  # both sides of the cliff behind a rank of 3
        found = onnxdecomp.compress("net.onnx", target=f"error={limit}", calib="calib.npz", **OPTIONS)
        assert found.verification is not None
        assert found.verification.rel_l2 is not None
        assert found.verification.rel_l2 <= limit
        after.append(found.record["totals"]["macs"]["after"])
    assert after[1] < after[0]


def test_without_calibration_inputs_it_says_so(run: Run) -> None:
    done = run("--target", "macs=2x")
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("note: ")
    assert "random" in line
    assert "--calib" in line


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        (("--target", "macs=1000x"), ("out of reach", "at most macs=")),
        (("--target", "macs=2x", "--rank", "4"), ("rank", "target", "exclude each other")),
        (("--target", "speed=2x"), ("speed=2x", "macs=2x")),
        (("--target", "macs"), ("--target",)),
        (("--target", "drop=0.01"), ("labels", "--eval")),
        (("--target", "drop=0.01", "--calib", "calib.npz"), ("labels", "--eval")),
        (("--target", "macs=2x", "--method", "tukcer"), ("did you mean 'tucker'",)),
        (("--target", "macs=2x", "--calib", "nothing.npz"), ("nothing.npz",)),
        (("--target", "macs=2x", "--calib", "calib.npz", "--preprocess", "nonsense"), ("nonsense",)),
    ],
)
def test_what_cannot_be_done(given: tuple[str, ...], fragments: tuple[str, ...], run: Run) -> None:
    before = files()
    run(*given, "-o", "out.onnx").is_error(2, *fragments)
    assert files() == before


def last_is_nan() -> dict[str, Any]:
    images = np.ones((9, 8, 8, 8), np.float32)
    images[-1, 0, 0, 0] = np.nan
    return {"x": images}


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"x": np.zeros((0, 8, 8, 8), np.float32)}, "empty"),
        ({"x": np.full((3, 8, 8, 8), np.nan, np.float32)}, "NaN"),
        (last_is_nan(), "NaN"),
        ({"x": np.zeros((3, 9, 8, 8), np.float32)}, "shape"),
        ({"z": np.zeros((3, 8, 8, 8), np.float32)}, "'x'"),
    ],
)
@pytest.mark.parametrize("goal", [("--target", "macs=2x"), ("--rank", "2")])
def test_bad_calibration_inputs(
    goal: tuple[str, ...], arrays: dict[str, Any], fragment: str, run: Run
) -> None:
    np.savez("bad.npz", **arrays)
    before = files()
    run(*goal, "--calib", "bad.npz", "-o", "out.onnx").is_error(2, fragment)
    assert files() == before


def test_an_empty_folder_of_calibration_inputs(run: Run) -> None:
    Path("images").mkdir()
    run("--target", "macs=2x", "--calib", "images").is_error(2, "images has no .npz file")


@pytest.mark.parametrize("calibrated", [("--calib", "calib.npz"), ()])
def test_a_plan_is_carried_out_with_the_same_bytes(calibrated: tuple[str, ...], run: Run) -> None:
    goal = ("--target", "macs=2x", *calibrated)
    assert run(*goal, "-o", "direct.onnx").code == 0
    assert run(*goal, "--dry-run", "--json", "plan.json").code == 0
    assert files() == ["calib.npz", "direct.onnx", "net.onnx", "plan.json"]
    assert run("--plan", "plan.json", *calibrated, "-o", "planned.onnx", "--json", "run.json").code == 0
    assert Path("planned.onnx").read_bytes() == Path("direct.onnx").read_bytes()
    # The record of that run holds a plan, too.
    assert run("--plan", "run.json", *calibrated, "-o", "again.onnx").code == 0
    assert Path("again.onnx").read_bytes() == Path("direct.onnx").read_bytes()


def test_the_record_says_what_was_weighed(run: Run) -> None:
    given = ("--target", "macs=2x", "--calib", "calib.npz", "--json", "run.json")
    for dry in (("--dry-run",), ()):
        assert run(*given, *dry).code == 0
        record = json.loads(Path("run.json").read_text())
        found = record["search"]
        assert found["expected"]["loss"] >= found["expected"]["bound"] - 1e-12
        weighed = {layer["layer"]: layer["candidates"] for layer in found["layers"]}
        for choice in record["plan"]["choices"]:
            ranks = [(c["method"], c["ranks"]) for c in weighed[choice["layer"]]]
            assert choice["method"] is None or (choice["method"], choice["ranks"]) in ranks


def test_a_plan_in_python(folder: Path) -> None:
    planned = onnxdecomp.compress("net.onnx", target="macs=2x", dry_run=True, **OPTIONS).plan
    first = onnxdecomp.compress("net.onnx", plan=planned, **PLANNED)
    second = onnxdecomp.compress("net.onnx", plan=planned.to_json(), **PLANNED)
    assert first.plan == second.plan == planned
    assert [(layer.method, layer.ranks) for layer in first.layers] == [
        (choice.method, choice.ranks) for choice in planned.choices
    ]


def test_a_plan_for_another_model(run: Run) -> None:
    assert run("--rank", "2", "--dry-run", "--json", "plan.json").code == 0
    record = json.loads(Path("plan.json").read_text())
    record["plan"]["choices"][1]["layer"] = "elsewhere"
    Path("plan.json").write_text(json.dumps(record))
    run("--plan", "plan.json", "-o", "out.onnx").is_error(2, "another model", "'elsewhere'")
    assert files() == ["calib.npz", "net.onnx", "plan.json"]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "cannot read the plan plan.json"),
        (b"this is no plan", "plan.json is no JSON"),
        (b"\xff\xfe\x00", "plan.json is no JSON"),
        (b"[1, 2]", "plan.json holds no plan"),
        (b"{}", "no onnxdecomp plan"),
        (b'{"plan": 3}', "no onnxdecomp plan"),
        (b'{"version": 99, "choices": []}', "no onnxdecomp plan of version 1 or 2"),
        (b'{"version": 1, "choices": [{"layer": "c1"}]}', "damaged"),
    ],
)
def test_plans_that_cannot_be_read(content: bytes | None, fragment: str, run: Run) -> None:
    if content is not None:
        Path("plan.json").write_bytes(content)
    before = files()
    run("--plan", "plan.json", "-o", "out.onnx").is_error(2, fragment)
    assert files() == before


def test_inspect_shows_what_a_target_would_do(folder: Path) -> None:
    found = onnxdecomp.inspect("net.onnx", target="macs=4x", method="svd", bench=False)
    assert saved(found.record, "macs") >= 4
    # With neither a target nor a rank it shows half of the ranks, and searches nothing.
    plain = onnxdecomp.inspect("net.onnx", method="svd")
    halves = onnxdecomp.inspect("net.onnx", method="svd", rank="0.5")
    assert plain.plan == halves.plan
    assert files() == ["calib.npz", "net.onnx"]


def test_calibration_makes_given_ranks_lose_less(folder: Path) -> None:
    network(folder / "net.onnx")
    errors = []
    for calib in (None, "calib.npz"):
        found = onnxdecomp.compress("net.onnx", calib=calib, data="calib.npz", rank="6", **OPTIONS)
        assert found.verification is not None
        errors.append(found.verification.rel_l2 or 0.0)
    assert 0 < errors[1] < 0.95 * errors[0]


def digits() -> tuple[dict[str, Any], dict[str, Any]]:
    """Images to calibrate with, and others with labels."""
    with np.load(DIGITS_TEST) as data:
        images, labels = data["image"], data["labels"]
    return {"image": images[:40]}, {"image": images[250:], "labels": labels[250:]}


def test_calibrated_fits_are_no_less_accurate() -> None:
    calib, test = digits()
    plan = onnxdecomp.compress(
        DIGITS, target="macs=4x", method="spatial", calib=calib, dry_run=True, **PLANNED
    ).plan
    plain, fitted = (
        onnxdecomp.compress(DIGITS, plan=plan, calib=given, data=test, **PLANNED) for given in (None, calib)
    )
    assert saved(fitted.record, "macs") >= 4
    assert plain.verification is not None
    assert fitted.verification is not None
    assert plain.verification.accuracy is not None
    assert fitted.verification.accuracy is not None
    assert fitted.verification.accuracy.new >= plain.verification.accuracy.new
    # The classes hardly tell; the scores do, on images that were not fitted to.
    assert fitted.verification.rel_l2 is not None
    assert plain.verification.rel_l2 is not None
    assert fitted.verification.rel_l2 < 0.6 * plain.verification.rel_l2


def test_a_drop_of_accuracy_holds() -> None:
    _, test = digits()
    found = onnxdecomp.compress(
        DIGITS, target="drop=0.01", data=test, include=("conv3_*",), **{**OPTIONS, "method": "svd"}
    )
    assert found.plan.decomposed
    assert found.verification is not None
    accuracy = found.verification.accuracy
    assert accuracy is not None
    assert accuracy.original - accuracy.new <= 0.01


def test_labels_that_no_output_has_scores_for(folder: Path) -> None:
    images: dict[str, Any] = {"x": np.ones((4, 8, 8, 8), np.float32), "labels": np.zeros(4, np.int64)}
    with pytest.raises(UsageError, match="no scores"):
        onnxdecomp.compress("net.onnx", target="drop=0.01", data=images, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        (("--target", "macs=2x", "--layer", "conv*=svd"), "exclude each other"),
        (("--plan", "plan.json", "--rank", "4"), "a plan says what every layer gets"),
        (("--target", "macs=2x", "--include", "nothing*"), "no layer matches 'nothing*'"),
        (("--target", "drop=0.01"), "needs labels"),
    ],
)
def test_requests_that_contradict_themselves(given: tuple[str, ...], fragment: str, run: Run) -> None:
    Path("plan.json").write_text('{"version": 1, "choices": []}')
    run(*given, "-o", "out.onnx").is_error(2, fragment)
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize("ranks", [[0], [-1], [3, 3, 3, 3], ["x"]])
def test_a_plan_with_wrong_ranks(ranks: list[Any], run: Run) -> None:
    assert run("--target", "macs=2x", "--dry-run", "--json", "plan.json").code == 0
    record = json.loads(Path("plan.json").read_text())
    for choice in record["plan"]["choices"]:
        if choice["method"]:
            choice["ranks"] = ranks
    Path("plan.json").write_text(json.dumps(record))
    run("--plan", "plan.json", "-o", "out.onnx").is_error(2, "plan")
    assert not Path("out.onnx").exists()
