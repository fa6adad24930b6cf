from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from onnxdecomp.latency.context import Neighbours, neighbours
from onnxdecomp.layers.find import find
from tests.builders.feeds import normal
from tests.builders.graphs import from_x

PADS = [1, 1, 1, 1]


def around(*args: Any) -> dict[str, Neighbours]:
    made = from_x(*args)
    matched, _ = find(made)
    return {match.layer.name: found for match, found in zip(matched, neighbours(matched), strict=True)}


def conv(name: str, x: str, y: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", [x, f"{name}.w"], [y], name=name, pads=PADS, **attributes)


def test_a_row_of_convolutions() -> None:
    nodes = [
        conv("a", "x", "a1"),
        helper.make_node("Relu", ["a1"], ["a2"]),
        conv("b", "a2", "b1"),
        helper.make_node("MaxPool", ["b1"], ["b2"], kernel_shape=[2, 2]),
        conv("c", "b2", "y"),
    ]
    weights = {"a.w": normal(32, 3, 3, 3), "b.w": normal(32, 32, 3, 3), "c.w": normal(32, 32, 3, 3)}
    assert around(nodes, weights, (1, 3, 8, 8), "y") == {
        "a": Neighbours(False, True, "Relu"),
        "b": Neighbours(True, True, None),
        "c": Neighbours(True, False, None),
    }


def test_a_sum_is_in_blocks_only_if_all_of_it_is() -> None:
    def with_shortcut(shortcut: str) -> dict[str, Neighbours]:
        nodes = [
            conv("a", "x", "a1"),
            conv("b", "a1", "b1"),
            helper.make_node("Pad", ["a1"], ["padded"]) if shortcut == "padded" else conv("s", "a1", "sc"),
            helper.make_node("Add", ["b1", "padded" if shortcut == "padded" else "sc"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["r"]),
            conv("c", "r", "c1"),
            helper.make_node("Relu", ["c1"], ["y"]),
        ]
        if shortcut == "padded":
            nodes[2].input.append("pads")
        weights = {f"{name}.w": normal(16, 16, 3, 3) for name in "abcs"}
        return around(nodes, weights | {"pads": np.zeros(8, np.int64)}, (1, 16, 8, 8), "y")

    plain, blocked = with_shortcut("padded"), with_shortcut("convolved")
    assert plain["b"] == Neighbours(True, False, None)
    assert plain["c"] == Neighbours(False, False, "Relu")
    assert blocked["b"] == Neighbours(True, True, None)
    assert blocked["c"] == Neighbours(True, False, "Relu")


def test_readers_of_few_or_odd_channels_take_no_blocks() -> None:
    for channels, takes in ((8, False), (16, True), (18, False), (20, True)):
        nodes = [conv("a", "x", "a1"), conv("b", "a1", "y")]
        weights = {"a.w": normal(channels, 16, 3, 3), "b.w": normal(16, channels, 3, 3)}
        found = around(nodes, weights, (1, 16, 8, 8), "y")
        assert found["a"].after is takes
        assert found["b"].before


def test_depthwise_convolutions_take_blocks_and_small_groups_do_not() -> None:
    for groups, takes in ((32, True), (8, False), (2, True)):
        nodes = [conv("a", "x", "a1", group=groups), conv("b", "a1", "y")]
        weights = {"a.w": normal(32, 32 // groups, 3, 3), "b.w": normal(32, 32, 3, 3)}
        assert around(nodes, weights, (1, 32, 8, 8), "y")["b"].before is takes


def test_an_activation_read_twice_is_not_fused_and_others_are_not_either() -> None:
    nodes = [
        conv("a", "x", "a1"),
        helper.make_node("Relu", ["a1"], ["r"]),
        helper.make_node("Softplus", ["a1"], ["s"]),
        helper.make_node("Add", ["r", "s"], ["y"]),
    ]
    found = around(nodes, {"a.w": normal(16, 16, 3, 3)}, (1, 16, 8, 8), "y")
    assert found == {"a": Neighbours(False, False, None)}


def test_linear_layers_have_an_activation_at_most() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["g"], name="gemm"),
        helper.make_node("Relu", ["g"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["m"], name="matmul"),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    found = around(nodes, {"w1": normal(8, 6), "w2": normal(6, 4)}, (2, 8), "y")
    assert found == {"gemm": Neighbours(activation="Relu"), "matmul": Neighbours()}


def test_other_providers_have_no_blocks() -> None:
    plain = Neighbours(False, False, "Relu")
    assert plain.on("cpu") == plain
    assert plain.on("cuda") == Neighbours(True, True, "Relu") == Neighbours(True, False, "Relu").on("cuda")
