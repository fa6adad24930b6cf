"""Whether arrays are what a model's inputs want: names, shapes, types, and finite numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.names import names
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed, TensorSpec, dtype_of


def check_inputs(inputs: Sequence[TensorSpec]) -> None:
    """Check that arrays can be made for all inputs.

    Raises:
        UsageError: An input is a sequence or map, or of a type that NumPy does not have.
    """
    for spec in inputs:
        if not (spec.is_tensor and _is_numpy(spec)):
            raise UsageError(
                f"the input {spec.name!r} is a {spec.dtype}: files cannot hold data for it; --rank with "
                "--no-bench and without --calib needs none"
            )


def check_feed(feed: Mapping[str, Array], inputs: Sequence[TensorSpec], where: str) -> Feed:
    """The feed with each array in the model's type; read-only, since it may be handed out again.

    Raises:
        UsageError: A name, rank, size or type is not the model's, or a value is NaN or infinite.
    """
    if not isinstance(feed, Mapping):
        kind = type(feed).__name__
        raise UsageError(f"{where}: is a {kind}; a mapping from input names to arrays is wanted")
    wanted = [spec.name for spec in inputs]
    if set(feed) != set(wanted):
        raise UsageError(f"{where}: has {names(map(str, feed))}, the model's inputs are {names(wanted)}")
    result = {}
    for spec in inputs:
        array = np.asarray(feed[spec.name])
        check_shape(array.shape, spec, where)
        array = _cast(array, spec, where).view()
        array.flags.writeable = False
        result[spec.name] = array
    return result


def check_shape(shape: Sequence[int], spec: TensorSpec, where: str) -> None:
    """Check the shape of a whole feed's array.

    Raises:
        UsageError: It is not the input's.
    """
    fits = len(shape) == len(spec.shape) and all(
        size == want or not isinstance(want, int) for size, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise UsageError(f"{where}: {spec.name!r} has shape {tuple(shape)}, the model wants {spec}")


def check_dtype(dtype: np.dtype[np.generic], spec: TensorSpec, where: str) -> None:
    """Check that arrays of this type can be cast to the input's: within floats, within integers.

    Raises:
        UsageError: They cannot.
    """
    wanted = dtype_of(spec)
    if dtype == wanted or (wanted.hasobject and dtype.kind in "UO"):
        return
    if not (dtype.kind == wanted.kind == "f" or (dtype.kind in "iu" and wanted.kind in "iu")):
        raise UsageError(f"{where}: {spec.name!r} is {dtype}, the model wants {spec.dtype}")


def _is_numpy(spec: TensorSpec) -> bool:
    try:
        return dtype_of(spec).kind in "biufcO"  # bfloat16 and its like are "V" where ml_dtypes is imported
    except TypeError:
        return False


def _cast(array: Array, spec: TensorSpec, where: str) -> Array:
    check_dtype(array.dtype, spec, where)
    given = array
    wanted = dtype_of(spec)
    if array.dtype != wanted:
        if wanted.kind in "iu" and not _fits(array, wanted):
            raise UsageError(f"{where}: {spec.name!r} is {array.dtype}, the model wants {spec.dtype}")
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
    if wanted.kind in "fc" and not np.isfinite(array).all():
        raise UsageError(f"{where}: {spec.name!r} holds {_not_finite(given, array)}")
    return array


def _not_finite(given: Array, array: Array) -> str:
    if np.isnan(given).any():
        return "NaN"
    if np.isinf(given).any():
        return "infinite values"
    return f"values that {array.dtype} cannot hold"


def _fits(array: Array, wanted: np.dtype[np.generic]) -> bool:
    if array.size == 0:
        return True
    info = np.iinfo(wanted)  # type: ignore[type-var]
    return bool(info.min <= array.min() and array.max() <= info.max)
