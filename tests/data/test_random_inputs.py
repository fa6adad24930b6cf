from __future__ import annotations

import numpy as np
import pytest

from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.random_inputs import bindings, random_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed, TensorSpec


def anything(feed: Feed) -> None:
    return None


def test_same_symbol_same_size_and_two_sizes() -> None:
    specs = (
        TensorSpec("a", ("N", "T", 8), "float32"),
        TensorSpec("b", ("N", "T"), "int64"),
    )
    feeds = random_feeds(specs, anything, per_binding=1)
    assert isinstance(feeds, Feeds)
    first, second = feeds
    for feed in feeds:
        assert feed["a"].shape[:2] == feed["b"].shape
    assert first["a"].shape[0] == 1
    assert second["a"].shape[0] == 2
    assert first["a"].shape[1] != second["a"].shape[1]


def test_sizes_are_tried_until_the_model_runs() -> None:
    specs = (TensorSpec("x", (None, 3, None, None), "float32"),)

    def even_multiple_of_128(feed: Feed) -> str | None:
        return None if feed["x"].shape[2] % 128 == 0 else "wrong size"

    found = bindings(specs, even_multiple_of_128)
    assert not isinstance(found, str)
    assert [binding.shapes["x"][2] for binding in found] == [128, 256]


def test_a_state_with_the_batch_on_its_second_axis() -> None:
    specs = (TensorSpec("x", (None, None), "float32"), TensorSpec("state", (2, None, 8), "float32"))

    def recurrent(feed: Feed) -> str | None:
        return None if feed["state"].shape[1] == feed["x"].shape[0] and feed["x"].shape[1] > 8 else "no"

    found = bindings(specs, recurrent)
    assert not isinstance(found, str)
    assert [binding.shapes["state"] for binding in found] == [(2, 1, 8), (2, 2, 8)]


def test_scalar_integers_are_tried() -> None:
    specs = (TensorSpec("sr", (), "int64"), TensorSpec("x", (1, 4), "float32"))
    found = bindings(specs, lambda feed: None if feed["sr"] == 8000 else "unknown sample rate")
    assert not isinstance(found, str)
    assert found[0].feed(specs, (0,))["sr"] == 8000


def test_integers_that_a_model_takes_by_luck_alone_are_not_taken() -> None:
    """A table of 31 rows takes most random words below 32, and the next ones not."""
    specs = (TensorSpec("ids", ("N", 4), "int64"), TensorSpec("mask", ("N", 4), "int64"))

    def table(feed: Feed) -> str | None:
        return None if feed["ids"].max() < 31 and feed["mask"].max() == 1 else "out of bounds"

    for seed in range(4):
        feeds = random_feeds(specs, table, seed=seed, per_binding=50)
        assert isinstance(feeds, Feeds)
        assert not any(table(feed) for feed in feeds)


def test_fixed_shapes_have_one_binding_and_seeds_matter() -> None:
    specs = (TensorSpec("x", (1, 4), "float32"),)
    feeds = random_feeds(specs, anything, per_binding=2)
    again = random_feeds(specs, anything, per_binding=2)
    other = random_feeds(specs, anything, per_binding=2, seed=1)
    assert isinstance(feeds, Feeds)
    assert isinstance(again, Feeds)
    assert isinstance(other, Feeds)
    assert len(feeds) == 2
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])
    np.testing.assert_array_equal(feeds[1]["x"], again[1]["x"])
    assert not np.array_equal(feeds[0]["x"], other[0]["x"])


def test_what_never_runs_is_a_reason_and_no_exception() -> None:
    specs = (TensorSpec("x", (1, 4), "float32"),)
    assert "broken" in str(bindings(specs, lambda feed: "broken"))
    assert "seq" in str(bindings((TensorSpec("x", (), "seq(tensor(float))"),), anything))


def test_dtypes() -> None:
    specs = tuple(
        TensorSpec(dtype, (2, 3, 4), dtype)
        for dtype in ("float16", "float64", "bool", "uint8", "int8", "str")
    )
    found = bindings(specs, anything)
    assert not isinstance(found, str)
    feed = found[0].feed(specs, (0,))
    kinds = {name: array.dtype.kind for name, array in feed.items()}
    assert kinds == {"float16": "f", "float64": "f", "bool": "b", "uint8": "u", "int8": "i", "str": "O"}
    assert feed["uint8"].max() > 32
    assert feed["int8"].min() >= 0


def test_shapes_of_the_user() -> None:
    specs = (TensorSpec("x", ("N", 3, "H", "W"), "float32"), TensorSpec("y", ("N", "H"), "float32"))
    found = bindings(specs, anything, shapes={"x": (5, 3, 10, 20)})
    assert not isinstance(found, str)
    assert len(found) == 1
    assert found[0].shapes == {"x": (5, 3, 10, 20), "y": (5, 10)}
    for shapes, message in (
        ({"z": (1,)}, "inputs are x, y"),
        ({"x": (5, 4, 10, 20)}, "does not fit"),
        ({"x": (5, 3)}, "does not fit"),
        ({"x": (0, 3, 10, 20)}, "below 1"),
    ):
        with pytest.raises(UsageError, match=message):
            bindings(specs, anything, shapes=shapes)
