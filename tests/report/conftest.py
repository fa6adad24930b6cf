"""Real records of small runs, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxdecomp
from models.digits import MODEL, TEST_DATA
from onnxdecomp.report import together
from onnxdecomp.runtime import jsonio
from onnxdecomp.workflow.compare import compare
from tests.builders.models import network
from tests.builders.training import refine_briefly
from tests.builders.vit import vit

Record = dict[str, Any]


def through_json(record: Record) -> Record:
    """As a reader of the file has it."""
    found: Record = json.loads(json.dumps(jsonio.plain(record), allow_nan=False))
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Record]:
    """An original, its compression at given ranks, and the record of that."""
    folder = tmp_path_factory.mktemp("report")
    original = network(folder / "net.onnx", channels=32)
    x = np.random.default_rng(1).standard_normal((6, 8, 8, 8), dtype=np.float32)
    done = onnxdecomp.compress(
        original,
        folder / "small.onnx",
        method="tucker",
        rank="8",
        simplify="none",
        data={"x": x},
        threads=1,
        bench_seconds=0.1,
        bench_batches=(1, 4),
        details=True,
    )
    return original, folder / "small.onnx", through_json(done.record)


@pytest.fixture(scope="session")
def ranks_record(models: tuple[Path, Path, Record]) -> Record:
    return models[2]


def calibrated(model: Path, seed: int, **options: Any) -> Record:
    """The record of a run on random calibration inputs."""
    x = np.random.default_rng(seed).standard_normal((8, 8, 8, 8), dtype=np.float32)
    how: dict[str, Any] = {"simplify": "none", "threads": 1, "bench_seconds": 0.1, "details": True}
    return through_json(onnxdecomp.compress(model, calib={"x": x}, **how, **options).record)


@pytest.fixture(scope="session")
def search_record(models: tuple[Path, Path, Record]) -> Record:
    """Of a run whose ranks were searched for: plans were tried, and layers had to pay."""
    return calibrated(models[0], 2, target="macs=1.6x,error=0.99", method="tucker,svd")


@pytest.fixture(scope="session")
def cut_record(models: tuple[Path, Path, Record]) -> Record:
    """Of a run that cut the channel c1, and decomposed what is left of the layer that makes it."""
    metric = "token-agreement"
    return calibrated(models[0], 5, method="width,svd", rank="0.5", layers=("c2=width",), metric=metric)


@pytest.fixture(scope="session")
def quantized_record(models: tuple[Path, Path, Record]) -> Record:
    """Of a run that quantized what it had decomposed."""
    return calibrated(models[0], 3, method="tucker", rank="8", quantize="int8-static")


@pytest.fixture(scope="session")
def finetuned_record(models: tuple[Path, Path, Record]) -> Record:
    """Of a run that trained what it had decomposed."""
    how = {"finetune": "epochs=2,batch=4,rate=1e-2", "refine": True}
    with pytest.MonkeyPatch.context() as patch:
        refine_briefly(patch, steps=20)
        return calibrated(models[0], 4, method="tucker", rank="8", **how)


@pytest.fixture(scope="session")
def trainings_record(training_record: Record, unlabelled_record: Record) -> Record:
    """Of several trainings on one page."""
    return through_json(together([training_record, unlabelled_record]))


@pytest.fixture(scope="session")
def training_record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Of a training by itself, with labels."""
    return _trained(tmp_path_factory, ("image", "labels"))


@pytest.fixture(scope="session")
def unlabelled_record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Of a training without labels."""
    return _trained(tmp_path_factory, ("image",), "other.onnx")


def _trained(
    tmp_path_factory: pytest.TempPathFactory, names: tuple[str, ...], file: str = "digits.onnx"
) -> Record:
    target = tmp_path_factory.mktemp("training") / file
    onnxdecomp.compress(MODEL, target, method="tucker", rank="0.15", bench=False, verify=False)
    with np.load(TEST_DATA) as data:
        given = {name: data[name][:60] for name in names}
    how = {"epochs": 2, "batch": 20}
    return through_json(
        onnxdecomp.finetune(target, teacher=MODEL, data=given, settings=how, threads=1).record
    )


@pytest.fixture(scope="session")
def plan_record(models: tuple[Path, Path, Record]) -> Record:
    return through_json(onnxdecomp.inspect(models[0], rank="4").record)


@pytest.fixture(scope="session")
def blocks_record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Of a network of repeated blocks, which has its layers and channels together."""
    model = tmp_path_factory.mktemp("blocks") / "vit.onnx"
    onnx.save(vit(5), model)
    return through_json(onnxdecomp.inspect(model, method="width,attention,svd", rank="0.5").record)


@pytest.fixture(scope="session")
def unchanged_record(models: tuple[Path, Path, Record]) -> Record:
    """Of a run that left every layer as it is."""
    done = onnxdecomp.compress(models[0], rank="1.0", simplify="none", threads=1, details=True)
    return through_json(done.record)


@pytest.fixture(scope="session")
def bench_record(models: tuple[Path, Path, Record]) -> Record:
    """Of a comparison whose gate fails."""
    _, record = compare(
        models[:2],
        gate="size<=0.9 and rel_l2<=1e-9",
        verify=True,
        batch_sizes=(1, 3),
        duration=0.1,
        memory=False,
    )
    return through_json(record)


RECORDED = (
    *("ranks_record", "search_record", "cut_record", "quantized_record", "plan_record", "blocks_record"),
    *("unchanged_record", "bench_record", "finetuned_record", "training_record"),
    "trainings_record",
)


@pytest.fixture(scope="session")
def every_record(request: pytest.FixtureRequest) -> list[Record]:
    """All of them."""
    return [request.getfixturevalue(name) for name in RECORDED]


@pytest.fixture(scope="session", params=RECORDED)
def record(request: pytest.FixtureRequest) -> Record:
    """Each of them."""
    found: Record = request.getfixturevalue(request.param)
    return found
