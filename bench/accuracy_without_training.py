"""What is left of a network's accuracy after compression without training, and what each ingredient brings.

    python -m bench.accuracy_without_training [--models NAME …] [--variants NAME …] [--targets FACTOR …]

Factors are fitted to the corpus' calibration images, at most 1,000 without labels. Accuracy is measured on
its 5,000 test images, for the table, and on 5,000 training images that are not for calibration: by those, and
only by those, variants are compared and defaults chosen. The networks were trained on them, so more is lost
there than on test images; the order is the same. Every difference is paired, with its 95 % interval (see
bench/intervals.py). Every row is compressed anew; rows that a run does not make keep what an earlier run
wrote. --corpus FOLDER says where the corpus is (default: $ONNXDECOMP_CORPUS, else ../shared/corpus).

The variants add one ingredient after the other: `plain` fits factors to the weights; `symmetric` to what
layers see in the original; `asymmetric` to what they see in the compressed prefix; `shrinkage` chooses its
strength by held-out images. These have the same rank fraction in every layer, of the spatial method;
`allocation` searches the ranks for the target; `activation` spends nothing on what the Relu behind a layer
forgives; `repair` fits kept layers too; and `auto` searches the methods, which is what the tool does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bench.corpus import Corpus, add_option
from bench.intervals import paired_difference
from bench.provenance import RESULTS, markdown, provenance, write
from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.calibration.statistics import Calibration, sized
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.preflight import inputs
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import configuration, pipeline
from onnxdecomp.search.fixed_ranks import Request, plan_uniform
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.layer_profiles import LayerProfiles, profile_layers
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.rules import Defaults, make_rule
from onnxdecomp.search.scope import Scope
from onnxdecomp.search.select import choose
from onnxdecomp.search.targets import Budget

TARGETS: Mapping[str, tuple[float, ...]] = {
    "resnet20_cifar10": (1.5, 2.0, 2.5),
    "vgg16_half_cifar10": (2.0, 3.0, 5.0),
}
"""Factors by which multiply-accumulates are to fall."""


@dataclass(frozen=True)
class Variant:
    """What one column is made with.

    Attributes:
        search: The methods that a search chooses ranks for; "" for the same rank fraction in every layer.
        fitted: Whether factors are fitted to what layers see.
        repair: Whether kept layers make up for what was lost.
        asymmetric, rectified, shrinkages: As in Calibration; None leaves what is there.
    """

    search: str = ""
    fitted: bool = True
    repair: bool = False
    asymmetric: bool = True
    rectified: bool = False
    shrinkages: tuple[float, ...] | None = None

    def calibration(self, whole: Calibration) -> Calibration | None:
        """What the factors are fitted to, or None for the weights."""
        if not self.fitted:
            return None
        strengths = whole.shrinkages if self.shrinkages is None else self.shrinkages
        return replace(whole, asymmetric=self.asymmetric, rectified=self.rectified, shrinkages=strengths)


_WEAK = (1e-4,)
VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(fitted=False),
    "symmetric": Variant(asymmetric=False, shrinkages=_WEAK),
    "asymmetric": Variant(shrinkages=_WEAK),
    "shrinkage": Variant(),
    "allocation": Variant(search="spatial"),
    "activation": Variant(search="spatial", rectified=True),
    "repair": Variant(search="spatial", rectified=True, repair=True),
    "auto": Variant(search="auto", rectified=True, repair=True),
}
"""The columns, each with an ingredient more than the one before."""


_INGREDIENTS = (
    "What each ingredient brings, in points on the test images (intervals were measured of `auto` alone; "
    "5,000 images leave 0.4 to 1.3 points to either side, the more the more is lost):"
)


def main() -> None:
    """Measure and write bench/results/accuracy_without_training.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_option(parser)
    parser.add_argument("--models", nargs="*", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--targets", nargs="*", type=float, help="of those of a model only these factors")
    options = parser.parse_args()
    rows = _earlier()
    for name in options.models:
        targets = [factor for factor in TARGETS[name] if not options.targets or factor in options.targets]
        for row in measure(options.corpus, name, options.variants, targets):
            key = (row["model"], row["target"], row["variant"])
            rows[key] = row
            print(*row.values(), flush=True)
            order = sorted(
                rows.values(), key=lambda r: (r["model"], r["target"], list(VARIANTS).index(r["variant"]))
            )
            write("accuracy_without_training", {**provenance(), "rows": order}, table(order))


def measure(
    corpus: Corpus, name: str, variants: Sequence[str], targets: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """One row per target and variant."""
    path = corpus.model(name)
    arrays = corpus.calibration(name)
    feeds = read_feeds(arrays, inputs(path))
    stages = [stage for stage in configuration.build(None, {}) if stage.name in ("simplify", "normalise")]
    model = pipeline.run(load(path), stages).model
    infer_shapes(model)
    matched, _ = find(model)
    calibration = sized(Calibration(feeds), matched)
    profiles = _profiles(model, calibration, variants)
    for target in targets:
        uniform = _uniform(model, target)
        for variant in variants:
            found = profiles.get(variant)
            plan, gap = (uniform, None) if found is None else _searched(found, model, target)
            start = time.perf_counter()
            plan = replace(plan, repair=VARIANTS[variant].repair)
            made = _carried_out(model, plan, VARIANTS[variant].calibration(calibration))
            seconds = time.perf_counter() - start
            with tempfile.TemporaryDirectory() as place:
                file = Path(place) / "new.onnx"
                save(made, file)
                test, held_out = (
                    paired_difference(*corpus.paired(name, file, split)) for split in ("eval", "held_out")
                )
            yield {
                "model": name,
                "target": target,
                "variant": variant,
                "reached": _reduction(plan),
                "points": 100 * test.mean,
                "interval": [100 * test.low, 100 * test.high],
                "held_out_points": 100 * held_out.mean,
                "held_out_interval": [100 * held_out.low, 100 * held_out.high],
                "gap": gap,
                "fit_seconds": seconds,
                "date": provenance()["date"],
            }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the tool does, with intervals; below it the change of accuracy that each ingredient brings."""
    keys = dict.fromkeys((row["model"], row["target"]) for row in rows)
    by_key = {(row["model"], row["target"], row["variant"]): row for row in rows}
    whole = [
        (
            row["model"],
            f"{row['target']:g}x",
            _points(row["points"], row["interval"]),
            _points(row["held_out_points"], row["held_out_interval"]),
        )
        for row in rows
        if row["variant"] == "auto" and "interval" in row
    ]
    parts = []
    for model, target in keys:
        cells = [model, f"{target:g}x"]
        for variant in VARIANTS:
            row = by_key.get((model, target, variant))
            cells.append("" if row is None else f"{row['points']:+.2f}")
        parts.append(cells)
    return "\n".join(
        (
            markdown(("model", "MACs", "points on test images", "points on held-out training images"), whole),
            "",
            _INGREDIENTS,
            "",
            markdown(("model", "MACs", *VARIANTS), parts),
        )
    )


def _points(mean: float, interval: Sequence[float]) -> str:
    return f"{mean:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def _profiles(model: ir.Model, calibration: Calibration, variants: Sequence[str]) -> dict[str, LayerProfiles]:
    matched, _ = find(model)
    searched = {variant: VARIANTS[variant].search for variant in variants if VARIANTS[variant].search}
    made = {
        methods: profile_layers(model, matched, Scope(methods=(methods,)), calibration)
        for methods in dict.fromkeys(searched.values())
    }
    return {variant: made[methods] for variant, methods in searched.items()}


def _uniform(model: ir.Model, target: float) -> Plan:
    """The spatial method at the largest common rank fraction that meets the target."""
    matched, skips = find(model)
    low, high = 0.01, 1.0
    best: Plan | None = None
    for _ in range(12):
        middle = (low + high) / 2
        rule = make_rule("spatial", Defaults(str(middle)))
        plan = plan_uniform(matched, skips, Request((rule,)))
        if _reduction(plan) >= target:
            best, low = plan, middle
        else:
            high = middle
    assert best is not None
    return best


def _searched(found: LayerProfiles, model: ir.Model, target: float) -> tuple[Plan, float]:
    _, skips = find(model)
    chosen = choose(found, skips, [Budget("macs", target, relative=True)])
    if isinstance(chosen, OutOfReach):
        raise UsageError(f"macs={target}x: {chosen.reason}")
    return chosen.plan, chosen.gap


def _reduction(plan: Plan) -> float:
    costs = [(choice.before, choice.after if choice.method else choice.before) for choice in plan.choices]
    before = sum(a.macs for a, _ in costs if a is not None)
    return before / sum(b.macs for _, b in costs if b is not None)


def _carried_out(model: ir.Model, plan: Plan, calibration: Calibration | None) -> ir.Model:
    copy = model.clone()
    matched, _ = find(copy)
    carry_out(copy, matched, plan, calibration=calibration)
    return copy


def _earlier() -> dict[tuple[str, float, str], dict[str, Any]]:
    file = RESULTS / "accuracy_without_training.json"
    if not file.exists():
        return {}
    rows = json.loads(file.read_text())["rows"]
    return {(row["model"], row["target"], row["variant"]): row for row in rows}


if __name__ == "__main__":
    main()
