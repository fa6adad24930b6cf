"""Whether plans and fits gain from more evidence per image: folds, and shrinkage across candidates.

    python -m bench.calibration_folds [--models NAME …] [--targets FACTOR …]

A search weighs hundreds of candidates by estimates from few images and takes those that look best, so some
are taken for their luck. Remedies are tried on the plans and fits of bench/accuracy_without_training.py's
`auto`: `folds` estimates what every candidate loses on each of four folds of the calibration images, fitted
to the other three, and takes the mean; `shrunk` draws each estimate towards a smooth falling curve over its
method's costs, and a layer's level towards that of its neighbours, by what the variance over the folds is
against their scatter (James and Stein 1961); `folds, shrunk` does so with the means; `strength` chooses how
far a fit is shrunk towards its weight by four folds in place of one. Judged by the Kullback-Leibler
divergence from the original's classes to the result's on 5,000 training images that are not for calibration,
in pairs with the plan as it is, with 95 % intervals. --corpus FOLDER says where the corpus is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from scipy.special import log_softmax

from bench.accuracy_without_training import TARGETS
from bench.candidate_shrinkage import Estimates, shrunk
from bench.corpus import Corpus, add_option
from bench.intervals import paired_difference
from bench.provenance import RESULTS, markdown, provenance, write
from bench.training_data import cifar
from onnxdecomp.apply import layer_fitter
from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.calibration import look
from onnxdecomp.calibration.row_gatherer import Draw, RowGatherer
from onnxdecomp.calibration.statistics import Calibration, sized
from onnxdecomp.core.layer import Array, Layer, Ranks
from onnxdecomp.data.read import read_feeds
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.fitting.fit import Fit, fit
from onnxdecomp.fitting.moments import Gatherer, Moments, features
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.search import layer_profiles
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfile, LayerProfiles, profile_layers
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.select import choose
from onnxdecomp.search.sensitivity import original_outputs
from onnxdecomp.search.targets import Budget

FOLDS = 4
WAYS = ("as it is", "folds", "shrunk", "folds, shrunk", "strength")


@dataclass(frozen=True, eq=False)
class Judged(LayerProfile):
    """A layer whose candidates' losses at the output were estimated elsewhere.

    Attributes:
        expected: One per candidate.
    """

    expected: tuple[float, ...] = ()

    def losses(self) -> list[float]:
        """Of each candidate, the squared relative error that it makes in the output."""
        return list(self.expected)


def main() -> None:
    """Measure and write bench/results/calibration_folds.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--targets", nargs="*", type=float, help="in place of each model's own")
    parser.add_argument("--folds", type=int, default=FOLDS, help="of the searches")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    rows = _earlier()
    for name in options.models:
        for row in measure(
            options.corpus, name, options.targets or TARGETS[name], options.ways, options.folds
        ):
            rows[row["model"], row["target"], row["way"]] = row
            print(row, flush=True)
            order = sorted(rows.values(), key=lambda r: (r["model"], r["target"], WAYS.index(r["way"])))
            write("calibration_folds", {**provenance(), "rows": order}, table(order))


def measure(
    corpus: Corpus, name: str, targets: Sequence[float], ways: Sequence[str], folds: int
) -> Iterator[dict[str, Any]]:
    """A row per target and way."""
    path = corpus.model(name)
    arrays = corpus.calibration(name)
    stages = [stage for stage in configuration.build(None, {}) if stage.name in ("simplify", "normalise")]
    model = pipeline.run(load(path), stages).model
    infer_shapes(model)
    matched, _ = find(model)

    def calibration(chosen: Array) -> Calibration:
        some = {key: array[chosen] for key, array in arrays.items()}
        return sized(Calibration(read_feeds(some, inputs(path))), matched)

    everything = np.arange(len(next(iter(arrays.values()))))
    whole = calibration(everything)
    weighed = {"as it is": profile_layers(model, matched, Scope(), whole)}
    more = 0.0
    if set(ways) - {"as it is", "strength"}:
        start = time.process_time()
        parts = [
            _elsewhere(model, matched, calibration(everything[everything % folds != k]), calibration(fold))
            for k, fold in enumerate(everything[k::folds] for k in range(folds))
        ]
        more = time.process_time() - start
        weighed |= remedied(weighed["as it is"], parts)
    images = cifar(corpus)
    labels = images["labels"]
    before = _scores(path, images["input"])
    for target in targets:
        done: dict[str, dict[str, Any]] = {}
        base: Array | None = None
        first = ""
        for way in ways:
            plan = _searched(weighed.get(way, weighed["as it is"]), model, target)
            key = json.dumps(plan.to_json())
            first = first or key
            if way == "strength" or key not in done:
                start = time.process_time()
                with _strength_by_folds() if way == "strength" else nullcontext():
                    after = _carried_out(model, plan, whole, images["input"])
                seconds = time.process_time() - start
                kl = np.sum(np.exp(before) * (before - after), 1)
                base = kl if base is None else base
                change = paired_difference(base, kl)
                right = [(rows.argmax(1) == labels).astype(np.float64) for rows in (before, after)]
                points = paired_difference(*right)
                done[key] = {
                    "kl": float(kl.mean()),
                    "change": [change.mean, change.low, change.high],
                    "agreement": float(np.mean(before.argmax(1) == after.argmax(1))),
                    "points": [100 * points.mean, 100 * points.low, 100 * points.high],
                    "fit_seconds": seconds,
                }
            found = done[key]
            yield {
                "model": name,
                "target": target,
                "way": way,
                **found,
                "folds": FOLDS if way == "strength" else folds,
                "same_plan": key == first,
                "more_seconds": 0.0 if way in ("as it is", "strength") else more,
                "date": provenance()["date"],
            }


def remedied(base: LayerProfiles, parts: Sequence[LayerProfiles]) -> dict[str, LayerProfiles]:
    """The profiles with estimates averaged over folds, shrunk, and both."""
    places = [index for index, entry in enumerate(base.layers) if entry.candidates]
    own = [Estimates.of(base.layers[i], [part.layers[i] for part in parts]) for i in places]
    means = [replace(layer, losses=layer.folds.mean(0)) for layer in own]

    def profiles_of(losses: Sequence[Array]) -> LayerProfiles:
        layers = list(base.layers)
        for index, values in zip(places, losses, strict=True):
            known = {f.name: getattr(layers[index], f.name) for f in fields(LayerProfile)}
            layers[index] = Judged(**known, expected=tuple(np.exp(values)))
        return replace(base, layers=tuple(layers))

    return {
        "folds": profiles_of([layer.losses for layer in means]),
        "shrunk": profiles_of(shrunk(own, 1)),
        "folds, shrunk": profiles_of(shrunk(means, len(parts))),
    }


def _elsewhere(
    model: ir.Model, matched: Sequence[LayerMatch], fitted: Calibration, judged: Calibration
) -> LayerProfiles:
    """The profiles with candidates fitted to some inputs, their effect on the output measured on others."""

    def outputs(of: ir.Model, _: Calibration, macs: int) -> Any:
        return original_outputs(of, judged, macs)

    with mock.patch.object(layer_profiles, "original_outputs", outputs):
        return profile_layers(model, matched, Scope(), fitted)


@dataclass(frozen=True, eq=False)
class _Folded(Moments):
    """Moments of the rows to fit to, with those of all folds."""

    folds: tuple[Moments, ...] = ()


class _Folds(RowGatherer):
    """Gathers a layer's rows in as many parts as there are folds."""

    def __init__(self, match: LayerMatch, draw: Draw, *, second: bool = True, outputs: bool = True) -> None:
        super().__init__(match, draw, second=second)
        sizes = (match.layer.groups, match.layer.outputs, features(match.layer))
        self._parts = [Gatherer(*sizes, second=second) for _ in range(FOLDS)]

    def add(self, index: int, rows: Array, wanted: Array | None = None) -> None:
        self._parts[index % FOLDS].add(rows, self.wanted(rows) if wanted is None else wanted)

    def halves(self) -> tuple[Moments, Moments | None]:
        folds = tuple(self._as_stored(part.moments()) for part in self._parts)
        train = folds[0]
        for fold in folds[1:-1]:
            train = train + fold
        known = {f.name: getattr(train, f.name) for f in fields(Moments)}
        return _Folded(**known, folds=folds), folds[-1]


def _fit(
    method: Decomposition,
    layer: Layer,
    ranks: Ranks,
    train: Moments,
    held_out: Moments | None = None,
    *,
    shrinkages: Sequence[float],
    centred: bool = True,
    seed: int = 0,
) -> Fit:
    """As `fit`, with the strength of least mean loss over the folds."""
    assert isinstance(train, _Folded)
    losses = np.zeros(len(shrinkages))
    for out, fold in enumerate(train.folds):
        rest = [other for index, other in enumerate(train.folds) if index != out]
        for place, strength in enumerate(shrinkages):
            tried = fit(
                method,
                layer,
                ranks,
                sum(rest[1:], rest[0]),
                fold,
                shrinkages=(strength,),
                centred=centred,
                sweeps=1,
                seed=seed,
            )
            losses[place] += (tried.held_out or 0.0) / FOLDS
    best = int(losses.argmin())
    everything = sum(train.folds[1:], train.folds[0])
    found = fit(method, layer, ranks, everything, shrinkages=(shrinkages[best],), centred=centred, seed=seed)
    return replace(found, held_out=float(losses[best]))


@contextmanager
def _strength_by_folds() -> Iterator[None]:
    with (
        mock.patch.object(look, "RowGatherer", _Folds),
        mock.patch.object(layer_fitter, "fit", _fit),
    ):
        yield


def _searched(found: LayerProfiles, model: ir.Model, target: float) -> Plan:
    _, skips = find(model)
    chosen = choose(found, skips, [Budget("macs", target, relative=True)])
    if isinstance(chosen, OutOfReach):
        raise UsageError(f"macs={target}x: {chosen.reason}")
    return replace(chosen.plan, repair=True)


def _carried_out(model: ir.Model, plan: Plan, calibration: Calibration, images: Array) -> Array:
    copy = model.clone()
    carry_out(copy, find(copy)[0], plan, calibration=calibration)
    with tempfile.TemporaryDirectory() as place:
        save(copy, Path(place) / "new.onnx")
        return _scores(Path(place) / "new.onnx", images)


def _scores(file: Path, images: Array) -> Array:
    """Logarithms of the probabilities of classes, [n, classes]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: images[i : i + 100]})[0] for i in range(0, len(images), 100)]
    return np.asarray(log_softmax(np.concatenate([np.asarray(part) for part in found]).astype(np.float64), 1))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per model, target and way, with the processor seconds of the further searches and of the fit."""
    judged = ("divergence", "against the plan as it is", "same class", "points")
    head = ("model", "MACs", "way", "plan", *judged, "more search", "fit")
    lines = []
    for row in rows:
        start = [row["model"], f"{row['target']:g}x"]
        if row["way"] == "as it is":
            lines.append([*start, row["way"], "", *_judged(row, "")])
            continue
        way = f"{row['way']} ({row['folds']})"
        if row["same_plan"] and row["way"] != "strength":
            lines.append([*start, way, "the same", *[""] * 4, f"{row['more_seconds']:.0f} s", ""])
            continue
        mean, low, high = row["change"]
        against = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append([*start, way, "the same" if row["same_plan"] else "another", *_judged(row, against)])
    notes = dict.fromkeys(row["note"] for row in rows if row.get("note"))
    return "\n\n".join((markdown(head, lines), "In brackets the number of folds.", *notes))


def _judged(row: Mapping[str, Any], against: str) -> list[str]:
    mean, low, high = row["points"]
    points = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    more = f"{row['more_seconds']:.0f} s" if row["more_seconds"] else ""
    return [
        f"{row['kl']:.4f}",
        against,
        f"{row['agreement']:.2%}",
        points,
        more,
        f"{row['fit_seconds']:.0f} s",
    ]


def _earlier() -> dict[tuple[str, float, str], dict[str, Any]]:
    file = RESULTS / "calibration_folds.json"
    if not file.exists():
        return {}
    return {(row["model"], row["target"], row["way"]): row for row in json.loads(file.read_text())["rows"]}


if __name__ == "__main__":
    main()
