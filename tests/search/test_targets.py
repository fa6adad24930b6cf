"""Budgets from text, their limits, and refusals that say what to give."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.search.metrics.base import CostMetric
from onnxdecomp.search.metrics.registry import METRICS
from onnxdecomp.search.targets import Budget, parse_budget, parse_budgets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=2x", Budget("macs", 2, relative=True)),
        ("params=4x", Budget("params", 4, relative=True)),
        ("size=3X", Budget("size", 3, relative=True)),
        ("latency=1.5x", Budget("latency", 1.5, relative=True)),
        ("macs=20M", Budget("macs", 20e6)),
        ("macs=1.5g", Budget("macs", 1.5e9)),
        ("macs=20000000", Budget("macs", 20e6)),
        ("params=250K", Budget("params", 250e3)),
        ("size=1.5MB", Budget("size", 1.5e6)),
        ("size=2 MiB", Budget("size", 2.0**21)),
        ("size=1000", Budget("size", 1000)),
        ("latency=3.2ms", Budget("latency", 3.2)),
        ("latency=800us", Budget("latency", 0.8)),
        ("latency=.5s", Budget("latency", 500)),
        ("error=0.05", Budget("error", 0.05)),
        ("error=5%", Budget("error", 0.05)),
        ("drop=0.01", Budget("drop", 0.01)),
        ("drop=1pp", Budget("drop", 0.01)),
        ("drop=1%", Budget("drop", 0.01, percent=True)),
        ("drop=1.5", Budget("drop", 1.5)),
        ("metric>=81.5", Budget("metric", 81.5, sign=">=")),
        ("metric >= 81.5%", Budget("metric", 0.815, sign=">=")),
        ("Metric<=-3e-2", Budget("metric", -0.03, sign="<=")),
        ("drop=0", Budget("drop", 0)),
        ("disagreement=2%", Budget("disagreement", 0.02)),
        (" MACs = 2e6 ", Budget("macs", 2e6)),
    ],
)
def test_forms(text: str, budget: Budget) -> None:
    read = parse_budget(text)
    for name in ("quantity", "relative", "percent", "sign"):
        assert getattr(read, name) == getattr(budget, name)
    assert math.isclose(read.limit, budget.limit, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", 'give "macs=2x"'),
        ("2x", 'give "macs=2x"'),
        ("flops=2x", 'give "macs=2x"'),
        ("macs", 'give "macs=2x" or "macs=20M"'),
        ("macs=", 'give "macs=2x" or "macs=20M"'),
        ("macs=half", "the units are x, K, M, G, T"),
        ("macs=20MB", "the units are x, K, M, G, T"),
        ("macs=x2", "the units are x, K, M, G, T"),
        ("size=1.5ms", "the units are x, B, KB, MB, GB, KiB, MiB, GiB"),
        ("latency=3", "the units are x, us, ms, s"),
        ("error=nan", "the units are %"),
        ("drop=2x", 'has no factor, give "drop=0.01", "drop=1pp" or "drop=1%"'),
        ("error=2pp", "the units are %"),
        ("macs=0.5x", "a factor of 1 or more"),
        ("macs=-2x", "a factor of 1 or more"),
        ("macs=0", "above 0"),
        ("latency=-1ms", "above 0"),
        ("error=5", "a fraction from 0 to below 1"),
        ("drop=-0.1", "a number of 0 or more"),
        ("metric=0.8", 'give "metric>=0.8" or "metric<=0.3"'),
        ("metric>0.8", "is no budget"),
        ("metric>=2x", "has no factor"),
        ("metric>=good", "no limit on metric"),
        ("macs>=2x", 'give "macs=2x" or "macs=20M"'),
        ("drop<=1%", 'give "drop=0.01"'),
        ("macs=1e999", "is no limit"),
        ("macs=1,5x", "no limit on macs"),
    ],
)
def test_refusals_say_what_to_give(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_budget(text)
    assert says in str(refused.value)
    assert str(refused.value).startswith("--target ")
    assert "\n" not in str(refused.value)


def test_several() -> None:
    assert parse_budgets("macs=2x, latency=1.5x") == (Budget("macs", 2, True), Budget("latency", 1.5, True))
    assert parse_budgets("error=0.05") == (Budget("error", 0.05),)


@pytest.mark.parametrize("text", ["", "macs=2x,", "macs=2x,macs=20M", "macs=2x latency=2x", "macs=1,5x"])
def test_several_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_budgets(text)


def test_allowed() -> None:
    assert parse_budget("macs=2.5x").allowed(1e9) == 4e8
    assert parse_budget("macs=20M").allowed(1e9) == 20e6
    assert parse_budget("latency=1x").allowed(3.7) == 3.7
    assert parse_budget("error=5%").allowed(0.0) == pytest.approx(0.05)


def test_what_is_limited() -> None:
    budgets = parse_budgets("macs=2x,size=1MB,error=1%,drop=1pp")
    assert [budget.on_loss for budget in budgets] == [False, False, True, True]


@given(st.sampled_from(sorted(METRICS)), st.floats(1e-6, 1e15), st.booleans())
def test_text_and_back(quantity: str, limit: float, relative: bool) -> None:
    metric = METRICS[quantity]
    if quantity == "metric":
        budget = Budget(quantity, limit, sign=">=" if relative else "<=")
    elif isinstance(metric, CostMetric):
        least = 1.0 if relative else 0.0 if metric.timed else 50.0  # fewer were meant as a factor
        budget = Budget(quantity, max(limit, least), relative)
    else:
        budget = Budget(quantity, limit / 1e16)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize("name", sorted(METRICS))
def test_what_messages_tell_people_to_give_can_be_read(name: str) -> None:
    written = re.findall(r'"([^"]+)"', METRICS[name].examples)
    assert written
    assert all(parse_budget(text).quantity == name for text in written)
    for suffix in METRICS[name].suffixes():
        assert parse_budget(f"{name}{METRICS[name].signs[0]}1{suffix}").quantity == name


@pytest.mark.parametrize("text", ["drop=0.5%", "drop=12.5%", "drop=0.005", "metric>=81.5", "metric<=0.3"])
def test_text_as_it_was_given(text: str) -> None:
    assert str(parse_budget(text)) == text


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("macs=2", "macs=2x"),
        ("params=4.5", "params=4.5x"),
        ("size=3", "size=3x"),
        ("mac=2x", "macs=2x"),
        ("latencies=1.5x", "latency=1.5x"),
        ("Sise=3x", "size=3x"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(said: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_budgets(said)
    assert repr(said) in str(caught.value)
    assert str(caught.value).endswith(f"did you mean {meant!r}?")


@pytest.mark.parametrize("said", ["macs=99", "params=2k", "size=500kb", "error=0.5", "macs=2000000"])
def test_numbers_that_a_model_can_have_are_limits(said: str) -> None:
    assert not parse_budgets(said)[0].relative
