"""Gates: what they mean, what they say when they fail, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.gate import NAMES, parse_gate
from tests.conftest import ROOT

VALUES = {"latency": 1.07, "latency_median": 0.98, "rel_l2": 0.01, "size": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        "latency<=1.1 and rel_l2<=0.05",
        "latency<=1.0 or rel_l2<=0.05",
        "not latency>1.2",
        "0.3 < size < 0.7",
        "latency_median < latency",
        "(latency<1 and size<1) or not (rel_l2>0.05 or size>=1)",
        "size != 1 and size == 0.5 and -1 < size",
        "  size<1  ",
    ],
)
def test_what_passes(text: str) -> None:
    assert parse_gate(text).failure(VALUES) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("latency<=1.0 and rel_l2<=0.05", "latency = 1.07 where latency <= 1.0 is wanted"),
        ("not (size<1)", "size = 0.5 where not size < 1 is wanted"),
        (
            "latency<1 or size<0.1",
            "latency = 1.07 where latency < 1 is wanted; size = 0.5 where size < 0.1 is wanted",
        ),
        ("0 < size < 0.4 and latency<2", "size = 0.5 where 0 < size < 0.4 is wanted"),
        (
            "latency < latency_median",
            "latency = 1.07, latency_median = 0.98 where latency < latency_median is wanted",
        ),
    ],
)
def test_what_fails_and_why(text: str, reason: str) -> None:
    assert parse_gate(text).failure(VALUES) == reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latncy<=1", "unknown name 'latncy'; did you mean 'latency'"),
        ("latency", "no comparison"),
        ("1<2", "speaks of nothing measured"),
        ("latency<=", "no condition"),
        ("latency<=True", "neither a name nor a number"),
        ("latency<='1'", "neither a name nor a number"),
        ("latency in size", "not 'in'"),
        ("latency+1<2", "neither a name nor a number"),
        ("__import__('os').system('true')", "no comparison"),
        ("latency<=(lambda: 1)()", "neither a name nor a number"),
        ("latency<1;size<1", "no condition"),
        ("latency<1\0", "no condition"),
        ("(" * 2000 + "latency<1" + ")" * 2000, "more than"),
        ("not " * 240 + "x", "unknown name|no comparison"),
        ("", "no condition"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_gate(text)


@given(st.text(max_size=60))
def test_anything_is_either_a_gate_or_a_usage_error(text: str) -> None:
    try:
        parse_gate(text)
    except UsageError:
        return
    assert any(name in text for name in NAMES)


def test_an_unknown_value_is_no_pass() -> None:
    with pytest.raises(UsageError, match="drop is not known here"):
        parse_gate("drop<=0.01").failure({"drop": None})


def test_every_name_is_documented() -> None:
    documented = (ROOT / "docs" / "guides" / "ci.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in documented] == []
