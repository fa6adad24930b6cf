from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.inputs import read_feeds
from onnxdecomp.runtime.session import TensorSpec

IMAGE = (TensorSpec("x", ("N", 3, 4, 4), "float32"),)
STATE = (
    TensorSpec("frame", (1, 4), "float32"),
    TensorSpec("state", (2, 1, 4), "float32"),
    TensorSpec("gain", (), "int64"),
)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def images(count: int) -> NDArray[np.float32]:
    return np.arange(count * 48, dtype=np.float32).reshape(count, 3, 4, 4)


def test_samples_without_the_batch_axis_get_it(tmp_path: Path) -> None:
    x = images(5)
    feeds = read_feeds(npz(tmp_path / "a.npz", x=x), IMAGE)
    assert [feed["x"].shape for feed in feeds] == [(1, 3, 4, 4)] * 5
    np.testing.assert_array_equal(feeds[3]["x"][0], x[3])
    assert [feed["x"].shape[0] for feed in feeds.batches(2)] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds.batches(2)]), x)


def test_samples_with_the_batch_axis_are_whole_feeds(tmp_path: Path) -> None:
    x = images(6).reshape(3, 2, 3, 4, 4)
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
        ({"y": images(1)}, r"holds y, the model's inputs are x"),
        ({"x": np.zeros((0, 3, 4, 4), np.float32)}, "the calibration set is empty"),
        ({"x": np.zeros((3, 4), np.float32)}, r"shape \(3, 4\)"),
        ({"x": np.zeros((1, 3, 5, 4, 1, 1), np.float32)}, "the model wants x float32"),
        ({"x": np.zeros((2, 1, 4, 4), np.float32)}, r"shape \(1, 1, 4, 4\)"),
        ({"x": np.zeros((1, 3, 4, 4), np.uint8)}, "uint8, the model wants float32"),
        ({"x": np.full((1, 3, 4, 4), np.nan, np.float32)}, "NaN"),
        ({"x": images(3), "labels": np.zeros(4)}, "labels"),
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


def test_iterables_and_calibration_readers() -> None:
    class Reader:
        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Any:
            raise AssertionError("get_next is to be used")

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            self.left -= 1
            return {"x": images(1)} if self.left >= 0 else None

    assert len(read_feeds(Reader(), IMAGE)) == 3
    assert len(read_feeds([{"x": images(1)}, {"x": images(1)}], IMAGE, samples=1)) == 1
    with pytest.raises(UsageError, match="feed 0"):
        read_feeds([{"z": images(1)}], IMAGE)
