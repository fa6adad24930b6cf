"""What the decompose pass says of what it did: notes for users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxdecomp.calibration.reachability import unreached
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.names import some
from onnxdecomp.decompositions.registry import package_of
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.int8_weights import OLDEST_OPSET
from onnxdecomp.layers.registry import adapters
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.search.keep_layers import key_of
from onnxdecomp.search.plan import Plan
from onnxdecomp.tensor.linalg import sketched


def origins(plan: Plan) -> Iterator[str]:
    """A note on every method and every kind of layer that comes from another package, and on broken ones."""
    for name in sorted({choice.method for choice in plan.decomposed if choice.method is not None}):
        if (package := package_of(name)) is not None:
            yield f"{name} is a method of {package}"
    found = adapters()
    kinds = {choice.op_type for choice in plan.decomposed}
    for (_, op_type), package in found.packages.items():
        if op_type in kinds:
            yield f"{op_type} is a kind of layer of {package}"
    yield from found.problems


def stays(dense: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """A note for every reader that keeps the weight of decomposed layers in the file."""
    for reader in dict.fromkeys(dense.values()):
        layers = some([name for (_, name), other in dense.items() if other == reader])
        yield f"the weight of {layers} stays beside the factors, for {reader} reads it too"


def sketches(matched: Sequence[LayerMatch], plan: Plan) -> Iterator[str]:
    """A note on layers whose factors are an approximation of the best ones."""
    wanted = {key_of(choice) for choice in plan.decomposed}
    layers = [match.layer for match in matched if (match.layer.graph, match.layer.name) in wanted]
    if names := [layer.name for layer in layers if sketched(layer)]:
        yield f"so large that their singular vectors come from a randomized SVD: {some(names)}"


def unfitted(
    model: ir.Model, matched: Sequence[LayerMatch], plan: Plan, calibration: Calibration
) -> Iterator[str]:
    """A note on the layers that are decomposed although no input reaches them, as a plan or ranks say."""
    wanted = {(choice.graph, choice.layer) for choice in plan.decomposed}
    own = [match for match in matched if (match.layer.graph, match.layer.name) in wanted]
    idle = unreached(model, own, calibration.feeds, batch=calibration.batch)
    if names := [match.layer.name for match, alone in zip(own, idle, strict=True) if alone]:
        yield f"fitted to their weights alone, for no calibration input reaches them: {some(names)}"


def in_fewer_bits(rewritten: Sequence[Rewritten], requantize: bool, opset: int) -> tuple[str, ...]:
    """Notes on layers that were quantized: in what their factors are stored."""
    quantized = sum(done.match.quantized for done in rewritten)
    names = [
        done.match.storage.name if done.match.storage else "int8" for done in rewritten if done.quantized
    ]
    advice = "re-quantize with --requantize"
    if requantize and opset < OLDEST_OPSET:
        advice = f"--requantize needs opset {OLDEST_OPSET}, this model has {opset}"
    elif requantize:
        advice = "--requantize stores factors of float32 layers only"
    notes = []
    for name, count in sorted(Counter(names).items()):
        notes.append(f"{_factors_of(count)} {name}, the activations between them floating point")
    if quantized > len(names):
        notes.append(f"{_factors_of(quantized - len(names))} floating point ({advice})")
    return tuple(notes)


def _factors_of(count: int) -> str:
    if count == 1:
        return "1 layer was quantized; its factors are"
    return f"{count} layers were quantized; their factors are"
