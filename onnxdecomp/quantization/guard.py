"""Whether a model survives fewer bits, and what of it: it is not enough that what was made runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdecomp.core.names import some
from onnxdecomp.errors import ModelError
from onnxdecomp.layers.registry import per_channel
from onnxdecomp.quantization.bounds import HARMED, Bounds, Judged, Memory
from onnxdecomp.quantization.distance import distance
from onnxdecomp.quantization.files import checked
from onnxdecomp.quantization.fragile_nodes import crushed, faint, of_other_types, of_types, overflowing, seen
from onnxdecomp.quantization.half import LARGEST, fp16
from onnxdecomp.quantization.int8 import int8, operators
from onnxdecomp.quantization.kinds import DYNAMIC, INT4, STATIC
from onnxdecomp.quantization.prepare import require_float
from onnxdecomp.quantization.products import products, store_tables, stored, tables
from onnxdecomp.quantization.scheme import Scheme
from onnxdecomp.runtime import temporary_files

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.layers.storage import Storage

_DELICATE = frozenset(
    """
    BatchNormalization Div Exp GroupNormalization InstanceNormalization LayerNormalization Log LogSoftmax
    LpNormalization Pow Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd
    ReduceSum ReduceSumSquare RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization Softmax Sqrt Sum
    """.split()  # noqa: SIM905 - a column of strings is no easier to read
)
"""Sums, normalisations, powers and exponentials: float16 has too few digits or too small a range for some."""


@dataclass(frozen=True, eq=False)
class Guarded:
    """A quantized model, or why there is none.

    Attributes:
        model: The quantized model, or None where its outputs are nothing like the original's.
        error: The relative L2 distance of its worst output on the inputs; of the best try. None where that
            was not measured.
        note: What a user should know, or "".
        kept: What stays in floating point, for people: nodes, or types of operators; () for nothing special.
        tried: What stayed in floating point, as a phrase, and the error, of each try; first those of the
            run's model before, where this one began with what was found of that.
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


_Rungs = Mapping[str, Callable[[], _Try | None]]
"""Ways to quantize by their names, with more and more in floating point; None where one is no other."""

_REST = "all but convolutions and products of matrices"

_BITS = {"fp16": "float16", INT4: "4 bits"}
"""What kinds are called, for people."""


def guarded(
    model: ir.Model,
    feeds: Feeds,
    scheme: Scheme,
    *,
    samples: int = 256,
    rows: Storage | None = None,
    bounds: Bounds | None = None,
    memory: Memory | None = None,
    trial: bool = False,
) -> Guarded:
    """`int8`, judged by the outputs on calibration inputs.

    One range for all numbers of a tensor fails where few of them are large, with masks and powers. Where that
    does harm, the nodes around such tensors stay in floating point, or all but convolutions and products.

    Args:
        model, feeds, scheme, samples: As for `int8`.
        rows: How tables of embeddings are stored, and heads tied to them. Without it the quantizer has one
            scale for a whole table, and leaves one that is read twice in floating point.
        bounds: What is asked of the result.
        memory: What was found for other models of the run, where this one begins; written to.
        trial: Take what was found as it is, without judging the result.

    Raises:
        ModelError: As `int8`.
        UsageError: The metric that is asked for cannot be measured.
    """
    require_float(model, "int8")
    with temporary_files.folder() as folder:
        ranges = folder / "ranges.json"
        others = operators() - per_channel()
        of_tables = frozenset(str(match.output.name) for match in tables(model)) if rows else frozenset()

        @cache
        def uneven() -> Mapping[str, str]:
            found = crushed(model, seen(model, feeds))
            # With all products among them what is left would be slower, and no smaller.
            return {} if of_types(model, per_channel()).keys() <= found.keys() else found

        def rung(kept: Mapping[str, str], rest: str = "") -> _Try:
            leave = scheme.leave | others if rest else scheme.leave
            stay = frozenset({*scheme.keep, *kept})
            how = replace(scheme, keep=stay | of_tables, leave=leave)

            def make() -> ir.Model:
                made = int8(model, feeds, how, samples=samples, ranges=ranges)
                if rows is not None and of_tables:
                    store_tables(made, rows, {*scheme.exclude, *scheme.keep})
                    checked(made, f"its {STATIC} form")
                return made

            return _Try(tuple(sorted(set(kept.values()))), rest, make)

        rungs: _Rungs = {
            "whole": lambda: rung({}),
            "even": lambda: rung(uneven()) if uneven() else None,
            "products": lambda: rung({}, _REST),
            "even products": lambda: rung(uneven(), _REST) if uneven() else None,
        }
        return _Ladder(STATIC, model, feeds, rungs, bounds or Bounds()).best(memory or Memory(), trial=trial)


def guarded_products(
    model: ir.Model,
    feeds: Feeds,
    kind: str,
    storage: Storage,
    keep: Collection[str] = (),
    *,
    bounds: Bounds | None = None,
    memory: Memory | None = None,
    trial: bool = False,
) -> Guarded:
    """`stored`, judged by the outputs on some inputs.

    One range for all numbers of an activation fails as it does for `guarded`; where every block of them has
    its own there is nothing to leave out.

    Args:
        model, storage, keep: As for `stored`.
        feeds: Inputs.
        kind: The name of the storage.
        bounds, memory, trial: As for `guarded`.

    Raises:
        ModelError: As `stored`, or ONNX Runtime does not load what it makes.
        UsageError: The accuracy that is asked for cannot be measured.
    """
    require_float(model, kind)

    def rung(kept: Mapping[str, str]) -> _Try:
        def make() -> ir.Model:
            made = stored(model, storage, {*keep, *kept})
            checked(made, f"its {kind} form")
            return made

        return _Try(tuple(sorted(set(kept.values()))), "", make)

    def even() -> _Try | None:
        activations, own = seen(model, feeds), products(model)
        found = {
            str(match.output.name): match.layer.name
            for match in own
            if (numbers := activations.get(str(match.x.name))) is not None and numbers.crushed
        }
        return rung(found) if 0 < len(found) < len(own) else None

    rungs: dict[str, Callable[[], _Try | None]] = {"whole": lambda: rung({})}
    if kind == DYNAMIC:
        rungs["even"] = even
    return _Ladder(kind, model, feeds, rungs, bounds or Bounds()).best(memory or Memory(), trial=trial)


def guarded_half(
    model: ir.Model,
    feeds: Feeds | None,
    *,
    bounds: Bounds | None = None,
    memory: Memory | None = None,
    trial: bool = False,
) -> Guarded:
    """`fp16`, judged by the outputs on some inputs.

    What reads or makes numbers beyond float16 stays in float32 in any case: where a processor has no kernels
    for float16, ONNX Runtime computes in float32, and would not show what happens elsewhere.

    Args:
        model: In float32.
        feeds: Inputs; without any the model's constants alone tell what stays.
        bounds, memory, trial: As for `guarded`.

    Raises:
        ModelError: As `fp16`.
        UsageError: The metric that is asked for cannot be measured.
    """
    require_float(model, "fp16")
    activations = seen(model, feeds)
    large, lost = overflowing(model, activations), faint(model, activations)

    def rung(kept: Mapping[str, str], rest: str = "", others: Mapping[str, str] | None = None) -> _Try:
        names = tuple(sorted(set(kept.values())))
        return _Try(names, rest, lambda: fp16(model, frozenset({*kept, *(others or {})})))

    def without_delicate() -> _Try | None:
        found = {name: title for name, title in of_types(model, _DELICATE).items() if name not in lost}
        return rung(lost, "sums, normalisations and exponentials", found) if found else None

    if feeds is None:
        alone = rung(lost)
        note = "fp16 was not compared with the original, for want of inputs that it runs on"
        note += f"; in float32 stays what reads numbers that float16 has not: {alone}" if alone.kept else ""
        return Guarded(alone.make(), None, note, alone.kept)
    rungs: _Rungs = {
        "whole": lambda: rung(large),
        "distinct": lambda: rung(lost) if lost.keys() - large.keys() else None,
        "robust": without_delicate,
        "products": lambda: rung(lost, _REST, of_other_types(model, per_channel())),
    }
    return _Ladder("fp16", model, feeds, rungs, bounds or Bounds()).best(memory or Memory(), trial=trial)


@dataclass(frozen=True, eq=False)
class _Made:
    """A try that was carried out."""

    attempt: _Try
    model: ir.Model
    judged: Judged


@dataclass(frozen=True, eq=False)
class _Ladder:
    """The ways to quantize a model.

    Attributes:
        kind: Of fewer bits, one that can be carried out.
        model, feeds: The original, and what it is compared on.
        rungs: From the least in floating point to the most.
        bounds: What is asked of the result.
    """

    kind: str
    model: ir.Model
    feeds: Feeds
    rungs: _Rungs
    bounds: Bounds

    def best(self, memory: Memory, *, trial: bool) -> Guarded:
        """The try that the run has found for models before, if it is as good as it was, else the best."""
        if trial and memory.tried and memory.rung is None:
            return Guarded(None, memory.judged.error, tried=memory.tried)
        known = self._known(memory, judge=not trial)
        if known is not None and (trial or self.bounds.as_good(self.kind, known.judged, memory.judged)):
            tried = memory.tried if trial else (*memory.tried, (str(known.attempt), known.judged.error))
            return self._told(known, tried, memory.first)
        rung, made = self._climbed(memory, known)
        memory.rung = None if made.judged.error > HARMED else rung
        memory.judged = made.judged
        return self._told(made, memory.tried, memory.first)

    def _known(self, memory: Memory, *, judge: bool) -> _Made | None:
        """What was found before, of this model; None where it has no such nodes, or they fail."""
        attempt = None if memory.rung is None else self.rungs[memory.rung]()
        if attempt is None:
            return None
        try:
            return self._carried_out(attempt) if judge else _Made(attempt, attempt.make(), memory.judged)
        except ModelError:
            return None

    def _climbed(self, memory: Memory, known: _Made | None) -> tuple[str, _Made]:
        """The try that leaves least in floating point, or one that is much better or that a bound needs.

        What was tried is written to the memory; `known` need not be made again.

        Raises:
            ModelError: None can be made and run; the error is the first one's.
        """
        best: tuple[str, _Made] | None = None
        failure: ModelError | None = None
        tried: list[tuple[str, float]] = []
        for rung, find in self.rungs.items():
            attempt = find()
            if attempt is None:
                continue
            try:
                made = known if known is not None and rung == memory.rung else self._carried_out(attempt)
            except ModelError as error:
                failure = failure or error
                continue
            if not tried:
                memory.first = made.judged
            tried.append((str(attempt), made.judged.error))
            if best is None or self.bounds.better(self.kind, made.judged, best[1].judged):
                best = rung, made
            if self.bounds.met(self.kind, best[1].judged):
                break
        if best is None:
            assert failure is not None
            raise failure
        memory.tried = tuple(tried)
        return best

    def _carried_out(self, attempt: _Try) -> _Made:
        made = attempt.make()
        return _Made(attempt, made, self._judge(made))

    def _judge(self, made: ir.Model) -> Judged:
        error = distance(self.model, made, self.feeds, self.bounds.mask)
        fall = self.bounds.fall
        if self.bounds.drop is None or fall is None:
            return Judged(error)
        return Judged(error, fall(made) if error <= HARMED else math.inf)

    def _told(self, made: _Made, tried: tuple[tuple[str, float], ...], first: Judged) -> Guarded:
        """What is said of the try that was taken."""
        bits = _BITS.get(self.kind, "8 bits")
        chosen, error = made.attempt, made.judged.error
        off = f"the outputs are off by {error:.2g}" if math.isfinite(error) else "the outputs are not finite"
        if error > HARMED:
            note = f"not quantized, for in {bits} {off} (relative L2)"
            return Guarded(None, error, note, (), tried)
        note = ""
        if str(chosen) != tried[0][0]:
            before = f"were off by {first.error:.2g}" if math.isfinite(first.error) else "were not finite"
            note = f"{chosen} in floating point: with more in {bits} the outputs {before}, now by {error:.2g}"
            if not self.bounds.right(first) and math.isfinite(first.fall):
                note += f", and the metric fell by {first.fall:.2g}, now by {made.judged.fall:.2g}"
        elif chosen.kept:
            note = f"in float32, for float16 ends at {LARGEST:g}: {chosen}"
        kept = (*([chosen.rest] if chosen.rest else []), *chosen.kept)
        return Guarded(made.model, error, note, kept, tried)
