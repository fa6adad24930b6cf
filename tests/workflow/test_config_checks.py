"""Options that exclude each other end the run before it begins, whichever way they came; the seed is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onnxdecomp
from onnxdecomp.errors import UnchangedError, UsageError
from onnxdecomp.evaluate import verify
from onnxdecomp.workflow import finish_result
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.config_checks import checked
from tests.builders.commands import command, files
from tests.builders.feeds import samples
from tests.builders.models import network

QUICK: dict[str, Any] = {"simplify": "none", "bench": False}
LINE = ("--simplify", "none", "--no-bench")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return network(tmp_path / "net.onnx")


@pytest.fixture
def plan(model: Path) -> dict[str, Any]:
    made = onnxdecomp.inspect(model, rank="4", method="svd").plan
    return made.to_json()


CONTRADICTIONS: list[tuple[dict[str, Any], tuple[str, ...], tuple[str, str]]] = [
    (
        {"rank": "4", "max_error": 0.5, "verify": False},
        ("--rank", "4", "--max-error", "0.5", "--no-verify"),
        ("--max-error", "--no-verify"),
    ),
    (
        {"rank": "4", "allow_slower": False},
        ("--rank", "4", "--never-slower"),
        ("--never-slower", "--no-bench"),
    ),
    (
        {"rank": "4", "bench_batches": (4,)},
        ("--rank", "4", "--bench-batch", "4"),
        ("--bench-batch", "--no-bench"),
    ),
    (
        {"rank": "4", "bench_threads": (1,)},
        ("--rank", "4", "--bench-threads", "1"),
        ("--bench-threads", "--no-bench"),
    ),
    (
        {"target": "macs=2x", "objective": "size"},
        ("--target", "macs=2x", "--objective", "size"),
        ("--objective size", "target that limits a loss"),
    ),
    ({"rank": "4", "block_size": 64}, ("--rank", "4", "--block-size", "64"), ("--block-size", "int4")),
    (
        {"rank": "4", "block_size": 64, "quantize": "int8-dynamic"},
        ("--rank", "4", "--block-size", "64", "--quantize", "int8-dynamic"),
        ("--block-size", "int8-block"),
    ),
    ({"rank": "4", "table_bits": "4"}, ("--rank", "4", "--table-bits", "4"), ("--table-bits", "int8")),
    (
        {"rank": "4", "table_bits": "4", "quantize": "fp16"},
        ("--rank", "4", "--table-bits", "4", "--quantize", "fp16"),
        ("--table-bits", "int8"),
    ),
    (
        {"target": "macs=2x", "must_save": "params"},
        ("--target", "macs=2x", "--must-save", "params"),
        ("--must-save", "target"),
    ),
    ({"target": "macs=2x", "rank": "4"}, ("--target", "macs=2x", "--rank", "4"), ("rank", "target")),
    ({"max_error": 1.5}, ("--max-error", "1.5"), ("--max-error 1.5", "below 1")),
    (
        {"rank": "4", "quantize": "int8-static"},
        ("--rank", "4", "--quantize", "int8-static"),
        ("int8", "--calib"),
    ),
]


@pytest.mark.parametrize(("options", "line", "named"), CONTRADICTIONS)
def test_contradictions(
    options: dict[str, Any], line: tuple[str, ...], named: tuple[str, str], model: Path, capsys: Capsys
) -> None:
    with pytest.raises(UsageError) as caught:
        onnxdecomp.compress(model, "out.onnx", **QUICK, **options)
    assert all(name in str(caught.value) for name in named)
    assert "--target" not in str(caught.value) or "target" in options
    command(capsys, "compress", model, *LINE, *line, "-o", "out.onnx").is_error(2, *named)
    assert files() == ["net.onnx"]


@pytest.mark.parametrize("kind", ["int8", "int8-block", "int4"])
def test_details_of_fewer_bits_go_with_their_kinds(kind: str) -> None:
    config = {"quantize": kind, "block_size": 64, "table_bits": "8"}
    assert checked(CompressConfig.of(None, config)).fewer_bits == kind


PLANNED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"method": "tucker"}, ("--method", "tucker")),
    ({"rank": "8"}, ("--rank", "8")),
    ({"target": "macs=2x"}, ("--target", "macs=2x")),
    ({"include": ("c1",)}, ("--include", "c1")),
    ({"exclude": ("c1",)}, ("--exclude", "c1")),
    ({"layers": ("c1=keep",)}, ("--layer", "c1=keep")),
    ({"rank_multiple": "2"}, ("--rank-multiple", "2")),
    ({"must_save": "none"}, ("--must-save", "none")),
    ({"skip_below": 0.0}, ("--skip-below", "0")),
    ({"options": {"tucker": {"max_sweeps": 3}}}, ("--tucker-max-sweeps", "3")),
]


@pytest.mark.parametrize(("options", "line"), PLANNED)
def test_a_plan_says_it_all(
    options: dict[str, Any], line: tuple[str, ...], model: Path, plan: dict[str, Any], capsys: Capsys
) -> None:
    name = "a method's options" if "options" in options else line[0]
    with pytest.raises(UsageError, match="exclude each other") as caught:
        onnxdecomp.compress(model, "out.onnx", plan=plan, **QUICK, **options)
    assert "--plan" in str(caught.value)
    assert name in str(caught.value)
    Path("plan.json").write_text(json.dumps(plan))
    refused = command(capsys, "compress", model, *LINE, "--plan", "plan.json", *line, "-o", "out.onnx")
    refused.is_error(2, "--plan", name)
    assert files() == ["net.onnx", "plan.json"]


def test_what_goes_with_a_plan(model: Path, plan: dict[str, Any]) -> None:
    calib = samples(Path("calib.npz"), 8)
    options: dict[str, Any] = {"calib": calib, "quantize": "int8", "max_error": 0.99, "seed": 3}
    done = onnxdecomp.compress(model, "out.onnx", plan=plan, method="auto", repair=False, **QUICK, **options)
    assert [choice.method for choice in done.plan.choices] == ["svd", "svd"]
    assert done.plan.repair is False
    assert done.record["run"]["request"]["max_error"] == 0.99


def test_a_plan_wins_over_the_configuration_and_says_so(model: Path, plan: dict[str, Any]) -> None:
    config = {"decompose": {"method": "tucker", "rank": "2", "seed": 4}}
    done = onnxdecomp.compress(model, plan=plan, config=config, **QUICK)
    assert [choice.method for choice in done.plan.choices] == ["svd", "svd"]
    assert "the plan decides: of the configuration rank, method counts for nothing" in done.notes
    assert onnxdecomp.compress(model, plan=plan, **QUICK).notes == ()


def test_a_target_wins_over_the_ranks_of_the_configuration(model: Path) -> None:
    config = {"decompose": {"rank": "2", "must_save": "both"}}
    done = onnxdecomp.inspect(model, target="params=1.2x", method="svd", config=config)
    assert done.plan.decomposed
    with pytest.raises(UsageError, match="must-save"):
        onnxdecomp.compress(model, config={"decompose": {"must_save": "both"}}, **QUICK)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"max_error": float("nan")}, "--max-error"),
        ({"max_error": -1.0}, "--max-error"),
        ({"samples": 0}, "--samples"),
        ({"threads": 0}, "--threads"),
        ({"seed": -1}, "--seed"),
        ({"config": {"decompose": {"seed": -1}}}, "--seed"),
        ({"bench_batches": (0,)}, "--bench-batch"),
        ({"bench_seconds": float("nan")}, "bench_seconds"),
        ({"skip_below": -0.5}, "--skip-below"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], fragment: str, model: Path) -> None:
    with pytest.raises(UsageError, match=fragment):
        onnxdecomp.compress(model, "out.onnx", rank="4", simplify="none", **options)
    assert files() == ["net.onnx"]


def test_a_rank_that_a_rule_gave_is_not_said_to_be_the_command_lines(model: Path) -> None:
    with pytest.raises(UsageError) as caught:
        onnxdecomp.compress(model, layers=("*=svd:rank=5000",), **QUICK)
    assert "5000" in str(caught.value)
    assert "--rank 0.5" not in str(caught.value)


def test_preprocessing_without_data(model: Path, capsys: Capsys) -> None:
    refused = command(capsys, "compress", model, *LINE, "--rank", "4", "--preprocess", "imagenet")
    refused.is_error(2, "--preprocess", "--calib")


@pytest.mark.parametrize("way", ["argument", "configuration", "file", "command line"])
def test_one_seed(
    way: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, tmp_path: Path
) -> None:
    """It is recorded, and reaches the calibration, the verification, the search and the lowering check."""
    seen: dict[str, int] = {}

    def spy(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def called(*args: Any, **options: Any) -> Any:
            seen[name] = options["seed"]
            return original(*args, **options)

        monkeypatch.setattr(owner, name, called)

    from onnxdecomp_passes import decompose

    from onnxdecomp.calibration import statistics

    spy(verify, "verify")
    spy(finish_result, "check_lowering")
    spy(statistics, "Calibration")
    spy(decompose, "carry_out")
    calib = samples(Path("calib.npz"), 4)
    table = {"decompose": {"seed": 7, "target": "params=1.5x", "method": "svd"}}
    options: dict[str, Any] = {
        "argument": {"seed": 7, **table["decompose"]},
        "configuration": {"config": table},
    }
    if way in ("file", "command line"):
        text = '[decompose]\ntarget = "params=1.5x"\nmethod = "svd"\n' + ("seed = 7\n" * (way == "file"))
        Path("pipeline.toml").write_text(text)
    if way == "command line":
        line = ("--config", "pipeline.toml", "--seed", "7", "--calib", calib, "--json", "run.json")
        assert command(capsys, "compress", model, *LINE, *line).code == 0
        record = json.loads(Path("run.json").read_text())
    else:
        how = options.get(way, {"config": Path("pipeline.toml")})
        record = onnxdecomp.compress(model, calib=calib, **QUICK, **how).record
    assert record["run"]["seed"] == 7
    assert seen == dict.fromkeys(("verify", "check_lowering", "Calibration", "carry_out"), 7)


def test_random_inputs_follow_the_configured_seed(model: Path) -> None:
    config = {"decompose": {"seed": 7}}
    checked = onnxdecomp.compress(model, rank="4", config=config, **QUICK).verification
    assert checked is not None
    assert checked.data == "random, seed 7"


def test_training_follows_the_seed(model: Path) -> None:
    from onnxdecomp.training.settings import parse_settings

    assert parse_settings("epochs=1", seed=7).seed == 7
    assert parse_settings("epochs=1,seed=2", seed=7).seed == 2
    with pytest.raises(UsageError, match="seed"):
        parse_settings("seed=-1")


def test_a_dry_run_that_would_change_nothing(model: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(UnchangedError):
            onnxdecomp.compress(
                model, rank="4", exclude=("c*",), dry_run=dry_run, fail_if_unchanged=True, **QUICK
            )
    assert onnxdecomp.compress(model, rank="4", dry_run=True, fail_if_unchanged=True, **QUICK).plan.decomposed


def test_shapes_of_inputs_that_are_none(model: Path) -> None:
    calib = samples(Path("calib.npz"), 4)
    for shapes in ({"image": (1, 8, 8, 8)}, {"x": (1, 9, 8, 8)}, {"x": (0, 8, 8, 8)}, {"x": (8, 8)}):
        with pytest.raises(UsageError, match=r"input|below 1"):
            onnxdecomp.compress(model, rank="4", calib=calib, input_shapes=shapes, **QUICK)


def test_a_target_out_of_reach_is_told_as_it_was_asked_for(model: Path, capsys: Capsys) -> None:
    line = ("compress", model, *LINE, "--method", "svd", "--quantize", "fp16", "--dry-run")
    command(capsys, *line, "--max-error", "1e-9").is_error(2, "--max-error 1e-09 is out of reach")
    command(capsys, *line, "--target", "error=1e-9").is_error(2, "--target error=1e-09 is out of reach")


def test_ranks_for_a_pipeline_that_decomposes_nothing(model: Path, capsys: Capsys) -> None:
    Path("pipeline.toml").write_text('pipeline = ["simplify", "normalise", "check"]')
    line = ("compress", model, *LINE, "--config", "pipeline.toml")
    command(capsys, *line, "--rank", "4").is_error(2, "no decompose pass", "--rank")
    with pytest.raises(UsageError, match="no decompose pass: --target"):
        onnxdecomp.compress(model, config="pipeline.toml", target="macs=2x")
    assert command(capsys, *line, "-o", "out.onnx").code == 0
