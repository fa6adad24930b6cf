"""Values: what is packed comes back the same, hashes tell different things apart, and nothing runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.steps import MatMul
from onnxdecomp.tasks.values import Codec, digest


@dataclass(frozen=True)
class Point:
    x: object
    y: object = None


CODEC = Codec((Point, Chain, MatMul))

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
numbers = arrays.arrays(
    st.sampled_from(["f4", "f8", "i8", "u1", "?"]), arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)
)
values = st.recursive(
    plain | numbers,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            type(other) is type(one)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, Point):
        return type(other) is Point and same(one.x, other.x) and same(one.y, other.y)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return type(other) is dict and same(list(one.items()), list(other.items()))
    return bool(type(one) is type(other) and one == other)


@settings(max_examples=20)
@given(values)
def test_what_is_packed_comes_back(value: object) -> None:
    assert same(value, CODEC.unpack(CODEC.pack(value)))


@settings(max_examples=20)
@given(values, values)
def test_a_hash_is_that_of_the_value_and_of_all_of_it(one: object, other: object) -> None:
    assert digest(one) == digest(CODEC.unpack(CODEC.pack(one)))
    assert digest(one, other) != digest(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        ((1,), (True,)),
        ((1,), (1.0,)),
        (([],), (None,)),
        ((np.zeros(2, np.float32),), (np.zeros(1, np.float64),)),
        ((np.zeros((2, 3)),), (np.zeros((3, 2)),)),
        ((Point(1, 2),), (Point(2, 1),)),
        (({"a": 1},), ({"a": 2},)),
        ((b"1",), ("1",)),
    ],
)
def test_what_looks_alike_has_other_hashes(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert digest(*one) != digest(*other)


def test_the_order_in_memory_comes_back() -> None:
    """What is computed from arrays depends on it in the last bits; parts of others become whole."""
    array = np.arange(12.0).reshape(3, 4)
    found = CODEC.unpack(CODEC.pack([np.asfortranarray(array), array[:, ::2]]))
    assert isinstance(found, list)
    fortran, view = found
    assert fortran.flags.f_contiguous
    assert view.flags.c_contiguous
    np.testing.assert_array_equal(view, array[:, ::2])


def test_a_chain_comes_back() -> None:
    chain = Chain((MatMul(np.arange(6.0).reshape(2, 3)), MatMul(np.ones((3, 2)))), np.zeros(2), 2)
    again = CODEC.unpack(CODEC.pack(chain))
    assert isinstance(again, Chain)
    np.testing.assert_array_equal(again.dense(), chain.dense())


@pytest.mark.parametrize("value", [object(), {1, 2}, CODEC, lambda: None])
def test_only_named_kinds_are_packed(value: object) -> None:
    with pytest.raises(TypeError):
        CODEC.pack(value)


@pytest.mark.parametrize(
    "packed", [{"kind": "Popen", "fields": {}}, {"array": 3, "scalar": False}, {"pairs": 1}, {}, {"list": {}}]
)
def test_what_is_no_value_is_refused(packed: Any) -> None:
    with pytest.raises(ValueError, match="is no packed value"):
        CODEC.unpack((packed, []))
