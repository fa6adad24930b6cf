"""Every option of `compress` stands in CompressConfig once, and what is said of options follows from it."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxdecomp_passes.decompose import Decompose
from onnxdecomp_passes.quantize import Quantize

import onnxdecomp
from onnxdecomp.cli.compress import _asked as asked_of
from onnxdecomp.cli.compress import command as compress_command
from onnxdecomp.cli.inspect import command as inspect_command
from onnxdecomp.core.options import default_of, described, option_fields
from onnxdecomp.errors import UsageError
from onnxdecomp.search.plan_options import PlanOptions
from onnxdecomp.workflow.config import _LARGE_TYPES, GROUPS, CompressConfig, hints
from onnxdecomp.workflow.config_checks import checked
from onnxdecomp.workflow.config_json import from_json, source_of, to_json
from onnxdecomp.workflow.keywords import CompressOptions
from onnxdecomp.workflow.request import request_of
from tests.builders.commands import command
from tests.builders.models import network

OPTIONS = {field.name: field for field in option_fields(CompressConfig)}
ROOT = Path(__file__).parents[2]


def test_every_option_is_described_once() -> None:
    assert len(OPTIONS) >= 35
    assert {described(field).group for field in OPTIONS.values()} == set(GROUPS)
    assert all(
        described(field).help and not described(field).help.endswith(".") for field in OPTIONS.values()
    )
    helps = [described(field).help for field in OPTIONS.values()]
    assert len(set(helps)) == len(helps)


def test_the_keywords_for_type_checkers_are_the_options() -> None:
    known = dict.fromkeys(_LARGE_TYPES, object)
    keywords = typing.get_type_hints(CompressOptions, localns=known)
    assert list(keywords) == list(OPTIONS)
    for name, hint in hints().items():
        if name in OPTIONS:
            several = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ()
            wanted: Any = Sequence[several[0]] if several else hint  # type: ignore[valid-type]
            assert keywords[name] == wanted | None, name


def test_the_command_line_has_every_option_that_has_a_flag() -> None:
    shown = {name for name, field in OPTIONS.items() if described(field).flag is not None}
    assert {parameter.name for parameter in compress_command.params} >= shown
    assert set(OPTIONS) - shown == {"options", "bench_seconds", "details"}
    planning = {field.name for field in option_fields(PlanOptions)} & shown | {"simplify"}
    assert {parameter.name for parameter in inspect_command.params} & set(OPTIONS) == planning


def test_the_reference_page_is_that_of_the_code() -> None:
    found = subprocess.run([sys.executable, "docs/options.py", "--check"], cwd=ROOT, check=False)
    assert found.returncode == 0, "docs/reference/options.md is out of date: python docs/options.py"


def test_passes_have_the_options_that_they_are_said_to_have() -> None:
    config = CompressConfig.of(None, {"quantize": "fp16", "rank": "3", "refine": True})
    passes = {each.name: each for each in config.passes}
    places = {
        (name, place): getattr(config, field.name)
        for field in OPTIONS.values()
        for place in described(field).places
        for name in [field.name]
    }
    assert len(places) > 15
    for (name, (which, option)), value in places.items():
        assert getattr(passes[which], option) == value, name


def planner(config: CompressConfig) -> Decompose:
    return next(each for each in config.passes if isinstance(each, Decompose))


def test_what_a_caller_says_wins_over_the_file_and_a_default_over_it_too() -> None:
    file = {"decompose": {"method": "tucker", "skip_below": 0.5, "rank": "4"}, "simplify": {"timeout_s": 5}}
    config = CompressConfig.of(file, {"method": "auto", "rank": None})
    assert (config.method, config.skip_below, config.rank) == ("auto", 0.5, "4")
    assert (planner(config).method, planner(config).skip_below, planner(config).rank) == ("auto", 0.5, "4")
    assert [config.said(name) for name in ("method", "rank", "seed")] == [False, False, False]
    assert [config.in_file(name) for name in ("method", "skip_below", "seed")] == [False, True, False]
    assert CompressConfig(rank="4").said("rank")
    further = CompressConfig.of(config, {"skip_below": 0.1})
    assert (planner(further).skip_below, planner(further).rank) == (0.1, "4")


def test_a_target_wins_over_the_ranks_of_the_file() -> None:
    file = {"decompose": {"rank": "4", "layers": ["*=keep"], "must_save": "both"}}
    config = checked(CompressConfig.of(file, {"target": "macs=2x"}))
    assert planner(config) == Decompose(target="macs=2x")
    kept = CompressConfig.of(file, {"target": "macs=2x", "must_save": "both"})
    with pytest.raises(UsageError, match="--must-save"):
        checked(kept)


def test_the_largest_error_stands_for_a_target_where_nothing_says_how_far_to_go() -> None:
    config = CompressConfig.of(None, {"max_error": 0.2})
    assert (config.target, config.derived_target, config.sought) == ("", "error=0.2", "error=0.2")
    assert planner(config).target == "error=0.2"
    for more in ({"rank": "4"}, {"target": "macs=2x"}, {"layers": ["*=svd"]}, {"plan": "plan.json"}):
        assert CompressConfig.of(None, {"max_error": 0.2, **more}).derived_target == ""


def test_what_a_record_holds_of_the_request() -> None:
    nothing: dict[str, object] = {"rules": [], "plan": False}
    nothing |= dict.fromkeys(("target", "metric", "rank", "method", "mask", "max_error"))
    assert request_of(CompressConfig.of(None, {"rank": "4", "seed": 3})) == {
        **nothing,
        "rank": "4",
        "method": "auto",
    }
    assert request_of(CompressConfig())["target"] == "error=0.05"
    planned = request_of(CompressConfig.of({"decompose": {"rank": "4"}}, {"plan": "plan.json"}))
    assert (planned["plan"], planned["rank"], planned["target"]) == (True, None, None)
    assert request_of(CompressConfig.of({"pipeline": ["simplify", "check"]}, {})) == nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_eror": 0.1}, "no option 'max_eror'; did you mean 'max_error'"),
        ({"max_error": "much"}, "max_error must be a number, not 'much'"),
        ({"verify": "yes"}, "verify must be true or false, not 'yes'"),
        ({"bench_batches": ("1",)}, "bench_batches must be a list of a whole number"),
        ({"rank": 4}, "option 'rank' of pass 'decompose' must be text, not 4"),
        (
            {"quantize": "int3"},
            r"option 'kind' of pass 'quantize' must be none.*int8.*int4.*fp16, not 'int3'",
        ),
        ({"samples": 0}, "--samples must be 1 or more, not 0"),
    ],
)
def test_values_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked(CompressConfig.of(None, options))


WRITTEN: dict[str, Any] = {
    "version": 1,
    "goal": {"target": "macs=2x", "allow_slower": False},
    "methods": {"exclude": ["fc"], "method": "svd", "options": {"svd": {"order": "auto"}}},
    "data": {"input_shapes": {"x": [1, 3]}, "calib": "calib.npz"},
    "after": {"quantize": "int8", "bench_batches": [1, 4]},
    "pipeline": {"pipeline": ["decompose", "quantize", "check"], "quantize": {"samples": 5}},
}


def test_the_json_form_goes_there_and_back(tmp_path: Path) -> None:
    config = from_json(json.loads(json.dumps(WRITTEN)))
    assert to_json(config) == WRITTEN
    assert from_json(to_json(config)) == config
    assert (config.exclude, config.quantize, config.bench_batches) == (("fc",), "int8", (1, 4))
    assert [type(each).__name__ for each in config.passes] == ["Decompose", "Quantize", "Check"]
    quantize = next(each for each in config.passes if isinstance(each, Quantize))
    assert (quantize.samples, quantize.kind) == (5, "int8")
    assert to_json(CompressConfig()) == {"version": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, not 1"),
        ({"goals": {}}, "no group 'goals'; did you mean 'goal'"),
        ({"goal": {"rnak": "4"}}, "no option 'rnak'; did you mean 'rank'"),
        ({"goal": {"calib": "x"}}, "'goal' has no option 'calib'"),
        ({"goal": 3}, "no group 'goal'"),
        ({"pipeline": {"pipeline": ["no"]}}, "unknown pass 'no'"),
    ],
)
def test_json_that_is_no_configuration(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_json({**WRITTEN, **change})


def test_a_file_without_a_version_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text('{"goal": {"rank": "4"}}')
    with pytest.raises(UsageError, match=r'own\.json: .*"version": 1.* names no version'):
        source_of(file)


def test_an_unknown_option_is_told_the_known_ones_in_their_order() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'rank'\? \(known: target, objective, rank, layers, "):
        CompressConfig.of(None, {"rnk": "4"})


def test_the_json_form_is_taken_where_a_configuration_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(tmp_path / "net.onnx")
    written: dict[str, Any] = {
        "version": 1,
        "goal": {"rank": "4"},
        "methods": {"method": "svd", "simplify": "none"},
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(written))
    for config in (written, file, str(file)):
        assert {c.ranks for c in onnxdecomp.inspect(model, config=config).plan.decomposed} == {(4,)}
    done = command(capsys, "compress", model, "--config", file, "--rank", "3", "--dry-run", "--json", "-")
    assert json.loads(done.out)["run"]["request"]["rank"] == "3"
    file.write_text("[]")
    command(capsys, "inspect", model, "--config", file).is_error(2, "holds no configuration")
    file.write_text("{")
    command(capsys, "inspect", model, "--config", file).is_error(2, "config.json")


@pytest.mark.parametrize(
    ("said", "told", "batches", "threads"),
    [
        ({}, False, (1,), (3,)),
        ({}, True, (1, 16), (3, 1)),
        ({"bench_batches": (1,)}, True, (1,), (3, 1)),
        ({"bench_threads": (2,)}, True, (1, 16), (2,)),
        ({"bench": False}, True, (1,), ()),
    ],
)
def test_a_report_asks_for_further_timings_that_nobody_has_said(
    said: dict[str, Any], told: bool, batches: tuple[int, ...], threads: tuple[int, ...]
) -> None:
    asked = asked_of({"threads": 3, **said}, None, None, told=told, json=False)
    assert (asked.bench_batches, asked.bench_threads, asked.details) == (batches, threads, told)


def test_what_json_does_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="calib is a ndarray, which cannot be written down"):
        to_json(CompressConfig.of(None, {"calib": {"x": np.zeros(3)}}))


def test_a_configuration_is_carried_out(tmp_path: Path) -> None:
    model = network(tmp_path / "net.onnx")
    config = CompressConfig(rank="4", method="svd", simplify="none", bench=False, verify=False)
    done = onnxdecomp.compress(model, config=config)
    assert {choice.ranks for choice in done.plan.decomposed} == {(4,)}
    other = onnxdecomp.compress(model, config=config, rank="3", dry_run=True)
    assert {choice.ranks for choice in other.plan.decomposed} == {(3,)}
    assert other.record["run"]["request"]["rank"] == "3"


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    config = CompressConfig(
        samples=np.int64(3),  # type: ignore[arg-type]
        max_error=np.float32(0.5),  # type: ignore[arg-type]
        seed=np.int32(2),  # type: ignore[arg-type]
        exclude=["fc"],  # type: ignore[arg-type]
    )
    assert (config.samples, config.max_error, config.seed, config.exclude) == (3, 0.5, 2, ("fc",))
    assert [type(value) for value in (config.samples, config.max_error, config.seed)] == [int, float, int]
    assert checked(config).passes
    with pytest.raises(UsageError, match="bench must be true or false, not 'no'"):
        CompressConfig(bench="no")  # type: ignore[arg-type]


def test_defaults_are_those_of_no_word() -> None:
    said: dict[str, Any] = {name: default_of(field) for name, field in OPTIONS.items()}
    assert CompressConfig(**said) == CompressConfig() == CompressConfig.of(None, {})


@pytest.mark.parametrize(
    ("flag", "name"), [("eval", "data"), ("layer", "layers"), ("input_shape", "input_shapes")]
)
def test_a_flag_of_the_command_line_is_told_by_its_name_in_python(flag: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"no option '{flag}'; did you mean '{name}'[?]$"):
        CompressConfig.of(None, {flag: "x"})
