"""The store: entries are whole or not there, and what was damaged is not read."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxdecomp.errors import UsageError
from onnxdecomp.tasks.store import Store

KEY, ARRAYS = "ab" * 32, [np.arange(50.0).reshape(5, 10), np.asfortranarray(np.eye(3, dtype=np.float32))]


def filled(folder: Path) -> Store:
    store = Store.at(folder)
    store.write(KEY, ({"list": [1, 2.5, "x"]}, ARRAYS))
    return store


def test_an_entry_comes_back_bit_by_bit(tmp_path: Path) -> None:
    found = filled(tmp_path / "new" / "folder").read(KEY)
    assert found is not None
    assert found[0] == {"list": [1, 2.5, "x"]}
    for one, other in zip(found[1], ARRAYS, strict=True):
        assert (one.dtype, one.flags.f_contiguous) == (other.dtype, other.flags.f_contiguous)
        np.testing.assert_array_equal(one, other)


def test_other_tools_read_an_entry(tmp_path: Path) -> None:
    with np.load(filled(tmp_path).path(KEY), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["0"], ARRAYS[0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_entry_of_which_anything_was_changed_is_the_same_or_none(
    data: st.DataObject, tmp_path: Path
) -> None:
    store = filled(tmp_path)
    path = store.path(KEY)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        del raw[place:]
    path.write_bytes(raw)
    found = store.read(KEY)
    if found is not None:  # a byte that says nothing, such as the time of a member
        assert found[0] == {"list": [1, 2.5, "x"]}
        assert all(np.array_equal(one, other) for one, other in zip(found[1], ARRAYS, strict=True))


def test_an_entry_under_another_name_is_none(tmp_path: Path) -> None:
    store, other = filled(tmp_path), "cd" * 32
    store.path(other).parent.mkdir()
    os.replace(store.path(KEY), store.path(other))  # noqa: PTH105
    assert store.read(other) is None


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    path = store.path(KEY)
    path.parent.mkdir(parents=True)
    meta = np.frombuffer(json.dumps({"key": KEY, "value": None, "arrays": 1}).encode(), np.uint8)
    with path.open("wb") as file:
        arrays: dict[str, Any] = {"meta": meta, "0": np.array([{"a": pickle.dumps(1)}], object)}
        np.savez(file, **arrays)
    assert zipfile.is_zipfile(path)
    assert store.read(KEY) is None


def test_what_is_written_halfway_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(UsageError, match="No space left"):
        store.write(KEY, (None, ARRAYS))
    assert store.read(KEY) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "workdir.json"] == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"onnxdecomp": "workdir", "format": 99}', "another version"),
        ('{"some": "thing"}', "something else"),
        ("no json", "--workdir"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "workdir.json").write_text(content)
    with pytest.raises(UsageError, match=told):
        Store.at(tmp_path)


def test_a_folder_with_files_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(UsageError, match="holds something else"):
        Store.at(tmp_path)
    with pytest.raises(UsageError, match="--workdir"):
        Store.at(tmp_path / "letter.txt")
