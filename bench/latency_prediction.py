"""How well the latency of a compressed model is predicted from chains timed alone.

    python -m bench.latency_prediction [--corpus FOLDER] [--threads 1 2] [--seconds 1.5]

FOLDER holds models/**/<name>.onnx of the networks below. Each is decomposed with several methods and ranks
(`compress(..., verify=False, bench=False)`). What is predicted is the latency of the result over that of
the same model simplified and with all layers dense, so that what the simplifier alone gains is not counted;
what is measured is the same ratio by `onnxdecomp.evaluate.benchmark.bench`, the two models in turns. The
cache of timings is new, so the seconds of the timing are those of a first run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

import onnxdecomp
from bench.provenance import markdown, provenance, write
from onnxdecomp.calibration.input_shapes import input_shapes
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.evaluate import benchmark
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.latency.chain_model import noise
from onnxdecomp.latency.context import neighbours
from onnxdecomp.latency.layer_shares import shares
from onnxdecomp.latency.measure import Request, Timing, time_chains
from onnxdecomp.latency.predict import predicted_ratio, prediction_error
from onnxdecomp.layers.find import find
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.search.plan import Plan

ROOT = Path(__file__).resolve().parent.parent

JOBS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "vgg16_half_cifar10": (
        ("tucker", "0.5"),
        ("tucker", "0.25"),
        ("tucker", "64"),
        ("tucker", "energy=0.9"),
        ("svd", "0.25"),
    ),
    "resnet20_cifar10": (
        ("tucker", "0.5"),
        ("tucker", "16"),
        ("tucker", "energy=0.8"),
        ("svd", "0.5"),
        ("svd", "16"),
    ),
    "vdsr": (("tucker", "48"), ("tucker", "32"), ("tucker", "16"), ("svd", "32")),
    "dncnn_25": (("tucker", "48"), ("tucker", "32"), ("spatial", "32"), ("cp", "64")),
}
"""The methods and ranks of each network."""

SHAPES: Mapping[str, tuple[int, ...]] = {
    "vgg16_half_cifar10": (1, 3, 32, 32),
    "resnet20_cifar10": (1, 3, 32, 32),
    "vdsr": (1, 1, 64, 64),
    "dncnn_25": (1, 1, 64, 64),
}


@dataclass(frozen=True)
class Row:
    """One decomposed model: its latency over that of the dense one, predicted and measured."""

    model: str
    method: str
    rank: str
    layers: int
    threads: int
    predicted: float
    measured: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Effort:
    """What the prediction took for all variants of a model: chains asked for and timed, and seconds."""

    model: str
    threads: int
    dense_ms: float
    in_layers: float
    asked: int
    timed: int
    timing_s: float
    shares_s: float


def dense(source: Path, target: Path) -> ir.Model:
    """Simplify and normalise the model as compress does, and write it; returned is what was written."""
    stages = [stage for stage in configuration.build(None, {}) if stage.name in ("simplify", "normalise")]
    model = pipeline.run(load(source), stages).model
    save(model, target)
    return model


def predict(
    name: str, path: Path, model: ir.Model, plans: Sequence[Plan], threads: int, cache: Path
) -> tuple[list[float], Effort]:
    """The predicted ratio for each plan."""
    matched, _ = find(model)
    graph_input = str(model.graph.inputs[0].name)
    shapes = input_shapes(model, {graph_input: SHAPES[name]})
    layers = [
        Request(s.layer, dense_chain(s.layer), shapes[s.layer.graph, s.layer.name], around)
        for s, around in zip(matched, neighbours(matched), strict=True)
    ]
    asked: list[Request] = []
    at: list[dict[int, int]] = []
    for plan in plans:
        choices = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
        chosen = {}
        for index, request in enumerate(layers):
            layer = request.layer
            if choice := choices.get((layer.graph, layer.name)):
                chosen[index] = len(asked)
                chain = outline(get(choice.method or "", **choice.options), layer, choice.ranks)
                asked.append(Request(layer, chain, request.input_shape, request.around))
        at.append(chosen)
    start = time.perf_counter()
    timed = time_chains(asked, setting=Setting(threads=threads), cache=cache, note=print)
    middle = time.perf_counter()
    whole = shares(path, {graph_input: noise(SHAPES[name])}, layers, setting=Setting(threads=threads))
    end = time.perf_counter()

    def of(chosen: Mapping[int, int]) -> list[Timing | None]:
        return [timed[chosen[index]] if index in chosen else None for index in range(len(layers))]

    effort = Effort(
        name,
        threads,
        whole.whole_ms,
        sum(share.part for share in whole.layers),
        len(asked),
        len({(timing.dense_ms, timing.ratio) for timing in timed}),
        middle - start,
        end - middle,
    )
    return [predicted_ratio(whole, of(chosen)) for chosen in at], effort


def run(
    name: str, source: Path, folder: Path, threads: Iterable[int], seconds: float
) -> tuple[list[Row], list[Effort]]:
    """All variants of one network."""
    base = folder / f"{name}.onnx"
    model = dense(source, base)
    graph_input = str(model.graph.inputs[0].name)
    plans, files = [], []
    for index, (method, rank) in enumerate(JOBS[name]):
        files.append(folder / f"{name}.{index}.onnx")
        made = onnxdecomp.compress(source, files[-1], method=method, rank=rank, verify=False, bench=False)
        plans.append(made.plan)
    rows, efforts = [], []
    for count in threads:
        predicted, effort = predict(name, base, model, plans, count, folder / "cache.sqlite")
        efforts.append(effort)
        for (method, rank), file, plan, ratio in zip(JOBS[name], files, plans, predicted, strict=True):
            setting = benchmark.bench(
                [base, file],
                threads=(count,),
                duration=seconds,
                shapes={graph_input: SHAPES[name]},
                memory=False,
            ).settings[0]
            measured = setting.models[1].ratio
            assert measured is not None
            error = prediction_error(ratio, measured.value)
            rows.append(
                Row(
                    name,
                    method,
                    rank,
                    len(plan.decomposed),
                    count,
                    ratio,
                    measured.value,
                    measured.low,
                    measured.high,
                    error,
                )
            )
    return rows, efforts


def main() -> None:
    """Compare and write bench/results/latency_prediction.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "corpus")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.5, help="of measuring each variant")
    parser.add_argument("--models", nargs="+", default=list(JOBS), choices=list(JOBS))
    options = parser.parse_args()
    rows: list[Row] = []
    efforts: list[Effort] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            source = next((options.corpus / "models").rglob(f"{name}.onnx"))
            made, took = run(name, source, Path(folder), options.threads, options.seconds)
            rows += made
            efforts += took
    errors = {
        f"{count} threads" if count != 1 else "1 thread": statistics.median(
            row.error for row in rows if row.threads == count
        )
        for count in options.threads
    }
    errors["all"] = statistics.median(row.error for row in rows)
    head = ("model", "method", "rank", "layers", "threads", "predicted", "measured", "95 %", "error")
    table = markdown(
        head,
        [
            (
                row.model,
                row.method,
                row.rank,
                str(row.layers),
                str(row.threads),
                f"{row.predicted:.3f}",
                f"{row.measured:.3f}",
                f"{row.low:.3f} to {row.high:.3f}",
                f"{row.error:.1%}",
            )
            for row in rows
        ],
    )
    worst = max(row.error for row in rows)
    said = ", ".join(f"{name} {value:.1%}" for name, value in errors.items())
    table += f"\n\nMedian error: {said}; the worst {worst:.1%}."
    result = {
        **provenance(),
        "median_error": errors,
        "worst_error": worst,
        "rows": [asdict(row) for row in rows],
        "effort": [asdict(effort) for effort in efforts],
    }
    write("latency_prediction", result, table)


if __name__ == "__main__":
    main()
