from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxdecomp.data.preprocess import parse_preprocess
from onnxdecomp.data.read import Prepared, describe, prepared, read_feeds, repeatable
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import TensorSpec
from tests.builders.feeds import IMAGE, STATE, counted, npz


def test_samples_without_the_batch_axis_get_it(tmp_path: Path) -> None:
    x = counted(5)
    feeds = read_feeds(npz(tmp_path / "a.npz", x=x), IMAGE)
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 4, 4)] * 5
    np.testing.assert_array_equal(feeds[3]["x"][0], x[3])
    assert [feed["x"].shape[0] for feed in feeds.batches(2)] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds.batches(2)]), x)


def test_samples_with_the_batch_axis_are_whole_feeds(tmp_path: Path) -> None:
    x = counted(6).reshape(3, 2, 3, 4, 4)
    feeds = read_feeds(npz(tmp_path / "a.npz", x=x), IMAGE)
    assert [feed["x"].shape for feed in feeds] == [(2, 3, 4, 4)] * 3
    assert len(list(feeds.batches(2))) == 3  # these are not stacked: their first axis may be anything


def test_a_state_keeps_its_axes_and_a_scalar_is_one_per_sample(tmp_path: Path) -> None:
    state = np.arange(24, dtype=np.float32).reshape(3, 2, 1, 4)
    gain = np.array([1, 2, 3], np.int64)
    file = npz(tmp_path / "a.npz", frame=np.ones((3, 4), np.float32), state=state, gain=gain)
    feeds = read_feeds(file, STATE)
    assert len(feeds) == 3
    assert not feeds.stackable
    assert feeds[1]["frame"].shape == (1, 4)
    np.testing.assert_array_equal(feeds[2]["state"], state[2])
    assert feeds[1]["gain"].shape == ()
    assert feeds[1]["gain"] == 2


def test_a_file_may_be_a_single_feed(tmp_path: Path) -> None:
    feed = {
        "frame": np.ones((1, 4), np.float32),
        "state": np.zeros((2, 1, 4), np.float32),
        "gain": np.int64(7),
    }
    feeds = read_feeds(npz(tmp_path / "a.npz", **feed), STATE)
    assert len(feeds) == 1
    assert feeds[0]["state"].shape == (2, 1, 4)
    assert feeds[0]["gain"] == 7


def test_unequal_first_axes_of_model_rank_are_one_feed(tmp_path: Path) -> None:
    specs = (TensorSpec("a", ("P", 2), "float32"), TensorSpec("b", ("Q", 2), "float32"))
    feeds = read_feeds(npz(tmp_path / "a.npz", a=np.zeros((5, 2)), b=np.zeros((3, 2))), specs)
    assert [feed["a"].shape for feed in feeds] == [(5, 2)]


def test_a_folder_is_read_in_natural_order_with_labels(tmp_path: Path) -> None:
    for index in (10, 9):
        npz(tmp_path / f"s{index}.npz", x=np.full((2, 3, 4, 4), index, np.float32), labels=[index, index])
    feeds = read_feeds(tmp_path, IMAGE)
    assert [feed["x"].flat[0] for feed in feeds] == [9, 9, 10, 10]
    assert feeds.labels is not None
    assert feeds.labels.tolist() == [9, 9, 10, 10]
    first = read_feeds(tmp_path, IMAGE, samples=3)
    assert len(first) == 3
    assert first.labels is not None
    assert first.labels.tolist() == [9, 9, 10]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_onnx_test_data(tmp_path: Path, inside: bool, named: bool) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    arrays: dict[str, NDArray[Any]] = {
        "frame": np.ones((1, 4), np.float32),
        "state": np.full((2, 1, 4), 3, np.float32),
        "gain": np.array(5, np.int64),
    }
    for index, (name, array) in enumerate(arrays.items()):
        tensor = numpy_helper.from_array(array, name if named else "")
        (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
    (folder / "output_0.pb").write_bytes(b"ignored")
    feeds = read_feeds(folder if inside else tmp_path, STATE)
    assert len(feeds) == 1
    assert feeds[0]["gain"] == 5
    np.testing.assert_array_equal(feeds[0]["state"], arrays["state"])


def test_widths_are_cast_within_a_kind(tmp_path: Path) -> None:
    assert read_feeds(npz(tmp_path / "a.npz", x=np.ones((1, 3, 4, 4))), IMAGE)[0]["x"].dtype == np.float32
    ids = (TensorSpec("ids", ("N", 2), "int32"),)
    feeds = read_feeds(npz(tmp_path / "b.npz", ids=np.ones((1, 2), np.int64)), ids)
    assert feeds[0]["ids"].dtype == np.int32
    with pytest.raises(UsageError, match="int64"):
        read_feeds(npz(tmp_path / "c.npz", ids=np.full((1, 2), 2**40)), ids)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": counted(1)}, r"holds y, the model's inputs are x"),
        ({"x": np.zeros((0, 3, 4, 4), np.float32)}, "the calibration set is empty"),
        ({"x": np.zeros((3, 4), np.float32)}, r"shape \(3, 4\)"),
        ({"x": np.zeros((1, 3, 5, 4, 1, 1), np.float32)}, "the model wants x float32"),
        ({"x": np.zeros((2, 1, 4, 4), np.float32)}, r"shape \(1, 1, 4, 4\)"),
        ({"x": np.zeros((1, 3, 4, 4), np.uint8)}, "uint8, the model wants float32"),
        ({"x": np.full((1, 3, 4, 4), np.nan, np.float32)}, "NaN"),
        ({"x": counted(3), "labels": np.zeros(4)}, "labels"),
    ],
)
def test_data_that_do_not_fit_say_so(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_feeds(npz(tmp_path / "a.npz", **arrays), IMAGE)


def test_unreadable_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no data"):
        read_feeds(tmp_path / "nothing", IMAGE)
    with pytest.raises(UsageError, match=r"no \.npz"):
        read_feeds(tmp_path, IMAGE)
    (tmp_path / "bad.npz").write_bytes(b"no zip archive")
    with pytest.raises(UsageError, match="no readable"):
        read_feeds(tmp_path / "bad.npz", IMAGE)


class Reader:
    """A CalibrationDataReader of three feeds."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Any:
        raise AssertionError("get_next is to be used")

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        self.given += 1
        return {"x": counted(self.given)[-1:]} if self.given <= 3 else None


def generator(count: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Feeds in one array that is filled again for each, as many loaders do."""
    x = np.zeros((1, 3, 4, 4), np.float32)
    for k in range(count):
        x[...] = k
        yield {"x": x}


def first_values(feeds: Iterable[Mapping[str, NDArray[Any]]]) -> list[float]:
    return [float(feed["x"].flat[0]) for feed in feeds]


def test_iterables_and_calibration_readers() -> None:
    assert len(read_feeds([{"x": counted(1)}, {"x": counted(1)}], IMAGE, samples=1)) == 1
    with pytest.raises(UsageError, match="feed 0: has z"):
        read_feeds([{"z": counted(1)}], IMAGE)
    with pytest.raises(UsageError, match="feed 0: is a ndarray"):
        read_feeds([counted(1)], IMAGE)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="empty"):
        read_feeds([], IMAGE)
    with pytest.raises(UsageError, match="empty"):
        read_feeds(iter([]), IMAGE)


def test_what_can_be_drawn_once_is_read_many_times() -> None:
    for feeds, expected in (
        (read_feeds(Reader(), IMAGE), [0.0, 48.0, 96.0]),
        (read_feeds(generator(4), IMAGE), [0.0, 1.0, 2.0, 3.0]),
        (read_feeds(generator(4), IMAGE, samples=2), [0.0, 1.0]),
    ):
        assert len(feeds) == len(expected)
        assert first_values(feeds) == first_values(feeds) == expected
        assert feeds[1]["x"].flat[0] == expected[1]


def test_only_as_many_are_drawn_as_are_used() -> None:
    reader = Reader()
    read_feeds(reader, IMAGE, samples=2)
    assert reader.given == 2
    assert len(repeatable(reader, 5)) == 1  # type: ignore[arg-type]


def test_a_later_feed_that_does_not_fit_is_found_when_it_is_read() -> None:
    feeds = read_feeds([{"x": counted(1)}, {"x": counted(1) * np.nan}], IMAGE)
    with pytest.raises(UsageError, match="feed 1: 'x' holds NaN"):
        list(feeds)


def test_feeds_are_read_only() -> None:
    x = counted(1)
    feed = read_feeds([{"x": x}], IMAGE)[0]
    with pytest.raises(ValueError, match="read-only"):
        feed["x"][0] = 1
    x[0] = 1  # the caller's own array stays writeable


def test_a_mapping_is_whole_arrays_and_is_not_copied() -> None:
    x = counted(6)
    arrays: dict[str, NDArray[Any]] = {"x": x, "labels": np.arange(6)}
    feeds = read_feeds(arrays, IMAGE, samples=4)
    assert len(feeds) == 4
    assert feeds.stackable
    assert all(np.shares_memory(feed["x"], x) for feed in feeds)
    assert feeds.labels is not None
    assert feeds.labels.tolist() == [0, 1, 2, 3]


def test_feeds_are_data_themselves(tmp_path: Path) -> None:
    npz(tmp_path / "s1.npz", x=counted(2), labels=[1, 2])
    npz(tmp_path / "s2.npz", x=counted(4).reshape(2, 2, 3, 4, 4), labels=[3, 4, 5, 6])
    feeds = read_feeds(tmp_path, IMAGE)
    assert read_feeds(feeds, IMAGE) is feeds
    first = read_feeds(feeds, IMAGE, samples=3)
    assert [feed["x"].shape[0] for feed in first] == [1, 1, 2]
    assert first.labels is not None
    assert first.labels.tolist() == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="the model's inputs are y"):
        read_feeds(feeds, (TensorSpec("y", ("N", 3, 4, 4), "float32"),))


def test_labels_in_some_files_only(tmp_path: Path) -> None:
    npz(tmp_path / "s1.npz", x=counted(2), labels=[1, 2])
    npz(tmp_path / "s2.npz", x=counted(2))
    with pytest.raises(UsageError, match="only some"):
        read_feeds(tmp_path, IMAGE)


def test_every_file_of_a_folder_is_checked_at_once(tmp_path: Path) -> None:
    npz(tmp_path / "s1.npz", x=counted(2))
    npz(tmp_path / "s2.npz", x=np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(UsageError, match=r"s2\.npz, sample 0: 'x' has shape"):
        read_feeds(tmp_path, IMAGE)
    assert len(read_feeds(tmp_path, IMAGE, samples=2)) == 2


@pytest.mark.parametrize("dtype", ["seq(tensor(float))", "bfloat16", "float8e4m3fn"])
def test_inputs_that_no_file_can_feed(dtype: str) -> None:
    with pytest.raises(UsageError, match="cannot hold data"):
        read_feeds([{"x": counted(1)}], (TensorSpec("x", (1,), dtype),))


def test_damaged_test_data(tmp_path: Path) -> None:
    (tmp_path / "input_0.pb").write_bytes(b"no tensor")
    with pytest.raises(UsageError, match="holds no tensor"):
        read_feeds(tmp_path, IMAGE)
    tensor = numpy_helper.from_array(counted(1), "other")
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    (tmp_path / "input_1.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(UsageError, match="has 2 inputs, the model has x"):
        read_feeds(tmp_path, IMAGE)


def test_test_data_sets_in_natural_order_and_the_first_of_them(tmp_path: Path) -> None:
    for index in (10, 9, 2):
        folder = tmp_path / f"test_data_set_{index}"
        folder.mkdir()
        tensor = numpy_helper.from_array(np.full((1, 3, 4, 4), index, np.float32), "x")
        (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    assert first_values(read_feeds(tmp_path, IMAGE)) == [2, 9, 10]
    assert first_values(read_feeds(tmp_path, IMAGE, samples=2)) == [2, 9]


def test_prepared_data() -> None:
    made = prepared("photos", "imagenet")
    assert made == Prepared("photos", parse_preprocess("imagenet"))
    assert describe(made) == "photos"
    assert prepared("photos", None) == "photos"
    assert prepared(None, "imagenet") is None
    feeds = [{"x": counted(1)}]
    assert prepared(feeds, "imagenet") is feeds
    with pytest.raises(UsageError, match="did you mean 'imagenet'"):
        prepared("photos", "imagenett")


def test_a_preprocessing_is_for_images_only(tmp_path: Path) -> None:
    data = prepared(npz(tmp_path / "a.npz", x=counted(2)), "imagenet")
    assert data is not None
    assert first_values(read_feeds(data, IMAGE)) == [0, 48]


def test_files_are_repeatable_as_they_are(tmp_path: Path) -> None:
    assert repeatable(tmp_path, 1) == tmp_path
    feeds = [{"x": counted(1)}] * 3
    assert repeatable(feeds, 1) is feeds
    assert len(repeatable(generator(3), 2)) == 2  # type: ignore[arg-type]
