"""Networks trained from random numbers, dense and decomposed, at equal parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxdecomp
from bench.corpus import Corpus
from bench.training_data import cifar, cifar_test, mnist
from bench.training_mlp import accuracy, change
from bench.training_networks import at_share, lenet
from onnxdecomp.graph.save import save

METHODS = ("dense", "cp", "tucker", "tt", "tr", "ht")
NETWORKS = {"lenet": ("conv1", "fc2"), "vgg16_half_cifar10": ("node_conv2d", "node_linear_2")}
"""The networks, and their first and last layers, which stay: few parameters that everything goes through."""

SHARE = 0.1
"""Of each layer's parameters."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "lenet": {"epochs": 4, "batch": 50, "rate": 1e-2, "held_out": 0.1, "objective": "labels"},
    "vgg16_half_cifar10": {
        "epochs": 20,
        "batch": 50,
        "rate": 3e-3,
        "held_out": 0.1,
        "objective": "labels",
        "augment": "flip,crop",
        "precision": "mixed",
    },
}


def run(
    corpus: Corpus,
    folder: Path,
    networks: Sequence[str] = tuple(NETWORKS),
    methods: Sequence[str] = METHODS,
    threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """A row per network and method, with the accuracy after every epoch."""
    for name in networks:
        if name == "lenet":
            dense = folder / "lenet.onnx"
            save(lenet(), dense, overwrite=True)
            train, test = mnist(corpus, (1, 28, 28))
        else:
            dense, train, test = corpus.model(name), cifar(corpus), cifar_test(corpus)
        whole = onnxdecomp.inspect(dense).record["totals"]["params"]["before"]
        reference = folder / f"{name}.dense.scratch.onnx"
        for method in methods:
            file, trained = dense, folder / f"{name}.{method}.scratch.onnx"
            parameters = whole
            if method != "dense":
                file = folder / f"{name}.{method}.onnx"
                parameters = at_share(dense, file, method, SHARE, exclude=NETWORKS[name])
            done = onnxdecomp.finetune(
                file,
                trained,
                data=train,
                from_scratch=True,
                settings=SETTINGS[name],
                threads=threads,
                overwrite=True,
            )
            epochs = done.training["epochs"]
            yield {
                "case": "scratch",
                "network": name,
                "method": method,
                "parameters": parameters,
                "test": accuracy(dense, trained, test),
                "change": change(reference, trained, test) if reference.exists() else None,
                "seconds_an_epoch": sum(epoch["seconds"] for epoch in epochs[1:]) / len(epochs[1:]),
                "samples": done.training["samples"],
                "epochs": epochs,
            }
