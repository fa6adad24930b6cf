"""Learning rates of one size for every tensor, and rates that are shares of a tensor's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxdecomp
from bench.corpus import Corpus
from bench.training_data import cifar, mnist
from bench.training_networks import at_parameters, at_share, lenet, mlp
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.read import read_feeds
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.training.settings import Settings
from onnxdecomp.training.train import File, train

RATES = (1e-5, 1e-4, 1e-3, 1e-2)
EPOCHS, BATCH = 2, 25

WAYS = {
    "SGD, one rate for all": ("sgd", False),
    "Adam, one rate for all": ("adam", False),
    "Adam, relative": ("adam", True),
    "Muon, relative": ("muon", True),
}

SIX_CORES = {"shape": "2x2x2x2x7x7:5x5x5x5x1x1"}

CASES = ("lenet, cp", "mlp, tt of six cores", "resnet20_cifar10, cp")
"""The network, and how it is decomposed."""


@dataclass(frozen=True)
class Loss:
    """Of the held-out samples, before and after; None where it is not finite any more."""

    before: float
    after: float | None


def run(corpus: Corpus, folder: Path, threads: int | None = None) -> Iterator[dict[str, Any]]:
    """A row per network and way, with the held-out loss after two epochs at each rate."""
    for case in CASES:
        small, parameters, data = _network(case, corpus, folder, threads)
        feeds = read_feeds(data, inputs(small))
        for way, (optimizer, relative) in WAYS.items():
            losses = {}
            for rate in RATES:
                if optimizer == "sgd":
                    found = by_sgd(small, feeds, rate, threads)
                else:
                    found = _by_tool(small, feeds, rate, optimizer, relative, threads)
                losses[f"{rate:g}"] = found.after
            yield {
                "case": "rates",
                "network": case,
                "method": way,
                "parameters": parameters,
                "before": found.before,
                "losses": losses,
            }


def _network(case: str, corpus: Corpus, folder: Path, threads: int | None) -> tuple[Path, int, Any]:
    """The decomposed network's file, its parameters, and labelled data for it."""
    name = case.split(",", maxsplit=1)[0]
    small = folder / f"rates.{name}.small.onnx"
    if name == "resnet20_cifar10":
        done = onnxdecomp.compress(
            corpus.model(name),
            small,
            method="cp",
            target="macs=2x",
            verify=False,
            bench=False,
            overwrite=True,
        )
        return small, int(done.record["totals"]["params"]["after"]), cifar(corpus, labelled=True)
    blank, dense = (folder / f"rates.{name}.{part}.onnx" for part in ("blank", "dense"))
    save(lenet() if name == "lenet" else mlp(), blank, overwrite=True)
    data, _ = mnist(corpus, (1, 28, 28) if name == "lenet" else (784,))
    onnxdecomp.finetune(
        blank,
        dense,
        data=data,
        from_scratch=True,
        settings={"epochs": 4, "batch": 50, "rate": 1e-2, "objective": "labels"},
        threads=threads,
        overwrite=True,
    )
    if name == "lenet":
        return small, at_share(dense, small, "cp", 0.1, exclude=("conv1", "fc2")), data
    return small, at_parameters(dense, small, "tt", 21_845, include=("fc1",), options=SIX_CORES), data


def _by_tool(
    small: Path, feeds: Feeds, rate: float, optimizer: str, relative: bool, threads: int | None
) -> Loss:
    """As `onnxdecomp finetune` trains."""
    done = train(
        File(load(small), small),
        None,
        feeds,
        Settings(epochs=EPOCHS, batch=BATCH, rate=rate, optimizer=optimizer, objective="labels", train="all"),
        report=lambda *_: None,
        threads=threads,
        relative=relative,
    )
    first, last = (done["epochs"][place]["held_out"] for place in (0, -1))
    return Loss(first, last if math.isfinite(last) else None)


def by_sgd(small: Path, feeds: Feeds, rate: float, threads: int | None) -> Loss:
    """As the papers train: stochastic gradients with a momentum of 0.9, one rate that does not change."""
    import torch

    from onnxdecomp.training.autograd.network import Network
    from onnxdecomp.training.autograd.tensors import as_tensor, as_tensors
    from onnxdecomp.training.roles import roles
    from onnxdecomp.training.samples import Batch, split

    torch.set_num_threads(threads or torch.get_num_threads())
    model = load(small)
    network = Network(model, [role.name for role in roles(model)])
    (scores,) = network.outputs
    training, held_out = split(feeds, Settings().held_out, 0)
    optimizer = torch.optim.SGD(list(network.parameters.values()), lr=rate, momentum=0.9)

    def loss(batch: Batch) -> torch.Tensor:
        """The sum over the samples."""
        return torch.stack(
            [
                torch.nn.functional.cross_entropy(
                    network(as_tensors(feed), (scores,))[scores], as_tensor(labels), reduction="sum"
                )
                for feed, labels in zip(batch.feeds, batch.labels, strict=True)
                if labels is not None
            ]
        ).sum()

    def judged() -> float:
        with torch.no_grad():
            return sum(float(loss(batch)) for batch in held_out.passes()) / len(held_out)

    before = judged()
    for epoch in range(EPOCHS):
        order = np.random.default_rng((0, epoch)).permutation(len(training))
        for start in range(0, len(order), BATCH):
            rows = [int(row) for row in order[start : start + BATCH]]
            optimizer.zero_grad()
            value = loss(training.batch(rows)) / len(rows)
            if not math.isfinite(float(value.detach())):
                return Loss(before, None)
            value.backward()
            optimizer.step()
    after = judged()
    return Loss(before, after if math.isfinite(after) else None)
