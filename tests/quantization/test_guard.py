"""A quantized model whose outputs are nothing like the original's is not taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnxdecomp_passes.quantize import KEY, Quantize

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.pipeline.base import PassContext
from onnxdecomp.quantization import guard
from onnxdecomp.quantization.bounds import HARMED, Bounds, Memory
from onnxdecomp.quantization.distance import distance
from onnxdecomp.quantization.guard import Guarded, guarded, guarded_half
from onnxdecomp.quantization.scheme import Scheme
from tests.builders.graphs import model as make
from tests.builders.graphs import value

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def feeds(count: int = 16) -> Feeds:
    return Feeds(tuple({"x": normal(1, 16)} for _ in range(count)), "test", stackable=True)


def network(spoil: float, *, before: bool) -> ir.Model:
    """y = (x w) with a large number added and taken off again, in front of the product or behind it."""
    large = {"big": np.full(16, spoil, np.float32)}
    large["big"][1:] = 0
    nodes = [
        helper.make_node("Add", ["x" if before else "h", "big"], ["a"], name="add"),
        helper.make_node("Sub", ["a", "big"], ["s"], name="sub"),
        helper.make_node("MatMul", ["s" if before else "x", "w"], ["m" if before else "h"], name="product"),
    ]
    if not before:
        nodes = [nodes[2], nodes[0], nodes[1]]
    nodes.append(helper.make_node("Identity", ["m" if before else "s"], ["y"], name="end"))
    weights = {"w": normal(16, 16), **large}
    proto: onnx.ModelProto = make(nodes, [value("x", ["N", 16])], [value("y", ["N", 16])], weights)
    return ir.from_proto(proto)


def test_a_model_that_survives_is_quantized_whole() -> None:
    found = guarded(network(0.5, before=False), feeds(), Scheme())
    assert found.model is not None
    assert (found.note, found.kept) == ("", ())
    assert 0 < error_of(found) < 0.1


def error_of(found: Guarded) -> float:
    assert found.error is not None
    return found.error


def products_in_8_bits(model: ir.Model) -> list[str]:
    """Layers whose weight comes out of 8 bits."""
    return [
        str(node.name)
        for node in model.graph
        if node.op_type == "MatMul"
        and (weight := node.inputs[1]) is not None
        and weight.producer() is not None
    ]


def test_nodes_around_an_uneven_tensor_stay_and_are_named() -> None:
    found = guarded(network(1e5, before=False), feeds(), Scheme())
    assert found.model is not None
    assert found.kept == ("add", "sub")
    assert "add, sub in floating point: with more in 8 bits the outputs were off by" in found.note
    assert error_of(found) < 0.1
    assert products_in_8_bits(found.model) == ["product"]
    assert found.tried[0][0] == ""
    assert found.tried[0][1] > HARMED


def test_what_the_user_leaves_out_stays_so_in_every_try() -> None:
    """With the type of an operator, or the name of a node."""
    model = network(1e5, before=False)
    for scheme in (Scheme(leave=frozenset(["MatMul"])), Scheme(exclude=("product",))):
        found = guarded(model, feeds(), scheme)
        assert len(found.tried) > 1
        assert products_in_8_bits(found.model or model) == []


def test_a_model_that_breaks_in_any_case_is_left_alone() -> None:
    """One input is far larger than the others, and the product does not read it."""
    model = network(0.5, before=False)
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0] = 0
    weight.const_value = ir.tensor(array, name="w")
    uneven = np.ones(16, np.float32)
    uneven[0] = 1e5
    data = Feeds(tuple({"x": normal(1, 16) * uneven} for _ in range(16)), "test", stackable=True)
    found = guarded(model, data, Scheme())
    assert found.model is None
    assert error_of(found) > HARMED
    assert found.note.startswith("not quantized, for in 8 bits the outputs are off by")
    assert distance(model, model, data) == 0


def test_a_limit_decides_how_much_is_in_8_bits() -> None:
    """Too much of an error without one is left as it is where a limit allows it, and more where one asks."""
    model = network(300.0, before=False)
    loose, free = (guarded(model, feeds(), Scheme(), bounds=Bounds(limit)) for limit in (0.4, None))
    assert loose.kept == ()
    assert error_of(loose) > 0.04
    assert free.kept
    assert error_of(free) < 0.02
    mild = network(30.0, before=False)
    free, bound = (guarded(mild, feeds(), Scheme(), bounds=Bounds(limit)) for limit in (None, 0.025))
    assert free.kept == ()
    assert 0.0125 < error_of(free) < 0.02
    assert bound.kept
    assert error_of(bound) < 0.0125


def test_what_is_not_finite_is_infinitely_far() -> None:
    broken = network(0.5, before=False)
    weight = broken.graph.initializers["w"]
    array = weight.const_value.numpy().copy() if weight.const_value is not None else np.zeros(0)
    array[0, 0] = np.nan
    weight.const_value = ir.tensor(array, name="w")
    assert distance(network(0.5, before=False), broken, feeds()) == pytest.approx(float("inf"))


def half(nodes: list[onnx.NodeProto], weights: dict[str, Array], data: Feeds | None) -> Guarded:
    proto = make(nodes, [value("x", ["N", 16])], [value("y", ["N", 16])], weights)
    return guarded_half(ir.from_proto(proto), data)


def types(found: Guarded) -> dict[str, ir.DataType]:
    """Of the initializers."""
    assert found.model is not None
    return {name: v.const_value.dtype for name, v in found.model.graph.initializers.items() if v.const_value}


@pytest.mark.parametrize(("large", "given"), [(1e7, True), (1e7, False)])
def test_weights_beyond_float16_stay_in_float32(large: float, given: bool) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], name="grow"),
        helper.make_node("MatMul", ["a", "small"], ["b"], name="shrink"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="product"),
    ]
    weights: dict[str, Array] = {
        "big": np.array([large], np.float32),
        "small": normal(16, 16) / large,
        "w": normal(16, 16),
    }
    found = half(nodes, weights, feeds() if given else None)
    assert found.kept == ("grow", "shrink")
    assert "grow, shrink" in found.note
    assert types(found) == {"big": ir.DataType.FLOAT, "small": ir.DataType.FLOAT, "w": ir.DataType.FLOAT16}
    assert (found.error is not None) == given
    assert found.error is None or found.error < 2e-3


def test_activations_beyond_float16_stay_in_float32() -> None:
    """Though every weight fits."""
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], name="grow"),
        helper.make_node("Mul", ["a", "big"], ["b"], name="grow2"),
        helper.make_node("Div", ["b", "big"], ["c"], name="shrink"),
        helper.make_node("Div", ["c", "big"], ["d"], name="shrink2"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    found = half(nodes, {"big": np.array([3e3], np.float32), "w": normal(16, 16)}, feeds())
    assert found.kept == ("grow2", "shrink")
    assert "float16 ends at 65504" in found.note
    assert error_of(found) < 2e-3


def test_an_epsilon_too_small_for_float16_is_kept_with_what_divides_by_it() -> None:
    """x / sqrt(0 x² + 1e-12)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "nothing"], ["v"], name="variance"),
        helper.make_node("Add", ["v", "eps"], ["e"], name="add"),
        helper.make_node("Sqrt", ["e"], ["s"], name="root"),
        helper.make_node("Div", ["h", "s"], ["q"], name="divide"),
        helper.make_node("Mul", ["q", "unit"], ["y"], name="scale"),
    ]
    weights: dict[str, Array] = {
        **{"w": normal(16, 16), "nothing": np.array([0], np.float32)},
        **{"eps": np.array([1e-12], np.float32), "unit": np.array([1e-6], np.float32)},
    }
    found = half(nodes, weights, feeds())
    assert {"add", "root", "divide"} <= set(found.kept)
    assert error_of(found) < 2e-3
    assert types(found)["w"] == ir.DataType.FLOAT16


def test_masks_are_no_reason_to_stay() -> None:
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["a"], name="hide"),
        helper.make_node("Softmax", ["a"], ["b"], name="softmax"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="product"),
    ]
    mask = np.where(np.arange(16) < 8, 0, np.finfo(np.float32).min).astype(np.float32)
    found = half(nodes, {"mask": mask, "w": normal(16, 16)}, feeds())
    assert found.kept == ()
    assert error_of(found) < 2e-3


def test_layers_of_numbers_that_float16_loses_stay() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "faint"], ["a"], name="faint"),
        helper.make_node("Mul", ["a", "back"], ["b"], name="back"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="product"),
    ]
    faint = normal(16, 16) * np.float32(1e-9)
    found = half(nodes, {"faint": faint, "back": np.array([1e4], np.float32), "w": normal(16, 16)}, feeds())
    assert "faint" in found.kept
    assert error_of(found) < 2e-3


def test_where_nothing_becomes_float16_the_model_stays() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weights: dict[str, Array] = {"w": normal(16, 16) * np.float32(1e7)}
    model = ir.from_proto(make(nodes, [value("x", ["N", 16])], [value("y", ["N", 16])], weights))
    done = Quantize(kind="fp16").call(model)
    assert not done.modified
    assert done.notes[0].startswith("nothing became float16: in float32, for float16 ends at 65504: product")
    assert KEY not in model.metadata_props


def test_the_ladder_is_climbed_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials take what the first has found, unjudged; of the final model that is judged."""
    counted: list[str] = []

    def noted(name: str) -> Any:
        function = getattr(guard, name)

        def count(*given: Any, **named: Any) -> Any:
            counted.append(name)
            return function(*given, **named)

        return count

    for name in ("int8", "distance"):
        monkeypatch.setattr(guard, name, noted(name))
    model = network(1e5, before=False)
    stage = Quantize(kind="int8-static")
    context = PassContext(calibration=Calibration(feeds()), memory=Memory())
    stage.quantized(model, context)
    climbed = counted.count("int8")
    assert climbed > 1
    counted.clear()
    for _ in range(3):
        assert products_in_8_bits(stage.quantized(model, context)) == ["product"]
    assert counted == ["int8"] * 3
    counted.clear()
    done = stage.run(model, context)
    assert counted == ["int8", "distance"]
    assert "add, sub in floating point: with more in 8 bits the outputs were off by" in done.notes[0]
    assert done.record["kept"] == ["add", "sub"]


def test_what_was_found_is_not_trusted_where_it_breaks_the_final_model() -> None:
    memory = Memory()
    assert guarded(network(0.5, before=False), feeds(), Scheme(), memory=memory).kept == ()
    assert guarded(network(1e5, before=False), feeds(), Scheme(), memory=memory).kept == ("add", "sub")


def test_trials_of_a_model_that_breaks_stay_in_floating_point() -> None:
    memory = Memory(rung=None, tried=(("", 1.0),))
    assert guarded(network(0.5, before=False), feeds(), Scheme(), memory=memory, trial=True).model is None


def two_outputs(*, faint: float) -> ir.Model:
    """y = x w of large numbers, z = x v of small ones."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="large"),
        helper.make_node("MatMul", ["x", "v"], ["z"], name="small"),
    ]
    weights = {
        "w": np.full((16, 16), 1e3, np.float32),
        "v": np.full((16, 16), faint, np.float32),
    }
    outputs = [value("y", ["N", 16]), value("z", ["N", 16])]
    return ir.from_proto(make(nodes, [value("x", ["N", 16])], outputs, weights))


def test_a_small_output_that_breaks_counts_as_much_as_a_large_one() -> None:
    first, other = two_outputs(faint=1e-3), two_outputs(faint=-1e-3)
    assert distance(first, other, feeds()) == pytest.approx(2, rel=1e-3)
    assert distance(first, two_outputs(faint=float("nan")), feeds()) == float("inf")


def test_labels_decide_how_much_is_in_8_bits() -> None:
    """By the error alone all of it would be."""
    model = network(0.5, before=False)

    def fall(made: ir.Model) -> float:
        quantized = sum(node.op_type == "QuantizeLinear" for node in made.graph)
        return 0.0 if quantized < 3 else 0.3

    for drop, kept in ((0.4, ()), (0.05, ("all but convolutions and products of matrices",))):
        found = guarded(model, feeds(), Scheme(), bounds=Bounds(drop=drop, fall=fall))
        assert found.model is not None
        assert found.kept == kept
    assert "the metric fell by 0.3, now by 0" in found.note


@pytest.mark.parametrize("kind", ["fp16", "int8-dynamic", "int4"])
def test_random_inputs_do_where_an_input_is_read_by_nothing(kind: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    proto = make([node], [value("x", ["N", 32]), value("bare", ["K"])], {"y": ["N", 32]}, {"w": weight})
    made = Quantize(kind=kind).run(ir.from_proto(proto), PassContext())
    assert made.modified
    assert [port.name for port in made.model.graph.inputs] == ["x", "bare"]
