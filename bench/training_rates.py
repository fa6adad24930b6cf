"""Learning rates of one size for every tensor, and rates that are shares of a tensor's own size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxdecomp
from bench.corpus import Corpus
from bench.training_data import mnist
from bench.training_networks import at_parameters, lenet, mlp
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

CASES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "lenet, cp": ("lenet", 0.1, {"method": "cp"}),
    "mlp, tt of six cores": (
        "mlp",
        0.04,
        {"method": "tt", "include": ("fc1",), "options": {"shape": "2x2x2x2x7x7:5x5x5x5x1x1"}},
    ),
}
"""The network, the share of its parameters that stays, and how it is decomposed."""


def run(corpus: Corpus, folder: Path, threads: int | None = None) -> Iterator[dict[str, Any]]:
    """A row per network and way, with the held-out loss after two epochs at each rate."""
    for case, (name, share, how) in CASES.items():
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
        whole = onnxdecomp.inspect(dense).record["totals"]["params"]["before"]
        parameters = at_parameters(
            dense, small, wanted=int(share * whole), calib={"image": data["image"]}, **how
        )
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
