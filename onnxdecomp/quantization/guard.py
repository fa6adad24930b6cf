"""Whether a model survives fewer bits, and what of it: it is not enough that what was made runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import Taps, open_taps
from onnxdecomp.calibration.pinned_values import pinned, present
from onnxdecomp.core.layer import Array
from onnxdecomp.core.names import some
from onnxdecomp.data.comparable_outputs import Compared, unsteady
from onnxdecomp.data.mask import Mask
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.attributes import dims
from onnxdecomp.graph.save import save
from onnxdecomp.quantization.fragile_nodes import crushed, faint, of_other_types, of_types, overflowing, seen
from onnxdecomp.quantization.half import LARGEST, fp16
from onnxdecomp.quantization.int8 import Reader, int8, operators
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.session import Feed, open_session, run

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds

HARMED = 0.5
"""Relative L2 distance of the outputs from which on a quantized model is taken for broken."""

MUCH = 0.5
"""What is left of the error where leaving more of the model in floating point is worth its time."""

BETTER = 0.9
"""The same where the error is more than may be."""

ENOUGH = {"int8": 0.02, "fp16": 0.005}
"""Errors below which nothing else is tried; one or the other is usual for the kind."""

_SHARE = 0.5
"""The part of the error allowed that quantization may take; squares add up, so 0.87 is left to the rest."""

_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

_DELICATE = frozenset(
    """
    BatchNormalization Div Exp GroupNormalization InstanceNormalization LayerNormalization Log LogSoftmax
    LpNormalization Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd
    ReduceSum ReduceSumSquare RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization Softmax Sqrt Sum
    """.split()  # noqa: SIM905 - a column of strings is no easier to read
)
"""Sums, normalisations, powers and exponentials: float16 has too few digits or too small a range for some."""

_JUDGED = 32
"""Calibration inputs that are compared."""


@dataclass(frozen=True, eq=False)
class Guarded:
    """A quantized model, or why there is none.

    Attributes:
        model: The quantized model, or None where its outputs are nothing like the original's.
        error: The relative L2 distance of its outputs on the inputs; of the best try. None without inputs.
        note: What a user should know, or "".
        kept: What stays in floating point, for people: nodes, or types of operators; () for nothing special.
        tried: What stayed in floating point, as a phrase, and the error, of each try.
    """

    model: ir.Model | None
    error: float | None
    note: str = ""
    kept: tuple[str, ...] = ()
    tried: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class _Try:
    """A way to quantize.

    Attributes:
        kept: The nodes that stay in floating point, for people.
        rest: What stays so besides, a phrase, or "".
        make: Quantizes.
    """

    kept: tuple[str, ...]
    rest: str
    make: Callable[[], ir.Model]

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.rest, some(self.kept))))


def guarded(
    model: ir.Model,
    feeds: Feeds,
    scheme: Scheme,
    *,
    samples: int = 256,
    limit: float | None = None,
    mask: Mask | None = None,
) -> Guarded:
    """`int8`, judged by the outputs on calibration inputs.

    One range for all numbers of a tensor fails where few of them are large, with masks and powers. Where that
    does harm, the nodes around such tensors stay in floating point, or all but convolutions and products.

    Args:
        model, feeds, scheme, samples: As for `int8`.
        limit: The error that is allowed in all, or None.
        mask: Which positions are padding, and not compared.

    Raises:
        ModelError: As `int8`.
    """
    with temporary_files.folder() as folder:
        ranges = folder / "ranges.json"

        def quantized(kept: Mapping[str, str], leave: frozenset[str]) -> ir.Model:
            how = replace(scheme, keep=frozenset({*scheme.keep, *kept}), leave=scheme.leave | leave)
            return int8(model, feeds, how, samples=samples, ranges=ranges)

        def tries() -> Iterator[_Try]:
            others = operators() - _PRODUCTS
            rest = "all but convolutions and products of matrices"
            yield _Try((), "", lambda: quantized({}, frozenset()))
            uneven = crushed(model, seen(model, feeds))
            if of_types(model, _PRODUCTS).keys() <= uneven.keys():
                uneven = {}  # what is left would be slower, and no smaller
            names = tuple(sorted(set(uneven.values())))
            if uneven:
                yield _Try(names, "", lambda: quantized(uneven, frozenset()))
            yield _Try((), rest, lambda: quantized({}, others))
            if uneven:
                yield _Try(names, rest, lambda: quantized(uneven, others))

        return _best("int8", tries(), lambda made: distance(model, made, feeds, mask), limit)


def guarded_half(
    model: ir.Model, feeds: Feeds | None, *, limit: float | None = None, mask: Mask | None = None
) -> Guarded:
    """`fp16`, judged by the outputs on some inputs.

    What reads or makes numbers beyond float16 stays in float32 in any case: where a processor has no kernels
    for float16, ONNX Runtime computes in float32, and would not show what happens elsewhere.

    Args:
        model: In float32.
        feeds: Inputs; without any the model's constants alone tell what stays.
        limit: The error that is allowed in all, or None.
        mask: Which positions are padding, and not compared.

    Raises:
        ModelError: As `fp16`.
    """
    activations = seen(model, feeds)

    def attempt(kept: Mapping[str, str], rest: str = "", others: Mapping[str, str] | None = None) -> _Try:
        names = tuple(sorted(set(kept.values())))
        return _Try(names, rest, lambda: fp16(model, frozenset({*kept, *(others or {})})))

    def tries() -> Iterator[_Try]:
        large = overflowing(model, activations)
        all_kept = faint(model, activations)
        yield attempt(large)
        if all_kept.keys() - large.keys():
            yield attempt(all_kept)
        delicate = {name: title for name, title in of_types(model, _DELICATE).items() if name not in all_kept}
        if delicate:
            yield attempt(all_kept, "sums, normalisations and exponentials", delicate)
        yield attempt(
            all_kept, "all but convolutions and products of matrices", of_other_types(model, _PRODUCTS)
        )

    if feeds is None:
        alone = attempt(faint(model, activations))
        note = "fp16 was not compared with the original, for want of inputs that it runs on"
        note += f"; in float32 stays what reads numbers that float16 has not: {alone}" if alone.kept else ""
        return Guarded(alone.make(), None, note, alone.kept)
    return _best("fp16", tries(), lambda made: distance(model, made, feeds, mask), limit)


def _best(
    kind: str, tries: Iterator[_Try], judge: Callable[[ir.Model], float], limit: float | None
) -> Guarded:
    """The try that leaves least in floating point, or one that is much better or that a limit needs."""
    enough = ENOUGH[kind] if limit is None else limit * _SHARE
    tried: list[tuple[str, float]] = []
    chosen: _Try | None = None
    best, error = None, math.inf
    for attempt in tries:
        try:
            made = attempt.make()
        except ModelError:
            if not tried:
                raise
            continue
        found = judge(made)
        tried.append((str(attempt), found))
        needed = (limit is not None and error > enough) or error > HARMED
        if best is None or found < (BETTER if needed else MUCH) * error:
            chosen, best, error = attempt, made, found
        if error <= enough:
            break
    assert chosen is not None
    bits = "8 bits" if kind == "int8" else "float16"
    off = f"the outputs are off by {error:.2g}" if math.isfinite(error) else "the outputs are not finite"
    if error > HARMED:
        note = f"not quantized, for in {bits} {off} (relative L2)"
        return Guarded(None, error, note, (), tuple(tried))
    note = ""
    if len(tried) > 1 and str(chosen) != tried[0][0]:
        first = tried[0][1]
        before = f"were off by {first:.2g}" if math.isfinite(first) else "were not finite"
        note = f"{chosen} in floating point: with more in {bits} the outputs {before}, now by {error:.2g}"
    elif chosen.kept:
        note = f"in float32, for float16 ends at {LARGEST:g}: {chosen}"
    kept = (*([chosen.rest] if chosen.rest else []), *chosen.kept)
    return Guarded(best, error, note, kept, tuple(tried))


def distance(model: ir.Model, other: ir.Model, feeds: Feeds, mask: Mask | None = None) -> float:
    """||other(x) - model(x)|| / ||model(x)|| over all floating-point outputs; infinite where not finite.

    Both compute with what the original chooses and draws (see onnxdecomp.calibration.pinned_values). Outputs
    that cannot be compared are left out, and so are positions that are padding; 0 where nothing is left.
    """
    names = [str(value.name) for value in model.graph.outputs]
    declared = {str(value.name): dims(value) for value in model.graph.outputs}
    compared: Compared | None = None
    with _runs(model, other, names) as both:
        reader = Reader(feeds.first(_JUDGED))
        while (feed := reader.get_next()) is not None:
            original, news = both(feed)
            originals = original()
            if compared is None:
                left_out = unsteady(names, originals, original())
                compared = Compared(names, declared=declared, mask=mask, left_out=left_out)
            compared.add(feed, originals, news())
    comparisons = [] if compared is None else compared.comparisons
    floats = [comparison for comparison in comparisons if not comparison.discrete]
    if any(comparison.nonfinite for comparison in floats):
        return float("inf")
    difference, norm = (sum(getattr(c, what) for c in floats) for what in ("error_energy", "energy"))
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))


_Run: TypeAlias = Callable[[], list[Array]]


@contextmanager
def _runs(
    model: ir.Model, other: ir.Model, names: Sequence[str]
) -> Iterator[Callable[[Feed], tuple[_Run, _Run]]]:
    """For an input what runs the two models on it, with the kernels that they will run on."""
    models = model, other
    choices = pinned(model)
    if choices:
        asked = open_taps(model, choices, threads=1)
        opened: list[Taps] = []

        def on_choices(feed: Feed) -> tuple[_Run, _Run]:
            chosen = dict(zip(asked.names, asked.run(feed), strict=True))
            given = [present(one, [chosen])[0] for one in models]
            if not opened:
                opened.extend(
                    open_taps(one, names, threads=1, known=known, integers=True)
                    for one, known in zip(models, given, strict=True)
                )
            first, second = (partial(t.run, feed | known) for t, known in zip(opened, given, strict=True))
            return first, second

        yield on_choices
        return
    with temporary_files.folder() as folder:
        files = [folder / name for name in ("a.onnx", "b.onnx")]
        for file, content in zip(files, models, strict=True):
            save(content.clone(), file)
        first, second = (open_session(file) for file in files)
        yield lambda feed: (partial(run, first, feed), partial(run, second, feed))
