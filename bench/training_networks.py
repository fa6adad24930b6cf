"""Networks for bench/training.py that the corpus lacks, and layers decomposed to a number of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onnxdecomp
from models.network import Floats, Network, Parameters, picture

CLASSES = 10


def parameters(seed: int) -> Parameters:
    """He-scaled normal weights, biases of zero."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Floats:
        if len(shape) == 1:
            return np.zeros(shape, np.float32)
        return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))

    return draw


def mlp(seed: int = 0) -> ir.Model:
    """784-625-10, the network of Novikov et al. 2015 and of T3F's tutorial: 496,885 parameters."""
    network = Network(parameters(seed))
    shape = ir.Shape(["N", 784])
    image = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    x = network.relu(network.linear(image, "fc1", 784, 625), "relu1")
    return network.model("mlp", image, network.linear(x, "fc2", 625, CLASSES), CLASSES)


def lenet(seed: int = 0) -> ir.Model:
    """Two convolutions of 20 and 50 channels and layers of 500 and 10, as in Caffe's LeNet."""
    network = Network(parameters(seed))
    image = picture(1, 28)
    x = network.conv(image, "conv1", 1, 20, kernel=5, bias=True)
    x = network.max_pool(network.relu(x, "relu1"), "pool1", 2, 2)
    x = network.conv(x, "conv2", 20, 50, kernel=5, bias=True)
    x = network.max_pool(network.relu(x, "relu2"), "pool2", 2, 2)
    x = network.linear(network.flatten(x, "flat"), "fc1", 50 * 7 * 7, 500)
    return network.model(
        "lenet", image, network.linear(network.relu(x, "relu3"), "fc2", 500, CLASSES), CLASSES
    )


def at_parameters(
    model: Path,
    target: Path,
    method: str,
    wanted: int,
    *,
    include: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    calib: Any = None,
) -> int:
    """Decompose some layers to at most so many parameters in all, by one rank fraction for all of them.

    Returns:
        The parameters of the model's layers afterwards.
    """
    how: dict[str, Any] = {
        "method": method,
        "include": tuple(include),
        "must_save": "params",
        "options": {} if options is None else {method: dict(options)},
    }
    low, high, best = 0.0, 1.0, 0.0
    for _ in range(14):
        middle = (low + high) / 2
        found = onnxdecomp.inspect(model, rank=f"{middle:.5f}", **how).record["totals"]["params"]["after"]
        if found <= wanted:
            low = best = middle
        else:
            high = middle
    done = onnxdecomp.compress(
        model, target, rank=f"{best:.5f}", calib=calib, verify=False, bench=False, overwrite=True, **how
    )
    return int(done.record["totals"]["params"]["after"])


def at_share(model: Path, target: Path, method: str, share: float, *, exclude: Sequence[str] = ()) -> int:
    """Decompose every layer to at most a share of its own parameters, by a rank fraction of its own.

    One fraction for all layers takes a convolution's few channels with a large matrix' many.

    Returns:
        The parameters of the model's layers afterwards.
    """
    how: dict[str, Any] = {"must_save": "none", "exclude": tuple(exclude)}
    fractions: dict[str, float] = {}
    for fraction in (0.002 * 1.1**step for step in range(66)):
        for layer in onnxdecomp.inspect(model, method=method, rank=f"{fraction:.5f}", **how).record["layers"]:
            after, before = layer["params"]["after"], layer["params"]["before"]
            if layer["method"] is not None and after <= share * before:
                fractions[layer["name"]] = fraction
    rules = tuple(f"{name}={method}:rank={fraction:.5f}" for name, fraction in fractions.items())
    done = onnxdecomp.compress(
        model,
        target,
        method=method,
        rank="1.0",
        layers=(*rules, "*=keep"),
        verify=False,
        bench=False,
        overwrite=True,
        **how,
    )
    return int(done.record["totals"]["params"]["after"])
