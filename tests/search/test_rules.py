"""Rules: which layers get which methods, from text and from the pipeline's configuration."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline import configuration
from onnxdecomp.search.rules import Defaults, parse_rule
from tests.builders.models import two_convolutions

DEFAULTS = Defaults("0.5", {"tt": {"order": 2}})


def plan(**options: Any) -> dict[str, Any]:
    found, _ = Decompose(**options).plan(ir.from_proto(two_convolutions()))
    made = found.plan
    return {choice.layer: choice for choice in made.choices}


def test_a_rule_with_options() -> None:
    rule = parse_rule("fc*=tt:rank=16,32:shape=4x7:5x5:order=2", DEFAULTS)
    assert rule.match == "fc*"
    assert str(rule.rank) == "16,32"
    assert vars(rule.methods[0]) == {**vars(rule.methods[0]), "shape": "4x7:5x5", "order": 2}


def test_defaults_reach_a_rule_and_give_way_to_it() -> None:
    assert vars(parse_rule("*=tt", DEFAULTS).methods[0])["order"] == 2
    assert vars(parse_rule("*=tt:order=3", DEFAULTS).methods[0])["order"] == 3
    assert str(parse_rule("*=svd", DEFAULTS).rank) == "0.5"


def test_a_rank_with_an_equals_sign() -> None:
    assert str(parse_rule("*=svd:rank=energy=0.9", DEFAULTS).rank) == "energy=0.9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fc", "is no rule"),
        ("fc=", "is no rule"),
        ("fc=nonsense", "unknown method 'nonsense'"),
        ("fc=svd:colour=red", "no option 'colour'"),
        ("fc=svd:rank=0", "at least 1"),
        ("fc=tucker:rank=1,2,3", "takes one number or 2"),
        ("fc=keep:rank=3", "are kept"),
        ("fc=tt:order=two", "must be a whole number"),
        ("fc=svd:order=sideways", "must be auto|kernel-first|channel-first"),
    ],
)
def test_rules_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("|", r"\|")):
        parse_rule(text, DEFAULTS)


def test_the_first_rule_that_fits_decides() -> None:
    choices = plan(method="tucker", layers=("conv1=keep", "conv*=svd:rank=4", "fc=svd:rank=3"))
    assert choices["conv1"].reason == "kept as asked"
    assert (choices["conv2"].method, choices["conv2"].ranks) == ("svd", (4,))
    assert (choices["fc"].method, choices["fc"].ranks) == ("svd", (3,))


def test_a_list_of_methods_takes_the_first_that_fits() -> None:
    assert plan(method="tucker,svd", rank="0.5")["conv2"].method == "tucker"
    # At full rank Tucker costs more than the layer; so does the SVD, and both reasons are given.
    reason = plan(method="tucker,svd", rank="1.0")["conv2"].reason
    assert "tucker at ranks" in reason
    assert "svd at rank" in reason


def test_a_pattern_that_no_layer_has() -> None:
    with pytest.raises(UsageError, match="no layer matches 'head'"):
        plan(layers=("head=svd",))


def test_the_configuration_says_the_same() -> None:
    config = {"decompose": {"method": "tucker", "layers": ["fc=svd:rank=3"], "options": {"svd": {}}}}
    (stage,) = (s for s in configuration.build(config) if isinstance(s, Decompose))
    assert stage.layers == ("fc=svd:rank=3",)
    with pytest.raises(UsageError, match="unknown method"):
        configuration.build({"decompose": {"layers": ["fc=none"]}})


def test_options_of_a_method_that_is_not_asked_for() -> None:
    with pytest.raises(UsageError, match="options are given for method 'tt'"):
        Decompose(method="svd", options={"tt": {"order": 2}})


def test_small_layers_stay() -> None:
    assert plan(rank="0.5", skip_below=0.9)["fc"].reason.startswith("too small")
    assert "needs 1.00x the MACs" in plan(rank="0.5", skip_below=0)["fc"].reason
