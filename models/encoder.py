"""A transformer encoder with random weights, of any size: for memory and speed, whatever the values are.

The structure is BERT's (Devlin et al. 2018, arXiv 1810.04805) with normalisation before the blocks (Xiong et
al. 2020, arXiv 2002.04745), so that any depth stays in range. The weights are drawn from a seeded normal
distribution; their spectra are flat: no rank compresses them well.

    python -m models.encoder encoder.onnx --layers 40 --width 1024    # 2.1 GB

Above 1.9 GB, since a protobuf holds no more than 2, weights lie in "<name>.data" beside the file.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from models.network import Floats, Network, Parameters
from models.shapes import parameter_count, save

_MOST = 1_900_000_000
"""Bytes of weights that a protobuf holds beside all else."""


def encoder(
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 0,
    vocabulary: int = 30522,
    longest: int = 512,
    seed: int = 0,
) -> ir.Model:
    """input_ids, attention_mask [N, L] to "states" [N, L, width].

    Args:
        layers: Blocks of attention and a feed-forward layer of four times the width.
        width: A multiple of the heads.
        heads: Of attention; 0 makes them 64 wide, or one where the width is no multiple of that.
        vocabulary: Rows of the embedding.
        longest: Positions.
        seed: Of the random weights.
    """
    heads = heads or (width // 64 if width % 64 == 0 else 1)
    net = Network(random_weights(seed))
    ids, mask = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["N", "L"]))
        for name in ("input_ids", "attention_mask")
    )
    one, zero = net.constant("one", np.array(1, np.int64)), net.constant("zero", np.array(0, np.int64))
    length = net.node("Gather", [net.node("Shape", [ids], "shape"), one], "length", axis=0)
    places = net.node("Range", [zero, length, one], "range")
    words = net.node("Gather", [net.parameter("words", (vocabulary, width)), ids], "embed")
    x = net.node(
        "Add", [words, net.node("Gather", [net.parameter("places", (longest, width)), places], "at")], "add"
    )
    real = net.node("Unsqueeze", [mask, net.constant("axes", np.array([1, 2]))], "mask")
    bias = net.node(
        "Where",
        [net.node("Cast", [real], "real", to=9), _scalar(net, "kept", 0), _scalar(net, "left_out", -1e9)],
        "bias",
    )
    for number in range(layers):
        x = block(net, x, f"layer{number}", width, heads, _relu, bias=bias)
    return net.graph("encoder", [ids, mask], normalised(net, x, "norm", width), "states", ["N", "L", width])


def block(
    net: Network,
    x: ir.Value,
    name: str,
    width: int,
    heads: int,
    activation: Callable[[Network, ir.Value, str], ir.Value],
    *,
    bias: ir.Value | None = None,
) -> ir.Value:
    """Attention and a feed-forward layer of four times the width, each behind a normalisation: [N, L, width].

    Args:
        net: Where it is written.
        x: What it reads.
        name: Of the block, in front of its layers' names.
        width, heads: Of the states.
        activation: Of the feed-forward layer.
        bias: Added to the scores, or None.
    """
    split = net.constant(f"{name}.split", np.array([0, 0, heads, width // heads]))
    join = net.constant(f"{name}.joined", np.array([0, 0, width]))
    root = _scalar(net, f"{name}.root", math.sqrt(width / heads))
    seen = normalised(net, x, f"{name}.norm1", width)
    query, key, value = (
        net.node(
            "Transpose",
            [
                net.node(
                    "Reshape",
                    [linear(net, seen, f"{name}.{part}", width, width), split],
                    f"{name}.{part}.split",
                )
            ],
            f"{name}.{part}.turn",
            perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
        )
        for part in ("query", "key", "value")
    )
    scores = net.node("Div", [net.node("MatMul", [query, key], f"{name}.scores"), root], f"{name}.scaled")
    if bias is not None:
        scores = net.node("Add", [scores, bias], f"{name}.masked")
    shares = net.node("Softmax", [scores], f"{name}.shares", axis=-1)
    mixed = net.node(
        "Transpose",
        [net.node("MatMul", [shares, value], f"{name}.mixed")],
        f"{name}.back",
        perm=[0, 2, 1, 3],
    )
    own = linear(net, net.node("Reshape", [mixed, join], f"{name}.join"), f"{name}.out", width, width)
    x = net.node("Add", [x, own], f"{name}.add1")
    inner = linear(net, normalised(net, x, f"{name}.norm2", width), f"{name}.up", width, 4 * width)
    inner = linear(net, activation(net, inner, name), f"{name}.down", 4 * width, width)
    return net.node("Add", [x, inner], f"{name}.add2")


def _relu(net: Network, x: ir.Value, name: str) -> ir.Value:
    return net.relu(x, f"{name}.relu")


def random_weights(seed: int) -> Parameters:
    """Numbers of a seeded normal distribution, of the size that keeps that of what they multiply."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Floats:
        if len(shape) == 1:
            return np.full(shape, float(name.endswith("scale")), np.float32)
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(1 / math.sqrt(shape[0]))
        return values

    return draw


def _scalar(net: Network, name: str, number: float) -> ir.Value:
    return net.constant(name, np.array(number, np.float32))


def linear(net: Network, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
    """A product with a bias."""
    product = net.node("MatMul", [x, net.parameter(f"{name}.weight", (inputs, outputs))], name)
    return net.node("Add", [product, net.parameter(f"{name}.bias", (outputs,))], f"{name}.add")


def normalised(net: Network, x: ir.Value, name: str, width: int) -> ir.Value:
    """Layer normalisation of the last axis."""
    scale, bias = (net.parameter(f"{name}.{part}", (width,)) for part in ("scale", "bias"))
    return net.node("LayerNormalization", [x, scale, bias], name, axis=-1)


def main() -> None:
    """Write an encoder."""
    parser = argparse.ArgumentParser(description="Write a transformer encoder with random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    path = given.pop("path")
    model = encoder(**given)
    save(model, path, external=4 * parameter_count(model) >= _MOST)


if __name__ == "__main__":
    main()
