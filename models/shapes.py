"""ResNet-18, ResNet-50 and VGG-16 with random weights: for speed, where the values do not matter.

The structure and the parameter counts are those of the papers (He et al. 2015, arXiv 1512.03385;
Simonyan and Zisserman 2014, arXiv 1409.1556) in torchvision's form (ResNet v1.5: the stride of a
bottleneck is in its 3x3 convolution). The weights are drawn from a seeded normal distribution with
He's scale, so that activations neither die nor overflow. Their spectra are flat: no rank compresses
them well.

    python -m models.shapes resnet50 resnet50.onnx
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from models.network import Floats, Network, Parameters, picture

CLASSES = 1000


def random_parameters(seed: int) -> Parameters:
    """He-scaled normal weights [T, S, *kernel], small biases, positive variances."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Floats:
        values = rng.standard_normal(shape, np.float32)
        if len(shape) > 1:
            values *= np.float32(math.sqrt(2 / math.prod(shape[1:])))
        elif name.endswith(("norm.weight", "running_var")):
            values = np.float32(1) + np.abs(values / 10)
        else:
            values /= 10
        return values

    return draw


def resnet18(
    *, batch_norm: bool = True, width: float = 1, size: int = 224, classes: int = CLASSES, seed: int = 0
) -> ir.Model:
    """ResNet-18. batch_norm=False stands for the folded form: a bias in every convolution instead.

    Args:
        batch_norm: Whether BatchNormalization nodes follow the convolutions.
        width: Factor on the channel counts.
        size: Height and width of the input.
        classes: Number of scores.
        seed: Of the random weights.
    """
    return _resnet(
        "resnet18",
        depths=(2, 2, 2, 2),
        bottleneck=False,
        batch_norm=batch_norm,
        width=width,
        size=size,
        classes=classes,
        seed=seed,
    )


def resnet50(
    *, batch_norm: bool = True, width: float = 1, size: int = 224, classes: int = CLASSES, seed: int = 0
) -> ir.Model:
    """ResNet-50; the arguments are those of `resnet18`."""
    return _resnet(
        "resnet50",
        depths=(3, 4, 6, 3),
        bottleneck=True,
        batch_norm=batch_norm,
        width=width,
        size=size,
        classes=classes,
        seed=seed,
    )


def vgg16(*, width: float = 1, size: int = 224, classes: int = CLASSES, seed: int = 0) -> ir.Model:
    """VGG-16 (configuration D), which has no BatchNormalization; `size` is a multiple of 32."""
    net = Network(random_parameters(seed))
    image = x = picture(3, size)
    before = 3
    for block, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for number in range(1, count + 1):
            after = round(channels * width)
            x = net.conv(x, f"conv{block}_{number}", before, after, kernel=3, bias=True)
            x = net.relu(x, f"relu{block}_{number}")
            before = after
        x = net.max_pool(x, f"pool{block}", 2, 2)
    x = net.flatten(x, "flatten")
    hidden = round(4096 * width)
    before *= (size // 32) ** 2
    for name in ("fc6", "fc7"):
        x = net.relu(net.linear(x, name, before, hidden), f"{name}.relu")
        before = hidden
    return net.model("vgg16", image, net.linear(x, "fc8", before, classes), classes)


MODELS: dict[str, Callable[..., ir.Model]] = {"resnet18": resnet18, "resnet50": resnet50, "vgg16": vgg16}


def parameter_count(model: ir.Model) -> int:
    """Trainable numbers, as papers count them: BatchNormalization's running statistics are not."""
    return sum(
        math.prod(value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.shape is not None and not name.endswith(("running_mean", "running_var"))
    )


def save(model: ir.Model, path: Path, *, external: bool = False) -> Path:
    """Write the model, with its weights inside or in "<name>.data" beside it."""
    ir.save(model, path, external_data=f"{path.name}.data" if external else None)
    return path


def _resnet(
    name: str,
    *,
    depths: tuple[int, ...],
    bottleneck: bool,
    batch_norm: bool,
    width: float,
    size: int,
    classes: int,
    seed: int,
) -> ir.Model:
    net = Network(random_parameters(seed))
    image = picture(3, size)
    channels = before = round(64 * width)
    x = net.conv_norm(image, "conv1", 3, channels, kernel=7, stride=2, batch_norm=batch_norm)
    x = net.max_pool(net.relu(x, "conv1.relu"), "pool1", 3, 2, padding=1)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            stride = 2 if stage > 1 and block == 0 else 1
            # (outputs, kernel, stride) of the block's convolutions
            plan = [(channels, 3, stride), (channels, 3, 1)]
            if bottleneck:
                plan = [(channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)]
            x = _block(net, x, f"layer{stage}.{block}", before, plan, batch_norm=batch_norm)
            before = plan[-1][0]
        channels *= 2
    x = net.linear(net.global_average(x, "pool"), "fc", before, classes)
    return net.model(name, image, x, classes)


def _block(
    net: Network,
    x: ir.Value,
    name: str,
    inputs: int,
    plan: list[tuple[int, int, int]],
    *,
    batch_norm: bool,
) -> ir.Value:
    """A residual block; its shortcut is a 1x1 convolution where the shape changes."""
    shortcut, before = x, inputs
    after, stride = plan[-1][0], max(step for _, _, step in plan)
    if stride > 1 or inputs != after:
        shortcut = net.conv_norm(
            x, f"{name}.downsample", inputs, after, kernel=1, stride=stride, batch_norm=batch_norm
        )
    for number, (outputs, kernel, step) in enumerate(plan, 1):
        x = net.conv_norm(
            x, f"{name}.conv{number}", before, outputs, kernel=kernel, stride=step, batch_norm=batch_norm
        )
        if number < len(plan):
            x = net.relu(x, f"{name}.relu{number}")
        before = outputs
    return net.relu(net.node("Add", [x, shortcut], f"{name}.add"), f"{name}.relu")


def main() -> None:
    """Write one of the models."""
    parser = argparse.ArgumentParser(description="Write a network with random weights.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--external", action="store_true", help="weights in a file of their own")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    save(MODELS[options.model](seed=options.seed), options.path, external=options.external)


if __name__ == "__main__":
    main()
