"""Finding decompositions: those of other packages, and what is wrong with some of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
from click.testing import CliRunner

from onnxdecomp.cli.methods import command
from onnxdecomp.decompositions import registry
from onnxdecomp.decompositions.base import Refusal, refusal_of
from onnxdecomp.decompositions.svd import Svd
from onnxdecomp.errors import UsageError
from onnxdecomp.search.rules import Defaults, parse_rule
from tests.builders.entry_points import register_points
from tests.builders.layers import conv_layer, linear_layer

HERE = __name__


@dataclass(frozen=True)
class Plain(Svd):
    """An SVD of another name.

    Attributes:
        order: As of the SVD. More.
    """

    name: ClassVar[str] = "plain"


@dataclass(frozen=True)
class Needy(Svd):
    name: ClassVar[str] = "needy"

    size: int = 0

    def __post_init__(self) -> None:
        if not self.size:
            raise ValueError("a size is needed")


@dataclass(frozen=True)
class Nothing:
    name: ClassVar[str] = "nothing"


GOOD = {"plain": f"{HERE}:Plain"}
RIVAL = {"plain": f"{HERE}:Plain", "svd": f"{HERE}:Plain"}
BROKEN = {
    "lost": "no_such_module:Class",
    "nothing": f"{HERE}:Nothing",
    "needy": f"{HERE}:Needy",
    "other": f"{HERE}:Plain",
    "auto": f"{HERE}:Plain",
    "my-svd": f"{HERE}:Plain",
}


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Register entry points: register(first="GOOD", second="RIVAL")."""

    def apply(**mappings: str) -> None:
        register_points(monkeypatch, registry.GROUP, HERE, mappings)
        registry._discovered.cache_clear()

    yield apply
    registry._discovered.cache_clear()


def test_another_packages_method_is_one_like_ours(register: Callable[..., None]) -> None:
    register(first="GOOD")
    assert registry.names() == (*registry.METHODS, "plain")
    assert registry.get("plain", order="channel-first") == Plain("channel-first")
    assert (registry.package_of("plain"), registry.package_of("svd")) == ("first 1.0", None)
    described = {entry["name"]: entry for entry in registry.describe()}
    assert described["plain"]["distribution"] == "first 1.0"
    (option,) = registry.options("plain")
    assert option.help == "As of the SVD"
    rule = parse_rule("fc*=plain:rank=3:order=kernel-first", Defaults("0.5"))
    assert rule.methods == (Plain("kernel-first"),)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lost", "method 'lost' of third 1.0 cannot be imported: No module named 'no_such_module'"),
        ("nothing", "is not a dataclass with all that onnxdecomp.decompositions.base.Decomposition asks for"),
        ("needy", "method 'needy' of third 1.0 cannot be made with its defaults: a size is needed"),
        ("other", "method 'other' of third 1.0 calls itself 'plain'"),
        ("auto", "a word of the letters a to z, and not auto, keep, width or attention"),
        ("my-svd", "a method's name is a word of the letters a to z$"),
    ],
)
def test_a_broken_package_harms_only_who_asks_for_it(
    name: str, message: str, register: Callable[..., None]
) -> None:
    register(first="GOOD", third="BROKEN")
    with pytest.raises(UsageError, match=message):
        registry.get(name)
    listed = [entry["name"] for entry in registry.describe()]
    assert listed == [*registry.METHODS, "plain", "width", "attention"]
    assert len(registry.problems()) == len(BROKEN)
    done = CliRunner().invoke(command, [])
    assert (done.exit_code, done.exception) == (0, None)
    assert "warning: method 'lost' of third 1.0" in done.output


def test_an_entry_point_that_cannot_be_loaded_is_named(register: Callable[..., None]) -> None:
    register(first="NO_SUCH_THING")
    assert registry.names() == tuple(registry.METHODS)
    with pytest.raises(UsageError, match=r"unknown method 'plane'.*first 1\.0: entry point 'first'"):
        registry.get("plane")


def test_rivals_are_named(register: Callable[..., None]) -> None:
    register(first="GOOD", second="RIVAL")
    both = "registered by first 1.0 and second 1.0: uninstall one of them"
    with pytest.raises(UsageError, match=f"method 'plain' is {both}"):
        registry.get("plain")
    with pytest.raises(UsageError, match=r"'svd' is registered by onnxdecomp and second 1\.0"):
        registry.get("svd")
    assert registry.get("tucker").name == "tucker"


def test_a_method_answers_with_the_one_that_does_its_work() -> None:
    tucker = registry.get("tucker")
    assert tucker.specialise(conv_layer(4, 5, (3, 3))) is tucker
    assert tucker.specialise(linear_layer(4, 5)) == Svd()
    assert tucker.specialise(linear_layer(1, 5)) == Refusal("a full rank of 1: nothing to reduce")
    assert refusal_of(tucker, conv_layer(4, 5, (3, 3))) is None
    assert refusal_of(tucker, linear_layer(4, 5)) == "on such a layer it is svd: use that"
    assert refusal_of(tucker, linear_layer(1, 5)) == "a full rank of 1: nothing to reduce"


def test_joint_methods_are_listed_and_marked() -> None:
    joint = [entry["name"] for entry in registry.describe() if entry.get("joint")]
    assert joint == ["shared", "width", "attention"]
    assert all(registry.is_joint(name) for name in joint)
    assert not registry.is_joint("svd")
    assert all(entry["takes"] and entry["paper"] and entry["summary"] for entry in registry.describe())


@pytest.mark.parametrize(("said", "meant"), [("SVD", "svd"), ("tuker", "tucker"), ("widht", "width")])
def test_a_slip_in_a_name_is_told_with_what_was_meant(said: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown method '{said}'; did you mean '{meant}'?"):
        registry.get(said)
