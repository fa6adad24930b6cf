"""A vision transformer with random weights: for speed, and to see that a command takes its graph.

The structure is ViT-S/16 (Dosovitskiy et al. 2021, arXiv 2010.11929, in the size of Touvron et al. 2021,
arXiv 2012.12877): patches by a convolution, a class token, 12 blocks of 384 with 6 heads, GELU. Accuracies of
random weights say nothing.

    python -m models.vit vit_s.onnx        # 88 MB
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import onnx_ir as ir

from models.encoder import block, linear, normalised, random_weights
from models.network import Floats, Network, Parameters
from models.shapes import save


def vit(
    *,
    layers: int = 12,
    width: int = 384,
    heads: int = 6,
    patch: int = 16,
    size: int = 224,
    classes: int = 1000,
    seed: int = 0,
) -> ir.Model:
    """pixels [N, 3, size, size] to "logits" [N, classes].

    Args:
        layers, width, heads: Of the blocks.
        patch, size: Pixels along a side, of a patch and of the picture.
        classes: Scores.
        seed: Of the random weights.
    """
    net = Network(_parameters(seed))
    count = (size // patch) ** 2
    pixels = ir.Value(
        name="pixels", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 3, size, size])
    )
    kernel = net.parameter("patches.weight", (width, 3, patch, patch))
    cut = net.node(
        "Conv",
        [pixels, kernel, net.parameter("patches.bias", (width,))],
        "patches",
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )
    flat = net.node("Reshape", [cut, net.constant("flat", np.array([0, width, count]))], "patches.flat")
    tokens = net.node("Transpose", [flat], "patches.turn", perm=[0, 2, 1])
    number = net.node("Shape", [pixels], "number", start=0, end=1)
    each = net.node("Concat", [number, net.constant("one", np.array([1, width]))], "each", axis=0)
    token = net.node("Expand", [net.parameter("class", (1, 1, width)), each], "class.each")
    x = net.node("Concat", [token, tokens], "tokens", axis=1)
    x = net.node("Add", [x, net.parameter("places", (1, count + 1, width))], "placed")
    for place in range(layers):
        x = block(net, x, f"layer{place}", width, heads, _gelu)
    seen = net.node(
        "Gather", [normalised(net, x, "norm", width), net.constant("at", np.array(0))], "head.in", axis=1
    )
    return net.graph("vit", [pixels], linear(net, seen, "head", width, classes), "logits", ["N", classes])


def _gelu(net: Network, x: ir.Value, name: str) -> ir.Value:
    """x/2 (1 + erf(x/sqrt 2)), as exporters write it."""
    root, one, half = (
        net.constant(f"{name}.gelu.{place}", np.array(value, np.float32))
        for place, value in enumerate((math.sqrt(2), 1.0, 0.5))
    )
    share = net.node("Erf", [net.node("Div", [x, root], f"{name}.gelu.div")], f"{name}.gelu.erf")
    product = net.node("Mul", [x, net.node("Add", [share, one], f"{name}.gelu.add")], f"{name}.gelu.mul")
    return net.node("Mul", [product, half], f"{name}.gelu.half")


def _parameters(seed: int) -> Parameters:
    """Of kernels the size that keeps that of what they multiply, which is not the first axis alone."""
    draw = random_weights(seed)

    def own(name: str, shape: tuple[int, ...]) -> Floats:
        values = draw(name, shape)
        if len(shape) == 4:
            values *= np.float32(math.sqrt(shape[0] / math.prod(shape[1:])))
        return values

    return own


def main() -> None:
    """Write a vision transformer."""
    parser = argparse.ArgumentParser(description="Write a ViT-S/16 with random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    save(vit(seed=given.seed), given.path)


if __name__ == "__main__":
    main()
