"""Learning rates of one size for every tensor, and rates that are shares of a tensor's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxdecomp
from bench.corpus import Corpus
from bench.training_data import mnist
from bench.training_networks import at_parameters, at_share, lenet, mlp
from onnxdecomp.data.read import read_feeds
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.preflight import inputs
from onnxdecomp.training.settings import Settings
from onnxdecomp.training.train import File, train

RATES = (1e-5, 1e-4, 1e-3, 1e-2)

WAYS = {
    "Adam, one rate for all": ("adam", False),
    "Adam, relative": ("adam", True),
    "Muon, relative": ("muon", True),
}

SIX_CORES = {"shape": "2x2x2x2x7x7:5x5x5x5x1x1"}

CASES = ("lenet, cp", "mlp, tt of six cores")
"""The network, and how it is decomposed."""


def run(corpus: Corpus, folder: Path, threads: int | None = None) -> Iterator[dict[str, Any]]:
    """A row per network and way, with the held-out loss after two epochs at each rate."""
    for case in CASES:
        name = case.split(",")[0]
        blank, dense, small = (folder / f"rates.{name}.{part}.onnx" for part in ("blank", "dense", "small"))
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
            parameters = at_share(dense, small, "cp", 0.1, exclude=("conv1", "fc2"))
        else:
            parameters = at_parameters(dense, small, "tt", 21_845, include=("fc1",), options=SIX_CORES)
        feeds = read_feeds(data, inputs(small))
        for way, (optimizer, relative) in WAYS.items():
            losses: dict[str, float | None] = {}
            for rate in RATES:
                settings = Settings(
                    epochs=2, batch=25, rate=rate, optimizer=optimizer, objective="labels", train="all"
                )
                done = train(
                    File(load(small), small),
                    None,
                    feeds,
                    settings,
                    report=lambda *_: None,
                    threads=threads,
                    relative=relative,
                )
                last = done["epochs"][-1]["held_out"]
                losses[f"{rate:g}"] = last if math.isfinite(last) else None
                first = done["epochs"][0]["held_out"]
            yield {
                "case": "rates",
                "network": case,
                "method": way,
                "parameters": parameters,
                "before": first,
                "losses": losses,
            }
