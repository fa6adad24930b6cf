from __future__ import annotations

import multiprocessing
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import Convolve
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.errors import UsageError
from onnxdecomp.latency.cache import FILE, Stored, Where, cache_file, key_of, load, store, where
from onnxdecomp.latency.chain_model import filled
from onnxdecomp.latency.context import ALONE, Neighbours
from onnxdecomp.runtime import environment
from onnxdecomp.runtime.setting import Setting
from tests.builders.layers import hollow_conv, hollow_linear

ON = Where("cpu", "1.31.0", "a processor", 2)


def key(
    layer: Layer,
    method: str = "svd",
    ranks: tuple[int, ...] = (4,),
    shape: tuple[int, ...] = (1, 16, 8, 8),
    around: Neighbours = ALONE,
    on: Where = ON,
) -> str:
    return key_of(outline(get(method), layer, ranks), dense_chain(layer), layer, shape, around, on)


def test_everything_that_decides_the_time_is_in_the_key() -> None:
    layer = hollow_conv(24, 16)
    keys = [
        key(layer),
        key(layer, ranks=(5,)),
        key(layer, method="spatial"),
        key(layer, method="cp"),
        key(layer, shape=(2, 16, 8, 8)),
        key(layer, around=Neighbours(True)),
        key(layer, around=Neighbours(activation="Relu")),
        key(replace(layer, dtype="float16")),
        key(replace(layer, bias=None)),
        key(hollow_conv(24, 16, strides=(2, 2))),
        key(hollow_conv(24, 16, dilations=(2, 2))),
        key(hollow_conv(24, 16, 5)),
        key(hollow_conv(24, 16, groups=2)),
        *(
            key(layer, on=replace(ON, **change))
            for change in ({"provider": "cuda"}, {"runtime": "1.30.0"}, {"device": "other"}, {"threads": 1})
        ),
        key(hollow_linear(24, 16, "Gemm"), shape=(1, 16)),
        key(hollow_linear(24, 16, "MatMul"), shape=(1, 16)),
    ]
    assert len(set(keys)) == len(keys)


def test_numbers_and_names_are_not_in_the_key() -> None:
    layer = hollow_conv(24, 16)
    chain, dense = outline(get("svd"), layer, (4,)), dense_chain(layer)
    usual = key_of(chain, dense, layer, (1, 16, 8, 8), Neighbours(), ON)
    first, last = filled(chain).steps
    assert isinstance(first, Convolve)
    assert isinstance(last, Convolve)
    steps = replace(first, label="one"), replace(last, label="another")
    other = replace(layer, name="other", graph="elsewhere")
    shape = tuple(np.array((1, 16, 8, 8)))
    assert key_of(replace(chain, steps=steps), dense, other, shape, Neighbours(), ON) == usual


@given(st.dictionaries(st.text("abcdef0123456789", min_size=1), st.floats(0, 1e6), max_size=20))
def test_what_is_stored_is_loaded(values: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "below" / FILE
        entries = {key: Stored(value + 1, value) for key, value in values.items()}
        assert store(entries, file) is None
        assert load([*entries, "missing"], file) == (entries, None)
        changed = {key: Stored(1.0, 2.0) for key in list(entries)[:1]}
        assert store(changed, file) is None
        assert load(entries, file) == (entries | changed, None)


def test_many_keys(tmp_path: Path) -> None:
    entries = {str(index): Stored(index + 1.0, 0.5) for index in range(2500)}
    file = tmp_path / FILE
    assert store(entries, file) is None
    assert load(entries, file) == (entries, None)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"damaged" * 50])
def test_a_damaged_file_is_ignored_with_a_note(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / FILE
    file.write_bytes(content)
    found, note = load(["a"], file)
    assert found == {}
    assert note is not None
    assert str(file) in note
    trouble = store({"a": Stored(1, 1)}, file)
    assert trouble is not None
    assert str(file) in trouble
    assert "\n" not in trouble
    assert file.read_bytes() == content


def test_a_file_that_another_process_has_just_made_is_empty(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_bytes(b"")
    assert load(["a"], file) == ({}, None)
    assert store({"a": Stored(1, 1)}, file) is None


def test_another_table_is_ignored_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / FILE
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE timings (key TEXT PRIMARY KEY, other TEXT)")
    database.close()
    assert load(["a"], file)[1] is not None
    assert store({"a": Stored(1, 1)}, file) is not None


def test_a_folder_that_cannot_be_made_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = tmp_path / "file" / FILE
    assert store({"a": Stored(1, 1)}, file) is not None
    assert load(["a"], file) == ({}, None)


def test_nothing_to_store_makes_no_file(tmp_path: Path) -> None:
    assert store({}, tmp_path / FILE) is None
    assert list(tmp_path.iterdir()) == []


def _store_many(file: Path, start: int) -> None:
    for index in range(start, start + 20):
        assert store({str(index): Stored(index, 1.0)}, file) is None


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    file = tmp_path / FILE
    workers = [context.Process(target=_store_many, args=(file, 20 * k)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    found, note = load(map(str, range(60)), file)
    assert note is None
    assert found == {str(index): Stored(index, 1.0) for index in range(60)}


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ONNXDECOMP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_file() == tmp_path / ".cache" / "onnxdecomp" / FILE
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file() == tmp_path / "xdg" / "onnxdecomp" / FILE
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path / "own"))
    assert cache_file() == tmp_path / "own" / FILE


def test_where_timings_are_made() -> None:
    import onnxruntime

    assert where(Setting("CPUExecutionProvider", 3)) == Where(
        "cpu", onnxruntime.__version__, environment.cpu(), 3
    )
    with pytest.raises(UsageError, match="unknown provider"):
        where(Setting("abacus", 1))


def test_a_device_is_not_named_after_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    cards = [_listed("DmlExecutionProvider", 7), _listed("WebGpuExecutionProvider", 8)]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: cards, raising=False)
    one, other = where(Setting("dml", 1)), where(Setting("webgpu", 1))
    assert one.device == "Maker 10de:7 Description=card 7 size=large"
    assert other.device.startswith("Maker 10de:8")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: cards[1:], raising=False)
    assert where(Setting("dml", 1)).device == "unknown dml device"
    assert where(Setting("xnnpack", 1)).device == environment.cpu()


def _listed(name: str, number: int) -> SimpleNamespace:
    metadata = {"Description": f"card {number}"}
    device = SimpleNamespace(vendor="Maker", vendor_id=0x10DE, device_id=number, metadata=metadata)
    return SimpleNamespace(ep_name=name, ep_options={"size": "large"}, device=device)
