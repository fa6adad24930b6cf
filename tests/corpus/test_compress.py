"""Every model of the corpus by every method: valid, the same interface and bytes, exact at full rank."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxdecomp.decompositions.registry import names
from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.graph.constants import OVERRIDABLE
from onnxdecomp.graph.load import load
from onnxdecomp.graph.traversal import slots
from onnxdecomp.record.schema.layers import LayerRecord
from onnxdecomp.workflow.result import Result
from tests.corpus.case import (
    ADDING,
    FROZEN,
    Case,
    each,
    files,
    interface,
    model_names,
    objection,
    ports,
    relative,
)

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

UNFROZEN = ("nanodet_m", "ultraface_version-RFB-320")
"""All their weights are graph inputs at IR version 4 or later."""
QUANTIZED = ("resnet20_qdq_int8", "squeezenet1.1_qdq_u8s8")
ALL = [*model_names(), *(name + FROZEN for name in UNFROZEN if name in model_names())]

EVERYWHERE = ("svd", "tucker", "cp", "tt")
SMALL = (
    *("mlperf_resnet8", "winml_mnist", "waifu2x_upconv7_photo_scale2x", "basic_pitch_nmp"),
    *("dtln_model_2", "mlperf_ad01", "silero_vad", "charrnn_shakespeare", "gtcrn"),
)
"""Where the other methods run on all layers: quick, and between them every kind of layer.

Elsewhere they run on some layers of each kind; with HYPOTHESIS_PROFILE=thorough everywhere on all, and
each of them in a second process.
"""

AGAIN = ("tucker", "cp")
"""What runs in a second process too: the way from the original file on, and an iteration."""

TWICE = ("silero_vad", "gtcrn", "ultraface_version-RFB-320")
"""The models that do: with subgraphs, with shared factors, and one that stays as it is."""

AT_HALF = ("silero_vad", "winml_mnist")
"""Where all methods run at half their ranks, too: recurrent ones, subgraphs, products, kernels."""

OTHER_TYPES = ("resnet20_qdq_int8",)
"""Not among the small ones, and with types that those have not."""

HALVED = (
    *("silero_vad", "gtcrn", "winml_mnist", "resnet20_qdq_int8", "dtln_model_1"),
    *("ultraface_version-RFB-320", "ultraface_version-RFB-320" + FROZEN),
)
"""Where half ranks show what full ranks do not: refusals, sharing, and what makes a file smaller."""

EACH_KIND = 2
"""Layers of a kind: those of the fewest parameters."""

REFUSED = (
    r"depthwise: each output sees one input channel",
    r"an empty weight",
    r"(a full rank|full ranks) of 1: nothing to reduce",
    r"(a|no|the|neither) [^;]+: use (svd|tucker)",  # not this method's kind of layer
    r"a kernel along \d axes: at most 3 are split",
    r"(LSTM|GRU|RNN|Einsum) is not decomposed",
    re.escape(OVERRIDABLE),
    r"output_shape chooses its padding from the input's size(, which is not fixed)?",
    r"its chain does not (begin|end) (in|with) a product of matrices, which would become .+: use svd",
    r"no operand is constant: .+",
    r"a single input: nothing to reduce",
    r"a stack of matrices",
    r"a lookup: its input is no activation",
    r"its groups read different channels",
    r"no other layer of its kind reads its activation",
    r"its weight is read elsewhere, too",
    r"its \w+ reads its activation in another order of axes",
)
"""Why an operator is left alone whatever the rank is."""
NOT_WORTH_IT = (
    r"too small: below [\d.]+ of the average layer in MACs and parameters",
    r"\w+ at ranks? [\d, ]+ needs ([\d.]+x the MACs and )?[\d.]+x the parameters of the layer",
)
"""Why it is left alone at this rank; never with must_save="none"."""

WHOLE = set(ADDING) - {"gtcrn", "silero_vad", "winml_mnist"}
"""At full rank; the others take a minute, and are lowered and checked at half rank."""

LOWERED = {"float32": 1e-5, "float16": 5e-3}
EXACT = {"float32": 1e-4, "float16": 2e-2}
"""Relative L2 error of each output at full rank."""
EXACT_QUANTIZED = 5e-2
"""A rounding error before a QuantizeLinear may become a whole step of it, in a few places."""


@each(ALL, usual=HALVED)
def test_half_rank(case: Case) -> None:
    """--rank 0.5: a valid model that ONNX Runtime runs, or a documented refusal; the same again."""
    methods = _methods(case) if case.name in AT_HALF or THOROUGH else _everywhere()
    again = methods if THOROUGH else AGAIN if case.name in TWICE else ()
    said = case.compress_elsewhere(again, "0.5", whole="tucker") if again else ""
    problems = [
        f"{method}: {p}" for method in methods for p in _half_rank(case, method, again=method in again)
    ]
    assert not problems, "\n".join([*problems, said])


@each(ALL, usual=WHOLE)
def test_full_rank(case: Case) -> None:
    """--rank 1.0 with must_save="none": every layer is decomposed and the outputs stay."""
    problems = [f"{method}: {p}" for method in _methods(case) for p in _full_rank(case, method)]
    assert not problems, "\n".join(problems)


@each((name for name in ALL if name not in SMALL), usual=OTHER_TYPES)
def test_other_methods(case: Case) -> None:
    """The methods that have not run on all layers, on some of each kind, at full rank."""
    others = [method for method in names() if method not in _methods(case)]
    problems = [
        f"{method}: {p}"
        for method in others
        if (some := _some_of_each_kind(case, method))
        for p in _full_rank(case, method, include=tuple(map(glob.escape, some)))
    ]
    assert not problems, "\n".join(problems)


def _some_of_each_kind(case: Case, method: str) -> list[str]:
    """Names of layers that the method takes."""
    planned = case.inspect(method, "1.0", must_save="none").layers
    kinds: dict[tuple[object, ...], list[LayerRecord]] = {}
    for layer in planned:
        if layer.status == "planned":
            kinds.setdefault((layer.op, layer.weight[2:], layer.weight[1:2] == (1,)), []).append(layer)
    return [
        layer.name
        for own in kinds.values()
        for layer in sorted(own, key=lambda layer: layer.params.before or 0)[:EACH_KIND]
    ]


def _methods(case: Case) -> tuple[str, ...]:
    return names() if case.name in SMALL or THOROUGH else _everywhere()


def _everywhere() -> tuple[str, ...]:
    return tuple(name for name in names() if name in EVERYWHERE)


def _half_rank(case: Case, method: str, again: bool) -> Iterator[str]:
    try:
        result = case.compress(method, "0.5")
    except OnnxDecompError as error:
        yield f"{type(error).__name__}: {error}"
        return
    yield from _undocumented(result, (*REFUSED, *NOT_WORTH_IT))
    yield from _not_lowered(case, result)
    yield from _not_valid(case, result)
    yield from _not_smaller(case, result)
    elsewhere = case.target("elsewhere", method, "0.5").parent
    if again and result.changed:
        assert result.path is not None
        if files(result.path.parent) != files(elsewhere):
            yield "a second run in another process gave other bytes"
    elif (
        again and method == "tucker" and (elsewhere / "model.onnx").read_bytes() != case.original.read_bytes()
    ):
        yield "nothing was decomposed, and the file is not a copy of the original"
    # Trains of linear layers save no multiplications at this rank, and other methods may take no layer.
    if method in ("svd", "tucker", "cp") and result.changed == (case.name in UNFROZEN):
        yield f"changed is {result.changed}"


def _full_rank(case: Case, method: str, **options: Any) -> Iterator[str]:
    try:
        result = case.compress(method, "1.0", must_save="none", **options)
    except OnnxDecompError as error:
        yield f"{type(error).__name__}: {error}"
        return
    yield from _undocumented(result, (*REFUSED, "excluded by name") if options else REFUSED)
    yield from _not_lowered(case, result)
    if options and not result.changed:
        yield "nothing was decomposed"
    assert result.path is not None
    for layer in result.layers:
        # Float32 factors of a rotated weight: one layer of ultraface comes to 1.3e-5 with tucker.
        if layer.rel_error is not None and layer.rel_error > 3e-5:
            yield f"{layer.name}: its weight is off by {layer.rel_error:.3g}"
    # ONNX Runtime fuses quantized layers into integer kernels, and those of some processors saturate: a model
    # whose layers are float again is compared with what the original's operators say, not with the fusion.
    quantized = case.name in QUANTIZED
    new = case.outputs(result.path, optimised=not quantized)
    old = case.expected(optimised=not quantized)
    for index, (actual, expected) in enumerate(zip(new, old, strict=True)):
        limit = EXACT_QUANTIZED if quantized else EXACT[str(expected.dtype)]
        error_ = relative(actual, expected)
        if error_ > limit:
            # Probabilities near zero are rounding errors: the original differs from itself too.
            limit += relative(case.expected(optimised=False)[index], expected)
        if not error_ <= limit:
            yield f"output {index} is off by {error_:.3g}, above {limit:.3g}"


def _undocumented(result: Result, documented: tuple[str, ...]) -> Iterator[str]:
    for layer in result.layers:
        if layer.status == "decomposed":
            if layer.reason:
                yield f"{layer.name} is decomposed and has a reason to stay: {layer.reason}"
        elif not any(re.fullmatch(pattern, layer.reason) for pattern in documented):
            yield f"{layer.name} stays for a reason that is not documented: {layer.reason!r}"


def _not_lowered(case: Case, result: Result) -> Iterator[str]:
    limit = LOWERED["float16" if "fp16" in case.name else "float32"]
    for layer in result.layers:
        if layer.status == "decomposed" and not (layer.lowering is not None and layer.lowering <= limit):
            yield f"the lowering check of {layer.name} gave {layer.lowering}"
    if len(result.lowering) != sum(layer.status == "decomposed" for layer in result.layers):
        yield f"{len(result.lowering)} layers were checked"


def _not_valid(case: Case, result: Result) -> Iterator[str]:
    path = result.path
    assert path is not None
    if objection(path) and not objection(case.original):
        yield f"onnx's checker objects: {objection(path)}"
    if interface(path) != interface(case.original):
        yield f"the interface is {interface(path)} and was {interface(case.original)}"
    yield from _lost(case.original, path)
    for actual in case.outputs(path):
        if not np.isfinite(np.asarray(actual, np.float64)).all():
            yield "an output is not finite"
    if (seen := ports(path)) != case.ports:
        yield f"ONNX Runtime sees {seen} instead of {case.ports}"


def _lost(original: Path, path: Path) -> Iterator[str]:
    """What else a model carries."""
    before, after = (onnx.load(p, load_external_data=False) for p in (original, path))
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if getattr(after, name) != getattr(before, name):
            yield f"{name} is {getattr(after, name)!r} and was {getattr(before, name)!r}"
    opsets = [{o.domain: o.version for o in model.opset_import} for model in (before, after)]
    if opsets[0] != opsets[1]:
        yield f"its opsets are {opsets[1]} and were {opsets[0]}"
    metadata = [{p.key: p.value for p in model.metadata_props} for model in (before, after)]
    if not metadata[0].items() <= metadata[1].items():
        yield f"metadata was lost: {metadata[1]} of {metadata[0]}"
    if before.graph.name != after.graph.name:
        yield f"its graph is named {after.graph.name!r} and was {before.graph.name!r}"


def _not_smaller(case: Case, result: Result) -> Iterator[str]:
    """The dense weights are gone from the file, and nothing but the factors came."""
    # A quantized weight held no floating point numbers.
    if case.name in QUANTIZED:
        return
    assert result.path is not None
    after, before = (
        sum(slot.tensor.size for slot in slots(load(path)) if slot.tensor.dtype.is_floating_point())
        for path in (result.path, case.prepared)
    )
    saved = result.record["totals"]["params"]
    if before - after != saved["before"] - saved["after"]:
        yield f"the model holds {after} numbers instead of {before}, but its layers' parameters are {saved}"
