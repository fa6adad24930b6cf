"""Ways to cut a channel between layers, by what is lost on held-out rows.

    python -m bench.unit_selection [--models NAME …] [--file NAME MODEL CALIBRATION LAYERS] …
                                   [--heads NAME MODEL CALIBRATION LAYERS HEADS] …

Units: of some layers the inputs' channels are cut to three quarters, a half and a quarter, and the layer is
fitted to those that are left (see `refit_reader`). `energy` keeps those whose part of the output has the most
energy; `leverage` those with the largest ridge leverage scores (MoDeGPT, Lin et al. 2024); `forward` adds the
one that takes most off the loss, one by one; `backward` is `unit_order`, elimination by exact increases (as
ZipLM, Kurtic et al. 2023), at several strengths of the shrinkage; `exchange` improves on it (as OSSCAR, Meng
et al. 2024).

Heads: attention cut to the same shares of the heads' size, values and outputs by what the layers LAYERS lose:
`alone` takes the singular vectors of each head's product (MoDeGPT), `together` is `head_bases`, `once more`
`rotate_values`. Queries and keys by `attention_loss`: `plain` takes their second moments, `weighted` those of
`score_moments`, as if all met; `met` is `refine_scores`.

Judged by the relative squared error on held-out calibration rows, where the strength of the shrinkage was
chosen as well (for `met` on others); test data are not looked at. --corpus FOLDER says where the corpus is;
--file and --heads add models that are not in it, with the pattern of the names of the layers that may be
taken: three of each model are.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.corpus import add_option
from bench.provenance import markdown, provenance, write
from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.calibration.statistics import Calibration, observe_unchanged, sized, unobservable
from onnxdecomp.core.layer import Array
from onnxdecomp.data.read import read_feeds
from onnxdecomp.evaluate.preflight import inputs, mask
from onnxdecomp.fitting.elimination import ReaderMoments
from onnxdecomp.fitting.exchange import exchanged
from onnxdecomp.fitting.quadratic_loss import as_rows, problem
from onnxdecomp.fitting.refine_scores import AttentionSample, attention_loss, refine_scores
from onnxdecomp.fitting.rotate_heads import head_bases, rotate_values, rotated
from onnxdecomp.fitting.rotate_scores import ScoreMoments, rotate_scores, score_moments
from onnxdecomp.fitting.select_units import RefittedReader, refit_reader
from onnxdecomp.fitting.unit_order import SHRINKAGE, unit_order
from onnxdecomp.graph.load import load
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.tensor.linalg import left_basis

MODELS = ("resnet20_cifar10", "vgg16_half_cifar10")
_LAYERS, _SAMPLES = 3, 400
_SHARES = (0.75, 0.5, 0.25)
_STRENGTHS = (1e-4, SHRINKAGE, 1e-2, 1e-1)


def main() -> None:
    """Measure and write bench/results/unit_selection.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    more = ("NAME", "MODEL", "CALIBRATION", "LAYERS")
    parser.add_argument("--file", nargs=4, action="append", default=[], metavar=more)
    parser.add_argument("--heads", nargs=5, action="append", default=[], metavar=(*more, "HEADS"))
    options = parser.parse_args()
    corpus = options.corpus
    jobs = [(name, corpus.model(name), corpus.calibration(name), "", 0) for name in options.models]
    jobs += [(name, Path(file), dict(np.load(calib)), at, 0) for name, file, calib, at in options.file]
    jobs += [
        (name, Path(file), dict(np.load(calib)), at, int(n)) for name, file, calib, at, n in options.heads
    ]
    rows: list[dict[str, Any]] = []
    for name, path, arrays, pattern, heads in jobs:
        for layer, reader in readers(path, arrays, pattern):
            for row in measure_heads(reader, heads) if heads else measure_units(reader):
                rows.append({"model": name, "layer": layer, **row})
                print(rows[-1], flush=True)
            write("unit_selection", {**provenance(), "rows": rows}, table(rows))
        for layer, samples in attention(path, arrays) if heads else ():
            for row in measure_scores(samples):
                rows.append({"model": name, "layer": layer, **row})
                print(rows[-1], flush=True)
            write("unit_selection", {**provenance(), "rows": rows}, table(rows))


def readers(path: Path, arrays: Mapping[str, Array], pattern: str) -> Iterator[tuple[str, ReaderMoments]]:
    """Some layers of a model, whose inputs' channels are the units."""
    stages = [stage for stage in configuration.build(None, {}) if stage.name in ("simplify", "normalise")]
    model = pipeline.run(load(path), stages).model
    infer_shapes(model)
    matched, _ = find(model)
    layers = [m for m in matched if unobservable(m) is None and m.layer.groups == 1 and m.layer.inputs >= 16]
    layers = [match for match in layers if re.search(pattern, match.layer.name)]
    chosen = [layers[int(place)] for place in np.linspace(0, len(layers) - 1, _LAYERS + 1).round()[1:]]
    feeds = read_feeds(dict(arrays), inputs(path))
    calibration = sized(Calibration(feeds, mask=mask(path, "")), matched)
    for match, moments in zip(chosen, observe_unchanged(model, chosen, calibration), strict=True):
        layer, weight = match.layer, as_rows(match.layer.weight, match.layer)
        units = np.arange(layer.inputs).repeat(weight.shape[2] // layer.inputs)[None]
        yield layer.name, ReaderMoments(*moments, weight, units, layer.bias)


def attention(path: Path, arrays: Mapping[str, Array]) -> Iterator[tuple[str, list[AttentionSample]]]:
    """Of some attentions, written as products around a Softmax, what met in every sample, without padding."""
    model = load(path)
    found = []
    for node in model.graph:
        if node.op_type == "Softmax" and (product := _product(node.inputs[0])) is not None:
            found.append((product.name or "", [*product.inputs, node.outputs[0]]))
    chosen = [found[int(place)] for place in np.linspace(0, len(found) - 1, _LAYERS).round()]
    names = [value.name or "" for _, values in chosen for value in values if value is not None]
    observer = open_observer(model, names)
    place = {name: index for index, name in enumerate(observer.names)}
    samples: list[list[AttentionSample]] = [[] for _ in chosen]
    for index in range(min(_SAMPLES, len(next(iter(arrays.values()))))):
        feed = {name: array[index : index + 1] for name, array in arrays.items()}
        if "attention_mask" in feed:
            long = int(feed["attention_mask"].sum())
            feed = {name: array[:, :long] for name, array in feed.items()}
        seen = observer.run(feed)
        for at, into in enumerate(samples):
            query, key, p = (seen[place[name]][0] for name in names[3 * at : 3 * at + 3])
            into.append(AttentionSample(query, key.swapaxes(1, 2), p))
    yield from ((name, some) for (name, _), some in zip(chosen, samples, strict=True))


def _product(value: ir.Value | None) -> ir.Node | None:
    """The product of activations that a value comes from by steps of one activation each."""
    while value is not None and (node := value.producer()) is not None:
        made = [one for one in node.inputs if one is not None and one.producer() is not None]
        if node.op_type == "MatMul":
            return node if len(made) == 2 else None
        value = made[0] if made else None
    return None


@one_thread()
def measure_scores(samples: Sequence[AttentionSample]) -> Iterator[dict[str, Any]]:
    """A row per way and size of the heads; half of the samples are fitted to, a quarter chooses."""
    heads, _, size = samples[0].query.shape
    groups, half = range(heads), len(samples) // 2
    train, choosing, judge = samples[:half], samples[half : half * 3 // 2], samples[half * 3 // 2 :]

    def moments(*, weighted: bool) -> ScoreMoments:
        parts = []
        for one in [*train, *choosing]:
            if weighted:
                parts.append(score_moments(one.query[None], one.key[None], groups, one.probabilities[None]))
            else:
                q, k = one.query.astype(np.float64), one.key.astype(np.float64)
                q, k = (x.swapaxes(1, 2) @ x / x.shape[1] for x in (q, k))
                parts.append(ScoreMoments(q, k, one.query.shape[1]))
        return sum(parts[1:], parts[0])

    for kept in [round(share * size) for share in _SHARES]:
        for way in ("plain", "weighted", "met"):
            start = time.process_time()
            maps = rotate_scores(moments(weighted=way != "plain"), groups, kept)
            if way == "met":
                maps = refine_scores(maps, train, choosing, groups)
            seconds = time.process_time() - start
            yield {
                "what": "scores",
                "width": size,
                "features": heads * size,
                "rows": sum(one.query.shape[1] for one in [*train, *choosing]),
                "kept": kept,
                "way": way,
                "loss": float(attention_loss(maps, [*train, *choosing], groups).mean()),
                "held_out": float(attention_loss(maps, judge, groups).mean()),
                "seconds": seconds,
            }


@one_thread()
def measure_units(reader: ReaderMoments) -> Iterator[dict[str, Any]]:
    """A row per way and width."""
    width = int(reader.units.max()) + 1
    widths = [round(share * width) for share in _SHARES]
    for way, (found, seconds) in chosen(reader, width, widths).items():
        for kept, units in found.items():
            fitted = refit_reader(reader, np.sort(units))
            yield _row("units", width, reader, kept, way, fitted, seconds[kept])


@one_thread()
def measure_heads(reader: ReaderMoments, heads: int) -> Iterator[dict[str, Any]]:
    """A row per way and size of the heads."""
    groups, size = range(heads), reader.weight.shape[2] // heads
    start = time.process_time()
    together = head_bases(reader, groups)
    middle = time.process_time()
    alone = _alone(reader, heads)
    spent = {"alone": time.process_time() - middle, "together": middle - start}
    for way, bases in (("alone", alone), ("together", together.bases)):
        for kept in [round(share * size) for share in _SHARES]:
            turned = rotated(reader, bases[:, :kept])
            yield _row("heads", size, reader, kept, way, refit_reader(turned, np.arange(heads)), spent[way])
    for kept in [round(share * size) for share in _SHARES]:
        start = time.process_time()
        fitted = rotate_values(reader, groups, kept, bases=together).output
        seconds = spent["together"] + time.process_time() - start
        yield _row("heads", size, reader, kept, "once more", fitted, seconds)


def _row(
    what: str, width: int, reader: ReaderMoments, kept: int, way: str, fitted: RefittedReader, seconds: float
) -> dict[str, Any]:
    return {
        "what": what,
        "width": width,
        "features": reader.weight.shape[2],
        "rows": reader.train.count,
        "kept": kept,
        "way": way,
        "loss": fitted.loss,
        "held_out": fitted.held_out,
        "seconds": seconds,
    }


def _alone(reader: ReaderMoments, heads: int) -> Array:
    """[heads, d, d], orthogonal: the best directions of each head as if there were no others."""
    posed = problem(reader.train, reader.weight, SHRINKAGE)
    found = []
    for at in np.split(np.arange(reader.weight.shape[2]), heads):
        colour = np.linalg.cholesky(posed.second[0][np.ix_(at, at)])
        basis, _ = left_basis((posed.best[0][:, at] @ colour).T)
        found.append(np.linalg.qr(np.linalg.solve(colour.T, basis))[0].T)
    return np.stack(found)


_Chosen = tuple[dict[int, Array], dict[int, float]]


def chosen(reader: ReaderMoments, width: int, widths: Sequence[int]) -> dict[str, _Chosen]:
    """The units that stay at each width, and the seconds of processor time to find them, by way."""

    def of_order(order: Array, start: float) -> _Chosen:
        spent = time.process_time() - start
        return {kept: order[:kept] for kept in widths}, dict.fromkeys(widths, spent)

    found: dict[str, _Chosen] = {}
    start = time.process_time()
    found["energy"] = of_order(np.argsort(-_energies(reader, width), kind="stable"), start)
    start = time.process_time()
    found["leverage"] = of_order(np.argsort(-_leverages(reader, width), kind="stable"), start)
    start = time.process_time()
    order = _forward(reader, width, max(widths))
    found["forward"] = of_order(order, start)
    for strength in _STRENGTHS:
        start = time.process_time()
        way = f"backward, {strength:g}"
        found[way] = of_order(unit_order([reader], width, shrinkage=strength).order, start)
    units, seconds = found[f"backward, {SHRINKAGE:g}"]
    changed, spent = {}, {}
    for kept, some in units.items():
        start = time.process_time()
        changed[kept] = exchanged([reader], width, some, shrinkage=SHRINKAGE)
        spent[kept] = seconds[kept] + time.process_time() - start
    found["exchange"] = changed, spent
    return found


def _energies(reader: ReaderMoments, width: int) -> Array:
    posed = problem(reader.train, reader.weight)
    energies = np.zeros(width)
    for unit in range(width):
        at = np.flatnonzero(reader.units[0] == unit)
        own = reader.weight[0][:, at]
        energies[unit] = np.sum((own @ posed.second[0][np.ix_(at, at)]) * own)
    return energies


def _leverages(reader: ReaderMoments, width: int) -> Array:
    posed = problem(reader.train, reader.weight, 0.0)
    second = posed.second[0]
    ridge = SHRINKAGE * np.trace(second) / len(second) * np.eye(len(second))
    scores = np.diag(np.linalg.solve(second + ridge, second))
    return np.asarray(np.bincount(reader.units[0], scores, width))


def _forward(reader: ReaderMoments, width: int, most: int) -> Array:
    """The units [most] in the order in which they take most off the loss, by sweeps (Beaton 1964)."""
    posed = problem(reader.train, reader.weight, SHRINKAGE)
    square, cross = posed.second[0].copy(), posed.cross[0].copy()
    at = np.argsort(reader.units[0], kind="stable").reshape(width, -1)
    order: list[int] = []
    for _ in range(most):
        own = cross[:, at].transpose(1, 2, 0)
        solved = np.linalg.solve(square[at[:, :, None], at[:, None, :]], own @ own.swapaxes(1, 2))
        gains = np.trace(solved, axis1=1, axis2=2)
        gains[order] = -np.inf
        order.append(int(np.argmax(gains)))
        taken = at[order[-1]]
        moved = np.linalg.solve(square[np.ix_(taken, taken)], square[taken])
        cross -= cross[:, taken] @ moved
        square -= square[:, taken] @ moved
        # What is taken explains itself.
        square[taken, taken] = 1.0
    return np.array(order)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per layer and way, the losses in per cent of the outputs' energy."""
    head = ["model", "layer", "way", "units, features", *(f"{share:.0%} kept" for share in _SHARES), "time"]
    parts = []
    for what in dict.fromkeys(row["what"] for row in rows):
        lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["what"] == what:
                key = row["model"], row["layer"], row["way"], row["width"], row["features"]
                lines.setdefault(key, []).append(row)
        cells = []
        for (model, layer, way, width, features), some in lines.items():
            losses = [f"{100 * row['held_out']:.3f}" for row in some]
            spent = f"{max(row['seconds'] for row in some):.1f} s"
            short = layer.removesuffix("/MatMul").removesuffix("/Conv")
            cells.append([model, short, way, f"{width}, {features}", *losses, spent])
        parts.append(markdown(head, cells))
    said = "Per cent of the energy (of scores: of their variance under the attention) lost on held-out rows."
    return "\n\n".join([*parts, said])


if __name__ == "__main__":
    main()
