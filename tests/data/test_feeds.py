from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.data.feeds import Feeds, FeedSource, Part, first_parts, join
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed


class Files:
    """Parts of numbered feeds of 8 bytes, and how often each was opened and how many were open at once."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.opened = [0] * len(counts)
        self.open = self.most_open = 0

    def parts(self) -> list[Part]:
        return [
            Part(count, lambda index=index: self.read(index), np.full(2 * count, index))  # type: ignore[misc]
            for index, count in enumerate(self.counts)
        ]

    def read(self, index: int) -> Iterator[Feed]:
        self.opened[index] += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            for k in range(self.counts[index]):
                yield {"x": np.array([[100.0 * index + k]])}
        finally:
            self.open -= 1

    def expected(self) -> list[float]:
        return [100.0 * index + k for index, count in enumerate(self.counts) for k in range(count)]


COUNTS = st.lists(st.integers(0, 5), max_size=6)


def numbers(feeds: Feeds | FeedSource) -> list[float]:
    return [feed["x"].item() for feed in feeds]


@given(COUNTS, st.integers(0, 200))
def test_every_iteration_gives_the_same_from_one_open_part(counts: list[int], hold: int) -> None:
    files = Files(*counts)
    feeds = join(files.parts(), "files", stackable=True, hold=hold)
    assert len(feeds) == sum(counts)
    for _ in range(3):
        assert numbers(feeds) == files.expected()
    assert [feeds[k]["x"].item() for k in range(len(feeds))] == files.expected()
    assert files.most_open <= 1
    assert files.open == 0


@given(COUNTS, st.integers(0, 200))
def test_what_fits_is_held_and_the_rest_read_again(counts: list[int], hold: int) -> None:
    files = Files(*counts)
    source = FeedSource(files.parts(), hold=hold)
    for _ in range(4):
        numbers(source)
    held = [count for count, opened in zip(counts, files.opened, strict=True) if opened == 1]
    again = [count for count, opened in zip(counts, files.opened, strict=True) if opened == 4]
    assert len(held) + len(again) == len(counts)
    assert 8 * sum(held) <= hold
    assert all(8 * (sum(held) + count) > hold for count in again)


@given(COUNTS, st.integers(0, 40))
def test_the_first_feeds_with_their_labels(counts: list[int], count: int) -> None:
    files = Files(*counts)
    feeds = join(files.parts(), "files", stackable=False)
    labels = np.repeat(np.arange(len(counts)), [2 * count for count in counts])
    for first in (feeds.first(count), join(first_parts(files.parts(), count), "files", stackable=False)):
        assert numbers(first) == files.expected()[:count]
        found = [] if first.labels is None else first.labels.tolist()
        assert found == labels[: 2 * count].tolist()
    assert feeds.first(None) is feeds


@given(COUNTS, st.integers(2, 10))
def test_what_is_set_apart_are_pairs_with_their_labels(counts: list[int], each: int) -> None:
    files = Files(*counts)
    whole = join(files.parts(), "files", stackable=False)
    parts = whole.apart(each)
    assert sorted(number for part in parts for number in numbers(part)) == sorted(files.expected())
    assert abs(len(parts[1]) - len(whole) / each) <= 2
    assert bool(parts[1]) == (len(whole) >= each)
    wanted = dict(zip(numbers(whole), np.repeat(np.arange(len(counts)), counts), strict=True))
    for part in parts:
        found = [] if part.labels is None else part.labels.reshape(-1, 2)[:, 0].tolist()
        assert found == [wanted[number] for number in numbers(part)]
        if len(whole) >= 2 * each:
            places = [files.expected().index(number) for number in numbers(part)]
            assert all(place ^ 1 in places for place in places if place ^ 1 < len(whole))


@pytest.mark.parametrize("classes", [2, 4, 5, 8, 10])
@pytest.mark.parametrize("ordered", ["one after the other", "in turn"])
def test_parts_have_all_classes_however_they_come(classes: int, ordered: str) -> None:
    labels = np.repeat(np.arange(classes), 400 // classes)
    if ordered == "in turn":
        labels = labels.reshape(classes, -1).T.ravel()
    feeds = Feeds(tuple({"x": np.full((1, 1), label)} for label in labels), "sorted", labels)
    for part in (*feeds.apart(4), *feeds.apart(10), feeds.spread(100), feeds.spread(50)):
        assert part.labels is not None
        assert [int(feed["x"][0, 0]) for feed in part] == part.labels.tolist()
        found = np.bincount(part.labels, minlength=classes) * classes / len(part)
        assert np.all((found > 0.5) & (found < 1.6))


@given(COUNTS, st.integers(1, 40))
def test_feeds_are_spread_over_all(counts: list[int], count: int) -> None:
    files = Files(*counts)
    some = join(files.parts(), "files", stackable=False).spread(count)
    for _ in range(2):
        places = [files.expected().index(number) for number in numbers(some)]
        assert len(places) == min(count, len(files.expected()))
        ends = [k * len(files.expected()) // count for k in range(count + 1)]
        if count < len(files.expected()):
            assert all(a <= k < b for k, a, b in zip(places, ends, ends[1:], strict=False))


@given(COUNTS)
def test_halves_hold_every_feed_once_with_its_labels(counts: list[int]) -> None:
    files = Files(*counts)
    whole = join(files.parts(), "files", stackable=False)
    halves = whole.halves()
    assert sorted(number for half in halves for number in numbers(half)) == sorted(files.expected())
    assert abs(len(halves[0]) - len(halves[1])) <= 2
    wanted = dict(zip(numbers(whole), np.repeat(np.arange(len(counts)), counts), strict=True))
    for half in halves:
        found = [] if half.labels is None else half.labels.reshape(-1, 2)[:, 0].tolist()
        assert found == [wanted[number] for number in numbers(half)]
        places = [files.expected().index(number) for number in numbers(half)]
        assert all(place ^ 1 in places for place in places if place ^ 1 < len(whole))  # pairs stay pairs


def test_labels_of_any_kind_go_with_their_samples() -> None:
    feeds = Feeds(
        tuple({"x": np.full((2, 1), k)} for k in range(5)), "s", np.array([f"t{k}" for k in range(10)])
    )
    first, second = feeds.halves()
    assert first.labels is not None
    assert first.labels.tolist() == ["t0", "t1", "t2", "t3", "t8", "t9"]
    assert second.labels is not None
    assert second.labels.tolist() == ["t4", "t5", "t6", "t7"]
    uneven = Feeds(tuple({"x": np.ones((n, 1))} for n in (1, 3, 3)), "s", np.arange(14).reshape(7, 2))
    rest, last = uneven.apart(3)
    assert rest.labels is not None
    assert rest.labels[:, 0].tolist() == [0, 2, 4, 6]
    assert last.labels is not None
    assert last.labels[:, 0].tolist() == [8, 10, 12]


def test_a_part_is_closed_when_an_iteration_is_given_up() -> None:
    files = Files(3, 3)
    feeds = join(files.parts(), "files", stackable=False)
    list(islice(feeds, 4))
    assert files.open == 0


def test_shapes_do_not_read_again_what_was_read() -> None:
    files = Files(2, 3)
    feeds = join(files.parts(), "files", stackable=False, hold=0)
    assert feeds.shapes() == ({"x": (1, 1)},)
    assert files.opened == [1, 1]
    numbers(feeds)
    assert feeds.shapes() == ({"x": (1, 1)},)
    assert files.opened == [2, 2]
    assert Feeds((), "none").shapes() == ()


def test_batches_stack_neighbours_over_the_parts() -> None:
    feeds = join(Files(2, 3).parts(), "files", stackable=True, hold=0)
    assert [batch["x"].ravel().tolist() for batch in feeds.batches(2)] == [[0, 1], [100, 101], [102]]
    assert len(list(Feeds(tuple(feeds), "held").batches(2))) == 5  # not stackable
    odd = Feeds(({"x": np.ones((1, 2))}, {"x": np.ones((1, 3))}, {"x": np.ones((1, 3))}), "odd", None, True)
    assert [batch["x"].shape for batch in odd.batches(4)] == [(1, 2), (2, 3)]


def test_data_that_shrink_meanwhile_are_noticed() -> None:
    source = FeedSource([Part(3, lambda: iter([{"x": np.zeros(1)}]))])
    with pytest.raises(UsageError, match="changed"):
        list(source)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError):
        FeedSource(Files(1, 1).parts())[index]


def test_the_largest_of_feeds_of_several_shapes() -> None:
    sizes = [(1, 4), (1, 9), (3, 2), (1, 9)]
    feeds = Feeds([{"x": np.full(size, index), "n": np.zeros(1)} for index, size in enumerate(sizes)], "s")
    assert feeds.largest()["x"].shape == (1, 9)
    assert feeds.largest()["x"][0, 0] == 1
    assert feeds.apart(2)[1].largest()["x"][0, 0] == 3
