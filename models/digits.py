"""Train the demonstration network: handwritten digits, with a plain VGG-like convolutional classifier.

The data are the 1,797 real 8x8 images of scikit-learn's `load_digits` (Alpaydin and Kaynak 1998, UCI
"Optical Recognition of Handwritten Digits"): 997 for training, 300 for validation, 500 for the test. The
network enlarges them to 32x32 and has five 3x3 convolutions of 64 and 128 channels, each with a
BatchNormalization that stays in the graph: far more than the task needs, as trained networks are.
Strong weight decay lets the spectra of the weights decay too.

    pip install -e '.[train]'
    python -m models.digits         # about five minutes on 2 cores; rewrites both files below

The settings were chosen by the validation images, and the last epoch's weights are kept; the test images
took no part in either.

Files: models/digits.onnx, the network; models/digits_test.npz, the test images as `image` [500, 1, 8, 8]
float32 in 0..1 and their `labels` [500] int64.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from models.network import Floats, Network, from_state, picture

FOLDER = Path(__file__).parent
MODEL = FOLDER / "digits.onnx"
TEST_DATA = FOLDER / "digits_test.npz"

Images: TypeAlias = tuple[Floats, NDArray[np.int64]]
"""Images [n, 1, 8, 8] in 0..1 and their labels [n]."""

CLASSES = 10
TEST_IMAGES = 500
VALIDATION_IMAGES = 300
ENLARGE = 4
BLOCKS = ((64,), (128, 128), (128, 128))
"""Output channels of the convolutions; a 2x2 maximum pooling ends each block."""
HIDDEN = 128

BATCH = 64
LEARNING_RATE = 0.1


def build(state: dict[str, Floats]) -> ir.Model:
    """The network with these parameters: "image" [N, 1, 8, 8] in 0..1 to "scores" [N, 10]."""
    net = Network(from_state(state))
    image = picture(1, 8)
    no_roi = net.constant("enlarge.roi", np.zeros(0, np.float32))
    scales = net.constant("enlarge.scales", np.array([1, 1, ENLARGE, ENLARGE], np.float32))
    x = net.node(
        "Resize",
        [image, no_roi, scales],
        "enlarge",
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    before = 1
    for b, block in enumerate(BLOCKS, 1):
        for c, channels in enumerate(block, 1):
            x = net.conv(x, f"conv{b}_{c}", before, channels, kernel=3, bias=False)
            x = net.relu(net.batch_norm(x, f"norm{b}_{c}", channels), f"relu{b}_{c}")
            before = channels
        x = net.max_pool(x, f"pool{b}", 2, 2)
    x = net.relu(net.linear(net.global_average(x, "pool"), "fc1", before, HIDDEN), "relu_fc1")
    return net.model("digits", image, net.linear(x, "fc2", HIDDEN, CLASSES), CLASSES)


def split(seed: int = 0) -> tuple[Images, Images, Images]:
    """Training, validation and test images; the classes have the same shares in the test as in all."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=TEST_IMAGES, random_state=seed, stratify=labels)
    rest, test, rest_labels, test_labels = parts
    held = VALIDATION_IMAGES
    return (rest[held:], rest_labels[held:]), (rest[:held], rest_labels[:held]), (test, test_labels)


def train(
    images: Floats, labels: NDArray[np.int64], *, epochs: int = 30, decay: float = 0.02, seed: int = 0
) -> dict[str, Floats]:
    """The parameters by PyTorch's names: SGD with one learning-rate cycle over all epochs.

    The same seed, PyTorch version and processor give the same parameters.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)

    layers: dict[str, nn.Module] = {}
    before = 1
    for b, block in enumerate(BLOCKS, 1):
        for c, channels in enumerate(block, 1):
            layers[f"conv{b}_{c}"] = nn.Conv2d(before, channels, 3, padding=1, bias=False)
            layers[f"norm{b}_{c}"] = nn.BatchNorm2d(channels)
            before = channels
    layers["fc1"] = nn.Linear(before, HIDDEN)
    layers["fc2"] = nn.Linear(HIDDEN, CLASSES)
    net = nn.ModuleDict(layers)

    def forward(x: Any) -> Any:
        x = functional.interpolate(x, scale_factor=ENLARGE, mode="bilinear")
        for b, block in enumerate(BLOCKS, 1):
            for c in range(1, len(block) + 1):
                x = functional.relu(net[f"norm{b}_{c}"](net[f"conv{b}_{c}"](x)))
            x = functional.max_pool2d(x, 2)
        return net["fc2"](functional.relu(net["fc1"](x.mean((2, 3)))))

    def shifted(batch: Any) -> Any:
        """Every image moved by -1, 0 or 1 pixels along both axes, with zeros moving in."""
        padded = functional.pad(batch, (1, 1, 1, 1))
        dy, dx = torch.randint(0, 3, (2, len(batch)))
        size = torch.arange(8)
        rows, columns = dy[:, None] + size, dx[:, None] + size
        index = torch.arange(len(batch))[:, None, None]
        return padded[index, 0, rows[:, :, None], columns[:, None, :]][:, None]

    x_all, y_all = torch.from_numpy(images), torch.from_numpy(labels)
    steps = -(-len(x_all) // BATCH)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, epochs=epochs, steps_per_epoch=steps, cycle_momentum=False
    )
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(x_all)).split(BATCH):
            loss = functional.cross_entropy(
                forward(shifted(x_all[chosen])), y_all[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}", flush=True)
    return {
        name: np.ascontiguousarray(value.numpy())
        for name, value in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def accuracy(model: ir.Model | Path, images: Floats, labels: NDArray[np.int64]) -> float:
    """The share of images that get the right class, in ONNX Runtime on the CPU."""
    import onnxruntime as ort

    source = model if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images})
    return float(np.mean(scores.argmax(1) == labels))


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description="Train the digits network.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--decay", type=float, default=0.02, help="weight decay of SGD")
    options = parser.parse_args()
    training, validation, test = split()
    model = build(train(*training, epochs=options.epochs, decay=options.decay))
    for name, part in (("validation", validation), ("test", test)):
        print(f"accuracy on the {len(part[1])} {name} images: {accuracy(model, *part):.4f}")
    ir.save(model, MODEL)
    np.savez_compressed(TEST_DATA, image=test[0], labels=test[1])


if __name__ == "__main__":
    main()
