from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxdecomp.data.feeds import FeedSource
from onnxdecomp.data.npz import npz_part
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.preflight import said_of_unused
from onnxdecomp.runtime.session import TensorSpec
from tests.builders.feeds import IMAGE, counted, npz


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npz")


@given(
    array=hnp.arrays(
        st.sampled_from(["<f4", ">f4", "<f8", "<f2"]),
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)),
        elements=st.integers(-9, 9),
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
    batched=st.booleans(),
)
def test_streaming_gives_what_numpy_reads(
    folder: Path, array: NDArray[Any], fortran: bool, compressed: bool, batched: bool
) -> None:
    path = folder / "a.npz"
    stored = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if compressed else np.savez)(path, x=stored, other=np.zeros(3))
    specs = (TensorSpec("x", (None, None) if batched else (None, None, None), "float32"),)
    feeds = read_feeds(path, specs)
    with np.load(path) as archive:
        expected = archive["x"].astype(np.float32)
    found = [feed["x"] for feed in feeds]
    np.testing.assert_array_equal(np.stack(found) if batched else np.concatenate(found), expected)
    assert all(piece.dtype == np.float32 and piece.dtype.isnative for piece in found)


def test_text_is_read(tmp_path: Path) -> None:
    feeds = read_feeds(npz(tmp_path / "a.npz", s=np.array(["a", "bc"])), (TensorSpec("s", ("N",), "str"),))
    assert [feed["s"].tolist() for feed in feeds] == [["a"], ["bc"]]
    assert feeds[0]["s"].dtype == object


class Counted(zipfile.ZipFile):
    """An archive that counts how many of its kind are open."""

    open_now = most_open = opened = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Counted.opened += 1
        Counted.open_now += 1
        Counted.most_open = max(Counted.most_open, Counted.open_now)

    def close(self) -> None:
        if self.fp is not None:
            Counted.open_now -= 1
        super().close()


def test_a_folder_is_read_file_by_file_and_sample_by_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve files of 1 MiB with 16 samples each, none held: 64 KiB a sample."""
    specs = (TensorSpec("x", ("N", 128, 128), "float32"),)
    for index in range(12):
        npz(tmp_path / f"{index}.npz", x=np.full((16, 128, 128), index, np.float32))
    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    source = FeedSource([npz_part(tmp_path / f"{index}.npz", specs)[0] for index in range(12)], hold=0)
    assert Counted.opened == 12
    tracemalloc.start()
    try:
        for _ in range(2):
            total = sum(float(feed["x"].mean()) for feed in source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 16 * sum(range(12))
    assert Counted.opened == 36
    assert Counted.most_open == 1
    assert Counted.open_now == 0
    assert peak < 512 << 10


@given(position=st.integers(0, 10**6), value=st.integers(1, 255), compressed=st.booleans())
def test_a_changed_byte_is_noticed_or_harmless(
    folder: Path, position: int, value: int, compressed: bool
) -> None:
    path = folder / "c.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=counted(3))
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= value
    path.write_bytes(bytes(content))
    message = ""
    try:
        found = [feed["x"] for feed in read_feeds(path, IMAGE)]
    except UsageError as error:
        message = str(error)
    if message:
        assert "c.npz" in message
        assert "\n" not in message
    else:  # a date, or another byte that nobody reads
        np.testing.assert_array_equal(np.concatenate(found), counted(3))


@given(length=st.integers(0, 10**6))
def test_a_file_cut_short_is_noticed(folder: Path, length: int) -> None:
    path = npz(folder / "d.npz", x=counted(3))
    content = path.read_bytes()
    path.write_bytes(content[: length % len(content)])
    with pytest.raises(UsageError, match="is no readable"):
        read_feeds(path, IMAGE)


def test_a_file_that_changes_while_it_is_used(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=counted(3))
    source = FeedSource([npz_part(path, IMAGE)[0]], hold=0)
    assert len(list(source)) == 3
    npz(path, x=counted(2))
    with pytest.raises(UsageError, match="changed while it was used"):
        list(source)
    path.unlink()
    with pytest.raises(UsageError, match="is no readable"):
        list(source)


def test_arrays_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="Python objects are not read"):
        read_feeds(path, IMAGE)
    np.save(tmp_path / "b.npy", counted(1))
    (tmp_path / "b.npy").rename(path)
    with pytest.raises(UsageError, match="has no names for its arrays"):
        read_feeds(path, IMAGE)


def test_an_input_may_be_called_labels(tmp_path: Path) -> None:
    specs = (TensorSpec("labels", ("N", 2), "float32"),)
    feeds = read_feeds(npz(tmp_path / "a.npz", labels=np.ones((3, 2), np.float32)), specs)
    assert len(feeds) == 3
    assert feeds.labels is None


@pytest.mark.parametrize(("names", "further"), [(("x",), ""), (("x", "it's", "z"), "it's, z")])
def test_an_array_without_a_name_is_told_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], further: str
) -> None:
    """The line in the message makes a file that is read."""
    monkeypatch.chdir(tmp_path)
    array = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.save("a b.npy", array)
    specs = [TensorSpec(name, ("N", 2), "float32") for name in names]
    with pytest.raises(UsageError, match="has no names for its arrays") as caught:
        npz_part(Path("a b.npy"), specs)
    line = str(caught.value).partition("numpy.savez")[2].partition(", and the same for ")
    assert line[2] == further
    eval(f"numpy.savez{line[0]}", {"numpy": np})
    feeds = read_feeds(Path("a b.npz"), specs[:1])
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), array)


def test_arrays_that_no_input_takes_are_told(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"x": counted(2), "label": np.arange(2)}
    (note,) = said_of_unused(read_feeds(npz(tmp_path / "a.npz", **arrays), IMAGE))
    assert note.endswith("for no inputs of the model, nor labels, which are the array 'labels': 'label'")
    (note,) = said_of_unused(read_feeds({**arrays, "labels": np.arange(2)}, IMAGE))
    assert note.endswith(": left alone, for no inputs of the model: 'label'")
    many: dict[str, Any] = {f"other{index}": np.zeros(1) for index in range(6)}
    (note,) = said_of_unused(read_feeds({"x": counted(2), **many}, IMAGE))
    assert note.endswith("'other0', 'other1', 'other2', 'other3' and 2 more")
    known: dict[str, Any] = {"x": counted(2), "labels": np.arange(2)}
    assert said_of_unused(read_feeds(known, IMAGE)) == ()
