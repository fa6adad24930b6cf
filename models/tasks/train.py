"""Train the networks of this folder, and write each with inputs to fit to and to judge by.

    pip install -e '.[models]'
    python -m models.tasks.train            # all; or: python -m models.tasks.train reader

NAME.onnx has NAME_calib.npz, drawn from what it was trained on, and NAME_test.npz with "labels", drawn from
digits and seeds that training has not seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from models.digits import split
from models.tasks import data, networks

FOLDER = Path(__file__).parent
BATCH = 32
CALIBRATION, TEST = 128, 200
"""Samples that are stored; fewer where a sample is large."""

Draw = Callable[[data.Source, int, np.random.Generator], tuple[Any, Any]]


def _closeness(found: Any, wanted: Any) -> Any:
    return functional.mse_loss(found, wanted)


def _classes(found: Any, wanted: Any) -> Any:
    weights = torch.ones(11)
    weights[10] = 0.2
    return functional.cross_entropy(found, wanted, weights)


def _transcripts(found: Any, wanted: Any) -> Any:
    lengths = torch.full((len(found),), found.shape[1])
    letters = torch.full((len(found),), wanted.shape[1])
    return functional.ctc_loss(found.log_softmax(2).transpose(0, 1), wanted, lengths, letters, blank=10)


def _topics(found: Any, wanted: Any) -> Any:
    alike = found @ found.T / 0.1 - 1e4 * torch.eye(len(found))
    same = (wanted[:, None] == wanted).float() - torch.eye(len(found))
    return -(same * alike.log_softmax(1)).sum() / same.sum().clamp(min=1)


def _next(found: Any, wanted: Any) -> Any:
    return functional.cross_entropy(found[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())


TASKS: dict[str, tuple[Callable[[], Any], str, str, Draw, Any, int, float]] = {
    "upscaler": (networks.Upscaler, "small", "large", data.halves, _closeness, 400, 0.1),
    "detector": (networks.Detector, "image", "scores", data.pictures, _classes, 400, 0.5),
    "reader": (networks.Reader, "line", "scores", data.lines, _transcripts, 500, 0.1),
    "enhancer": (networks.Enhancer, "noisy", "clean", data.sounds, _closeness, 250, 0.1),
    "encoder": (networks.Encoder, "input_ids", "sentence_embedding", data.sentences, _topics, 300, 0.1),
    "decoder": (networks.Decoder, "input_ids", "logits", data.passages, _next, 400, 0.1),
}
"""Network, names of its input and output, what it learns, loss, steps, weight decay."""


def sources() -> tuple[data.Source, data.Source]:
    """What is trained on, and what is tested on: of the pages of this repository the last fifth."""
    (images, labels), _, (test_images, test_labels) = split()
    text = "\n".join(page.read_text("utf-8") for page in sorted(FOLDER.parents[1].glob("*.md")))
    cut = len(text) * 4 // 5
    return data.Source(images[:, 0], labels, text[:cut]), data.Source(
        test_images[:, 0], test_labels, text[cut:]
    )


def train(name: str) -> None:
    """Train one, say its loss on what it has not seen, write its files.

    AdamW with one cycle of the rate; the last weights are kept.
    """
    torch.manual_seed(0)
    make, given, result, draw, loss_of, steps, decay = TASKS[name]
    seen, unseen = sources()
    rng, network = np.random.default_rng(0), make()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        inputs, wanted = (torch.from_numpy(array) for array in draw(seen, BATCH, rng))
        loss = loss_of(network(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
    most = 2**18 // inputs[0].numel()
    inputs, labels = draw(unseen, min(TEST, most), np.random.default_rng(1))
    with torch.no_grad():
        error = float(loss_of(network(torch.from_numpy(inputs)), torch.from_numpy(labels)))
    print(f"{name}: loss {float(loss.detach()):.4f} in training, {error:.4f} on the test", flush=True)
    calib = draw(seen, min(CALIBRATION, most), np.random.default_rng(2))[0]
    np.savez_compressed(FOLDER / f"{name}_calib.npz", **{given: _stored(calib)})
    np.savez_compressed(FOLDER / f"{name}_test.npz", **{given: _stored(inputs), "labels": _stored(labels)})
    program = torch.onnx.export(
        network,
        (torch.from_numpy(inputs[:2]),),
        dynamo=True,
        input_names=[given],
        output_names=[result],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=18,
        verbose=False,
    )
    program.save(FOLDER / f"{name}.onnx", external_data=False)


def _stored(array: Any) -> Any:
    """Floats as whole 256ths, which pack well."""
    return np.round(array * 256).astype(np.float32) / 256 if array.dtype == np.float32 else array


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small networks of the examples.")
    parser.add_argument("names", nargs="*", help="of networks; all if none is given")
    for name in parser.parse_args().names or TASKS:
        train(name)


if __name__ == "__main__":
    main()
