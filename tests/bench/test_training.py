"""The parts of bench/training that need no hours: networks, ranks at a number of parameters, data, tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxdecomp
from bench.corpus import Corpus
from bench.intervals import answers_changed
from bench.training import mlp_table, rates_table, restore_table, scratch_table
from bench.training_data import MNIST_TRAIN, cifar, mnist
from bench.training_mlp import CORES, METHODS
from bench.training_networks import at_parameters, lenet, mlp
from bench.training_rates import by_sgd
from onnxdecomp.core.layer import Array
from onnxdecomp.data.read import read_feeds
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.graph.save import save


def test_the_networks(tmp_path: Path) -> None:
    for name, model, count, shape in (
        ("mlp", mlp(), 496_885, (3, 784)),
        ("lenet", lenet(), 20 * 26 + 50 * 501 + 500 * 2451 + 10 * 501, (3, 1, 28, 28)),
    ):
        file = save(model, tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(file), full_check=True)
        stored = onnx.load(file).graph.initializer
        assert sum(int(np.prod(tensor.dims)) for tensor in stored) == count
        data = {"image": np.zeros(shape, np.float32)}
        assert onnxdecomp.verify(file, file, data=data).status == "passed"


def test_a_train_of_rank_16_has_the_parameters_of_the_paper(tmp_path: Path) -> None:
    """Ranks of one fraction come near to the cores of T3F's example, and not above them."""
    dense = save(mlp(), tmp_path / "mlp.onnx")
    found = at_parameters(
        dense,
        tmp_path / "tt.onnx",
        "tt",
        CORES + 625 + 6260,
        options=METHODS["tt"],
    )
    assert 0.9 * (CORES + 6885) <= found <= CORES + 6885


def test_stochastic_gradients_learn_and_diverge(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    dense = save(mlp(), tmp_path / "mlp.onnx")
    labels = np.random.default_rng(0).integers(10, size=400)
    images = np.repeat(np.eye(10, 16, dtype=np.float32)[labels], 49, axis=1)
    data: dict[str, Array] = {"image": images, "labels": labels}
    feeds = read_feeds(data, inputs(dense))
    learnt, lost = (by_sgd(dense, feeds, rate, threads=1) for rate in (1e-3, 1e30))
    assert learnt.after is not None
    assert learnt.after < 0.5 * learnt.before
    assert lost.after is None
    assert lost.before == learnt.before


def test_the_data(corpus: Path) -> None:
    train, test = mnist(Corpus(corpus), (784,))
    assert train["image"].shape == (MNIST_TRAIN, 784)
    assert len(test["labels"]) == 2000
    assert train["image"].max() == 1
    images = cifar(Corpus(corpus))
    assert images["input"].shape == (5000, 3, 32, 32)
    assert np.bincount(images["labels"]).tolist() == [500] * 10
    assert len(cifar(Corpus(corpus), labelled=False)["input"]) == 6000


def epochs(*accuracies: float) -> list[dict[str, float]]:
    return [{"accuracy": a, "train_accuracy": a / 2} for a in accuracies]


def test_the_tables() -> None:
    row = {
        "method": "tt",
        "parameters": 21_845,
        "plain": 0.5,
        "calibrated": 0.9,
        "after": 0.95,
        "seconds": 9.6,
    }
    dense = {"method": "dense", "parameters": 496_885, "after": 0.951}
    changes = {"after": answers_changed(1000, 21, 20).to_json()}
    assert mlp_table([dense, {**row, "changes": changes}]).splitlines()[2:4] == [
        "| dense | 496,885 | 95.10% |  |  |  |  |",
        "| tt | 21,845 | 95.00% | -45.10 (interval not measured) | -5.10 (interval not measured) | "
        "-0.10 (-1.38 to +1.18) | 10 s |",
    ]
    scores = {
        "model": "m",
        "target": 2.0,
        "metric": "top1",
        "original": 0.9,
        "compressed": 0.85,
        "trained": 0.895,
    }
    shown = restore_table([{**scores, "best": 1, "epochs": epochs(0.8, 0.9), "seconds": 90}])
    missing = "(interval not measured)"
    assert shown.splitlines()[2] == (
        f"| m | 2x | 90.00 % | -5.00 points {missing} | -0.50 points {missing} | 1 of 1 | 1.5 min |"
    )
    learnt = {"network": "n", "method": "cp", "parameters": 10, "test": 0.7, "seconds_an_epoch": 2.0}
    scratch = [{**learnt, "method": way, "epochs": epochs(0.1, 0.2, 0.4, 0.6)} for way in ("dense", "cp")]
    assert scratch_table(scratch).splitlines()[2:4] == [
        "| n | dense | 10 | 20.00% | 60.00% | 60.00% | 30.00% | 70.00% |  | 2.0 s |",
        f"| n | cp | 10 | 20.00% | 60.00% | 60.00% | 30.00% | 70.00% | +0.00 {missing} | 2.0 s |",
    ]
    tried = {"network": "n", "method": "Adam", "parameters": 10, "before": 0.5}
    losses = {"1e-05": 0.4, "0.0001": 0.25, "0.001": None, "0.01": 2.0}
    assert rates_table([{**tried, "losses": losses}]).splitlines()[2] == (
        "| n | 10 | Adam | 0.500 | 0.400 | 0.250 | not finite | 2.000 |"
    )
