"""The pipeline: discovery, configuration, errors. What the stages do is tested in tests/passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import helper

from onnxdecomp.cli.passes import command
from onnxdecomp.errors import GateError, ModelError, OnnxDecompError, UsageError
from onnxdecomp.graph.inferred import is_inferred
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import configuration, installed, pipeline
from onnxdecomp.pipeline.base import Need, Pass, PassContext, PassResult, option
from onnxdecomp.quantization.bounds import Memory
from onnxdecomp.search.plan import Plan
from onnxdecomp.workflow.compress import compress
from tests.builders.entry_points import register_points
from tests.builders.graphs import model

HERE = __name__
NOWHERE = Path("nowhere")


@dataclass(frozen=True)
class Probe(Pass):
    """A stage with an option of every kind, that does what it is told."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "Do what it is told"

    mode: Literal["a", "b"] = option("a", "which of two")
    number: int = option(1, "a count")
    ratio: float = option(0.5, "a share")
    flag: bool = option(False, "yes or no")
    text: str | None = option(None, "a word")
    many: tuple[str, ...] = option((), "several words")
    file: Path = option(NOWHERE, "a path")
    fail: Exception | None = None

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        if self.fail is not None:
            raise self.fail
        return PassResult(model, self.flag, notes=("noted",), record={"number": self.number})


@dataclass(frozen=True)
class Picky(Probe):
    """Wraps its own error, as onnx_ir does."""

    def requires(self, model: ir.Model) -> None:
        raise GateError("the gate is closed")


@dataclass(frozen=True)
class Namesake(Pass):
    """Has options that are called what other stages' properties are."""

    name: ClassVar[str] = "namesake"
    summary: ClassVar[str] = "Do nothing"

    precision: str = option("none", "a word")
    searches: bool = option(True, "yes or no")
    target: str = option("the moon", "a word")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(model, False, record={"precision": self.precision})


class NotAPass:
    pass


PASSES = {"probe": f"{HERE}:Probe", "picky": f"{HERE}:Picky"}
NAMESAKE = {"namesake": f"{HERE}:Namesake"}
RIVAL = {"probe": f"{HERE}:Probe"}
ODD = {"odd": f"{HERE}:NotAPass", "lost": "no_such_module:Class"}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Register entry points: register(first="PASSES", second="RIVAL")."""

    def apply(**mappings: str) -> None:
        register_points(monkeypatch, installed.GROUP, HERE, mappings)

    return apply


def empty_model() -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=8)


def test_the_default_pipeline_is_built_of_our_own_passes() -> None:
    assert tuple(stage.name for stage in configuration.build()) == configuration.DEFAULT


def test_our_passes_are_found_in_a_checkout(register: Callable[..., None]) -> None:
    register()
    assert set(configuration.DEFAULT) <= set(installed.available())


def test_options_come_from_the_configuration_and_overrides_win(
    register: Callable[..., None], tmp_path: Path
) -> None:
    register(first="PASSES")
    config = tmp_path / "p.toml"
    config.write_text(
        'pipeline = ["probe"]\n[probe]\nmode = "b"\nnumber = 3\nratio = 1\nmany = ["x", "y"]\nfile = "f"\n'
    )
    stages = configuration.build(config, {"probe": {"number": 4, "text": "t"}})
    assert stages == (Probe(mode="b", number=4, ratio=1.0, many=("x", "y"), file=Path("f"), text="t"),)
    assert isinstance(stages[0].ratio, float)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pipeline": "probe"}, "must be a list"),
        ({"pipeline": []}, "must be a list"),
        ({"pipeline": ["prob"]}, "unknown pass 'prob'; did you mean 'probe'"),
        ({"pipelin": ["probe"]}, "unknown pass 'pipelin'"),
        ({"pipeline": ["probe"], "probe": 3}, "'probe' must be a table"),
        ({"pipeline": ["probe"], "picky": {}}, "which the pipeline lacks: probe"),
        ({"pipeline": ["probe"], "probe": {"numbr": 1}}, "no option 'numbr'; did you mean 'number'"),
        ({"pipeline": ["probe"], "probe": {"number": "1"}}, "must be a whole number, not '1'"),
        ({"pipeline": ["probe"], "probe": {"number": True}}, "must be a whole number, not True"),
        ({"pipeline": ["probe"], "probe": {"mode": "c"}}, r"must be a\|b, not 'c'"),
        ({"pipeline": ["probe"], "probe": {"flag": 1}}, "must be true or false, not 1"),
        ({"pipeline": ["probe"], "probe": {"many": "xy"}}, "must be a list of text, not 'xy'"),
        ({"pipeline": ["probe"], "probe": {"fail": "x"}}, "no option 'fail'"),
        ({"pipeline": ["decompose"], "decompose": {"size": 3}}, "no option 'size'"),
        ({"pipeline": ["quantize"], "quantize": {"limit": 0.5}}, "no option 'limit'"),
        ({"pipeline": ["odd"]}, "is not a dataclass derived from onnxdecomp.pipeline.base.Pass"),
        ({"pipeline": ["lost"]}, "'lost' of third 1.0 cannot be imported: No module named"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(
    config: dict[str, Any], message: str, register: Callable[..., None]
) -> None:
    register(first="PASSES", third="ODD")
    with pytest.raises(UsageError, match=message):
        configuration.build(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"pipeline = [", "not valid TOML"), (b"\xff", "not valid")],
)
def test_a_bad_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        configuration.build(path)


def test_a_name_registered_twice_is_refused_when_it_is_used(register: Callable[..., None]) -> None:
    register(first="PASSES", second="RIVAL")
    with pytest.raises(UsageError, match=r"registered by first 1\.0 and second 1\.0"):
        configuration.build({"pipeline": ["probe"]})
    assert configuration.build({"pipeline": ["picky"]}) == (Picky(),)


def test_a_broken_package_harms_only_who_uses_it(register: Callable[..., None]) -> None:
    register(first="PASSES", broken="no_such_module:PASSES")
    assert configuration.build({"pipeline": ["probe"]}) == (Probe(),)
    with pytest.raises(UsageError, match=r"unknown pass 'other'.*broken 1\.0: entry point"):
        configuration.build({"pipeline": ["other"]})


def test_a_run_gathers_what_the_stages_say() -> None:
    seen: list[str] = []
    subject = empty_model()
    result = pipeline.run(subject, [Probe(number=7), Probe(flag=True)], on_pass=seen.append)
    assert result.model is subject
    assert seen == ["probe", "probe"]
    assert result.notes == ("probe: noted", "probe: noted")
    assert result.record == {"probe": {"number": 1}}
    assert result.modified == ("probe",)


@pytest.mark.parametrize(
    ("stage", "kind", "message"),
    [
        (Probe(fail=UsageError("as it is")), UsageError, "^as it is$"),
        (Picky(), GateError, "^the gate is closed$"),
        (Probe(fail=KeyError("x")), ModelError, r"^pass probe failed: 'x' \(run with --debug"),
        (Probe(fail=RuntimeError()), ModelError, "^pass probe failed: RuntimeError "),
    ],
)
def test_errors_are_one_line_that_names_the_pass(
    stage: Pass, kind: type[OnnxDecompError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        pipeline.run(empty_model(), [stage])
    assert caught.value.__cause__ is not None or caught.value is getattr(stage, "fail", None)


def test_options_are_described(register: Callable[..., None]) -> None:
    register(first="PASSES")
    described = {o.name: o for o in installed.options(Probe)}
    assert described["mode"] == installed.OptionInfo("mode", "a|b", "a", "which of two")
    assert described["many"].type == "a list of text"
    assert "fail" not in described  # without a help text it is no option for people


def test_the_listing_survives_what_is_broken(register: Callable[..., None]) -> None:
    register(first="PASSES", second="RIVAL", third="ODD", broken="no_such_module:PASSES")
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    assert "registered by first 1.0 and second 1.0" in result.stdout
    assert "'lost' of third 1.0 cannot be imported" in result.stdout
    assert "normalise" in result.stdout
    assert "warning: broken 1.0" in result.stderr
    assert "warning" not in result.stdout


@pytest.mark.parametrize("options", [{}, {"precision": "single"}])
def test_names_of_options_mean_nothing_to_a_run(
    options: dict[str, str], register: Callable[..., None]
) -> None:
    register(other="NAMESAKE")
    weight = np.random.default_rng(0).standard_normal((24, 24)).astype(np.float32)
    subject = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 24]}, ["y"], {"w": weight})
    config = {"pipeline": ["namesake", "decompose", "check"], "namesake": options}
    result = compress(subject, config=config, rank="4", bench=False)
    assert result.record["passes"]["namesake"] == {"precision": options.get("precision", "none")}
    assert [choice.ranks for choice in result.plan.decomposed] == [(4,)]


@dataclass(frozen=True)
class Curious(Pass):
    """Asks for a plan, and says what it was given."""

    name: ClassVar[str] = "curious"
    summary: ClassVar[str] = "Look at the context"

    @property
    def uses(self) -> frozenset[Need]:
        return frozenset(("plan",))

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        given = [f.name for f in fields(context) if getattr(context, f.name) is not None]
        return PassResult(
            model, False, plan=context.plan, record={"given": given}, opset=18, precision="fp16"
        )


def test_a_pass_gets_what_it_asks_for_and_what_it_says_reaches_the_result() -> None:
    context = PassContext(plan=Plan(()), memory=Memory(), original_bytes=3, seed=4)
    seen: list[PassContext] = []

    @dataclass(frozen=True)
    class Later(Pass):
        name: ClassVar[str] = "later"
        summary: ClassVar[str] = "Look at the interface"

        @property
        def needs(self) -> frozenset[Need]:
            return frozenset(("interface",))

        def run(self, model: ir.Model, context: PassContext) -> PassResult:
            seen.append(context)
            return PassResult(model, False)

    done = pipeline.run(empty_model(), [Curious(), Later()], context)
    assert (done.plan, done.precision, done.precisions) == (Plan(()), "fp16", {"curious": "fp16"})
    assert done.record == {"curious": {"given": ["plan", "provider", "seed", "spectra"]}, "later": {}}
    assert (seen[0].plan, seen[0].memory, seen[0].original_bytes, seen[0].seed) == (None, None, None, 4)
    assert seen[0].interface is not None
    assert seen[0].interface.opsets == {"": 18}
    assert Curious().run(empty_model(), PassContext()).record == {"given": ["provider", "seed", "spectra"]}


def test_shapes_are_inferred_again_where_a_pass_changed_the_model() -> None:
    model = empty_model()
    infer_shapes(model)
    pipeline.run(model, [Probe()])
    assert is_inferred(model)
    pipeline.run(model, [Probe(flag=True)])
    assert not is_inferred(model)


def test_every_need_is_a_field_of_the_context() -> None:
    empty = {f.name: f.default for f in fields(PassContext)}
    assert all(empty[need] is None for need in get_args(Need))
    full = PassContext(**{need: object() for need in get_args(Need)})  # type: ignore[arg-type]
    for need in get_args(Need):
        left = full.only((need,))
        assert [other for other in get_args(Need) if getattr(left, other) is not None] == [need]


def test_a_pass_without_the_contract_is_named() -> None:
    class Odd(Probe):
        def run(self, model: ir.Model, context: PassContext) -> PassResult:
            return ir.passes.PassResult(model, False)  # type: ignore[return-value]

    with pytest.raises(ModelError, match=r"pass probe failed: Odd\.run returns a PassResult of onnx_ir"):
        pipeline.run(empty_model(), [Odd()])
