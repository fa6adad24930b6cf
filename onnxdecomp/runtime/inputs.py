"""Inputs to run a model on: read from files, or seeded random numbers.

Files are .npz (one array per input; samples on the first axis), a folder of such files, or ONNX test
data (test_data_set_*/input_*.pb). The rank of an array decides how it is cut into feeds: one more
axis than the model's input, and array[k] is a whole feed; the same rank, and array[k] lacks the batch
axis.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from onnxdecomp.errors import UsageError
from onnxdecomp.layer import Array
from onnxdecomp.runtime.session import Feed, TensorSpec, dtype_of

Data: TypeAlias = str | Path | Iterable[Mapping[str, Array]]
"""A file or folder, an iterable of feeds, or an ONNX Runtime CalibrationDataReader."""


@dataclass(frozen=True, eq=False)
class Feeds:
    """Feeds in order, each an array per input with the batch axis.

    Attributes:
        items: The feeds.
        source: Where they come from, for people.
        labels: Class indices, samples in the order of the feeds' rows, or None.
        stackable: Whether each feed is one sample of a model whose batch size is free.
    """

    items: tuple[Feed, ...]
    source: str
    labels: Array | None = None
    stackable: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Feed:
        return self.items[index]

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """The different shapes among the feeds."""
        seen: dict[tuple[tuple[str, tuple[int, ...]], ...], None] = {}
        for feed in self.items:
            seen.setdefault(tuple((name, array.shape) for name, array in feed.items()))
        return tuple(dict(shapes) for shapes in seen)

    def batches(self, size: int) -> Iterator[Feed]:
        """The feeds, `size` neighbours stacked into one where that is possible."""
        group: list[Feed] = []
        for feed in self.items:
            if group and (len(group) == size or not self.stackable or not _alike(group[0], feed)):
                yield _stack(group)
                group = []
            group.append(feed)
        if group:
            yield _stack(group)


def read_feeds(data: Data, inputs: Sequence[TensorSpec], *, samples: int | None = None) -> Feeds:
    """The feeds that `data` holds for a model with these inputs, at most `samples` of them.

    Raises:
        UsageError: Nothing is there, or it does not fit the inputs (name, rank, size, dtype, NaN).
    """
    for spec in inputs:
        if not spec.is_tensor:
            raise UsageError(f"the input {spec.name!r} is a {spec.dtype}: files cannot hold data for it")
    if isinstance(data, str | Path):
        feeds = _from_path(Path(data), inputs, samples)
    else:
        items = (_checked(feed, inputs, f"feed {k}") for k, feed in enumerate(iterate(data)))
        feeds = Feeds(tuple(islice(items, samples)), "feeds of the caller")
    if not feeds.items:
        raise UsageError(f"the calibration set is empty: {feeds.source}")
    return feeds


def iterate(data: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """The feeds of an iterable or of a CalibrationDataReader."""
    read: Callable[[], Mapping[str, Array] | None] | None = getattr(data, "get_next", None)
    if read is None:
        yield from data
        return
    while feed := read():
        yield feed


def _from_path(path: Path, inputs: Sequence[TensorSpec], samples: int | None) -> Feeds:
    if not path.exists():
        raise UsageError(f"there is no data at {path}")
    if path.is_file():
        return _merge([_from_npz(path, inputs, samples)], str(path))
    sets = sorted(path.glob("test_data_set_*"), key=_natural) or [path]
    sets = [folder for folder in sets if any(folder.glob("input_*.pb"))]
    if sets:
        items = (_from_protobufs(folder, inputs) for folder in sets)
        return Feeds(tuple(islice(items, samples)), str(path))
    parts: list[Feeds] = []
    for file in sorted(path.glob("*.npz"), key=_natural):
        missing = None if samples is None else samples - sum(map(len, parts))
        if missing == 0:
            break
        parts.append(_from_npz(file, inputs, missing))
    if not parts:
        raise UsageError(f"{path} has no .npz file and no test_data_set_*/input_*.pb or input_*.pb")
    return _merge(parts, str(path))


def _merge(parts: Sequence[Feeds], source: str) -> Feeds:
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        raise UsageError(f"only some of the files in {source} have labels")
    return Feeds(
        tuple(feed for part in parts for feed in part),
        source,
        np.concatenate(labels) if labels else None,
        all(part.stackable for part in parts),
    )


def _from_npz(path: Path, inputs: Sequence[TensorSpec], samples: int | None) -> Feeds:
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = [spec.name for spec in inputs]
            arrays = {name: archive[name] for name in (*wanted, "labels") if name in archive.files}
            held = archive.files
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no readable .npz file: {error}") from error
    labels = None if "labels" in wanted else arrays.pop("labels", None)
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise UsageError(
            f"{path} has no array for the input {missing[0]!r}: it holds {_names(held)}, "
            f"the model's inputs are {_names(wanted)}"
        )
    feeds = _cut(arrays, inputs, path)
    if labels is not None:
        if len(feeds) == 0 or labels.ndim != 1 or len(labels) % len(feeds):
            raise UsageError(f"{path}: {labels.shape} labels do not fit {len(feeds)} samples")
        labels = labels.reshape(len(feeds), -1)[:samples].reshape(-1)
    return replace(feeds, items=feeds.items[:samples], labels=labels)


def _cut(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], path: Path) -> Feeds:
    """Cut whole arrays into feeds, as their ranks say."""
    counts: dict[str, int] = {}
    steps: dict[str, int] = {}  # rows of a feed; 0: array[k] is the feed
    for spec in inputs:
        array, rank = arrays[spec.name], len(spec.shape)
        if array.ndim == rank + 1:
            counts[spec.name], steps[spec.name] = len(array), 0
        elif array.ndim == rank and rank:
            first = spec.shape[0]
            step = first if isinstance(first, int) and first > 1 else 1
            if len(array) % step:
                raise UsageError(
                    f"{path}: {spec.name!r} has {len(array)} rows, the model takes {step} at a time"
                )
            counts[spec.name], steps[spec.name] = len(array) // step, step
        elif array.ndim != rank:
            raise UsageError(
                f"{path}: {spec.name!r} has shape {array.shape}; the model wants {spec} "
                f"and, if there are many, samples on the first axis"
            )
    whole = not counts
    if len(set(counts.values())) > 1:
        whole = all(steps.values())  # every array has the model's rank: the file is one feed
        if not whole:
            each = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UsageError(f"{path}: the inputs differ in their number of samples: {each}")

    def feed(k: int) -> Feed:
        result = {}
        for name, array in arrays.items():
            step = steps.get(name)
            if whole or step is None:
                result[name] = array
            else:
                result[name] = array[k * step : (k + 1) * step] if step else array[k]
        return result

    count = 1 if whole else next(iter(counts.values()))
    items = tuple(_checked(feed(k), inputs, f"{path}, sample {k}") for k in range(count))
    stackable = not whole and all(
        steps.get(spec.name) == 1 and not isinstance(spec.shape[0], int) for spec in inputs
    )
    return Feeds(items, str(path), None, stackable)


def _from_protobufs(folder: Path, inputs: Sequence[TensorSpec]) -> Feed:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    tensors = []
    for path in sorted(folder.glob("input_*.pb"), key=_natural):
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(path.read_bytes())
            tensors.append((tensor.name, numpy_helper.to_array(tensor)))
        except (DecodeError, ValueError, TypeError) as error:
            raise UsageError(f"{path} holds no tensor: {error}") from error
    names = [spec.name for spec in inputs]
    if {name for name, _ in tensors} != set(names):  # often the tensors are not named: then by position
        if len(tensors) != len(names):
            raise UsageError(f"{folder} has {len(tensors)} inputs, the model has {_names(names)}")
        tensors = [(name, array) for name, (_, array) in zip(names, tensors, strict=True)]
    return _checked(dict(tensors), inputs, str(folder))


def _checked(feed: Mapping[str, Array], inputs: Sequence[TensorSpec], where: str) -> Feed:
    """The feed with each array in the model's dtype.

    Raises:
        UsageError: A name, rank, size or dtype is not the model's, or a value is NaN.
    """
    names = [spec.name for spec in inputs]
    if set(feed) != set(names):
        raise UsageError(f"{where}: has {_names(feed)}, the model's inputs are {_names(names)}")
    result = {}
    for spec in inputs:
        array = np.asarray(feed[spec.name])
        fits = array.ndim == len(spec.shape) and all(
            size == want or not isinstance(want, int)
            for size, want in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            raise UsageError(f"{where}: {spec.name!r} has shape {array.shape}, the model wants {spec}")
        result[spec.name] = _cast(array, spec, where)
    return result


def _cast(array: Array, spec: TensorSpec, where: str) -> Array:
    wanted = dtype_of(spec)
    if wanted.hasobject and array.dtype.kind in "UO":
        return array.astype(object)
    if array.dtype != wanted:
        same_kind = array.dtype.kind == wanted.kind == "f" or (
            array.dtype.kind in "iu" and wanted.kind in "iu" and _fits(array, wanted)
        )
        if not same_kind:
            raise UsageError(f"{where}: {spec.name!r} is {array.dtype}, the model wants {spec.dtype}")
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
    if wanted.kind == "f" and np.isnan(array).any():
        raise UsageError(f"{where}: {spec.name!r} holds NaN")
    return array


def _fits(array: Array, wanted: np.dtype[np.generic]) -> bool:
    if array.size == 0:
        return True
    info = np.iinfo(wanted)  # type: ignore[type-var]
    return bool(info.min <= array.min() and array.max() <= info.max)


def _alike(a: Feed, b: Feed) -> bool:
    return all(array.shape[1:] == b[name].shape[1:] for name, array in a.items())


def _stack(group: Sequence[Feed]) -> Feed:
    if len(group) == 1:
        return group[0]
    return {name: np.concatenate([feed[name] for feed in group]) for name in group[0]}


def _natural(path: Path) -> tuple[int, str]:
    """input_2 before input_10."""
    return (len(path.name), path.name)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
