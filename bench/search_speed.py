"""How long a search takes: processor seconds of `compress --target`, stage by stage, before and after.

    python -m bench.search_speed --before COMMIT [--runs digits …] [--repeats 3] [--together]

Every run is a fresh process with one thread for linear algebra; `before` and `after` take turns, the former
from a worktree of that commit. Times are medians. On a machine that is busy with other things processor times
are longer, too, up to several times: there the two run together, so that they have the same neighbours, and
only their ratio means something. Beside them is what the plan has come to, since a plan that is found sooner
must be as good: the error on the calibration inputs, and how many more training images, labelled and not used
otherwise, a classifier gets wrong.

Runs whose networks are not there (see bench/corpus.py, bench/corpus_large.py) are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from bench.corpus import HELD_OUT, Corpus, add_option
from bench.corpus_large import LargeCorpus
from bench.provenance import RESULTS, ROOT, markdown, provenance, write

STAGES = {
    "survey": ("onnxdecomp.search.search", "profile_layers"),
    "trials": ("onnxdecomp.search.search", "_chosen"),
    "plan": ("onnxdecomp_passes.decompose", "carry_out"),
    "verify": ("onnxdecomp.evaluate.verify", "verify"),
}
"""Functions whose time is a stage's; within each other, the outermost counts."""


@dataclass(frozen=True)
class Run:
    """A network, a target, and how many calibration samples.

    Attributes:
        model: Its name in the corpus; "" for models/digits.onnx.
        target, samples: As for `compress`.
        source: "corpus", "large" (the corpus of larger models), or "made": of models.shapes, with random
            weights, on noise.
    """

    model: str
    target: str
    samples: int
    source: Literal["corpus", "large", "made"] = "corpus"


RUNS = {
    "digits": Run("", "macs=3x", 500),
    "resnet20": Run("resnet20_cifar10", "macs=2x", 1000),
    "vgg16_half": Run("vgg16_half_cifar10", "macs=3x", 1000),
    "waifu2x": Run("waifu2x_upconv7_photo_scale2x", "macs=1.5x", 64),
    "vdsr": Run("vdsr", "macs=1.5x", 64),
    "nsnet2": Run("nsnet2", "macs=1.5x", 16),
    "vgg16_half, latency": Run("vgg16_half_cifar10", "latency=2.5x", 1000),
    "vdsr, latency": Run("vdsr", "latency=1.5x", 64),
    "minilm": Run("minilm_l6", "macs=1.5x", 128, "large"),
    "resnet50": Run("resnet50", "macs=2x", 64, "made"),
    "vgg16": Run("vgg16", "macs=2x", 32, "made"),
}


def main() -> None:
    """Measure and write bench/results/search_speed.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", help="a commit to compare with")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="before and after at the same time")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.child:
        model, data, output = map(Path, options.child)
        print(json.dumps(_timed(model, data, output, RUNS[options.runs[0]].target)))
        return
    corpus: Corpus = options.corpus
    rows = []
    with ExitStack() as stack:
        trees = {"after": ROOT}
        if options.before:
            trees = {"before": stack.enter_context(_worktree(options.before)), **trees}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in options.runs:
            run = RUNS[name]
            if (found_inputs := _inputs(corpus, run, folder)) is None:
                continue
            model, data = found_inputs
            found: dict[str, list[dict[str, Any]]] = {tree: [] for tree in trees}
            with ThreadPoolExecutor(len(trees) if options.together else 1) as pool:
                for _ in range(options.repeats):
                    runs = {
                        tree: pool.submit(_child, root, name, model, data, folder / f"{tree}.onnx")
                        for tree, root in trees.items()
                    }
                    for tree, own in runs.items():
                        found[tree].append(own.result())
            for tree, timed in found.items():
                judged = _more_wrong(corpus, run.model, folder / f"{tree}.onnx")
                how = {"before": options.before, "repeats": options.repeats, "together": options.together}
                told = {"run": name, "target": run.target, "tree": tree, **how}
                rows.append({**told, **_medians(timed), **judged, "provenance": provenance()})
                print(rows[-1], flush=True)
                _keep(rows)


def _keep(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows in the place of earlier ones of the same runs."""
    path, anew = RESULTS / "search_speed.json", {row["run"] for row in rows}
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = [*(row for row in known if row["run"] not in anew), *rows]
    merged.sort(key=lambda row: list(RUNS).index(row["run"]))
    write("search_speed", {**provenance(), "rows": merged}, _table(merged))


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """The files of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", place, commit], cwd=ROOT, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


def _inputs(corpus: Corpus, run: Run, folder: Path) -> tuple[Path, Path] | None:
    """The network, and a file of its calibration inputs; None where it is not there."""
    from models import shapes
    from models.digits import MODEL, TEST_DATA

    if not run.model:
        return MODEL, TEST_DATA
    data, large = (
        folder / f"{run.model}.npz",
        LargeCorpus(corpus.folder.parent / "corpus-large", corpus.folder),
    )
    if run.source == "made":
        model = folder / f"{run.model}.onnx"
        made = shapes.resnet50(batch_norm=False) if run.model == "resnet50" else shapes.vgg16()
        shapes.save(made, model)
        size = (run.samples, 3, 224, 224)
        inputs = {"image": np.random.default_rng(0).standard_normal(size).astype(np.float32)}
    elif run.source == "large" and run.model in large.models():
        model, inputs = large.model(run.model), large.calibration(run.model)
    elif run.source == "corpus" and corpus.has(run.model):
        model, inputs = corpus.model(run.model), corpus.calibration(run.model)
    else:
        return None
    np.savez(data, **{name: array[: run.samples] for name, array in inputs.items()})  # type: ignore[arg-type]
    return model, data


def _child(root: Path, name: str, model: Path, data: Path, output: Path) -> dict[str, Any]:
    """One run in a process of its own, with the code in `root`."""
    command = [sys.executable, __file__, "--runs", name, "--child", str(model), str(data), str(output)]
    one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join((str(root), str(root / "passes")))
    done = subprocess.run(
        command, env={**os.environ, **one, "PYTHONPATH": paths}, check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _timed(model: Path, data: Path, output: Path, target: str) -> dict[str, Any]:
    """What one run takes, and what it comes to."""
    import resource

    import onnxdecomp_passes.decompose  # noqa: F401

    import onnxdecomp
    import onnxdecomp.evaluate.verify
    import onnxdecomp.search.search

    start = time.perf_counter()
    seconds: dict[str, float] = defaultdict(float)
    running: list[str] = []

    def counted(stage: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if running:
                return own(*args, **kwargs)
            running.append(stage)
            begun = time.process_time()
            try:
                return own(*args, **kwargs)
            finally:
                seconds[stage] += time.process_time() - begun
                running.pop()

        return call

    with ExitStack() as stack:
        for stage, (module, name) in STAGES.items():
            own = getattr(sys.modules[module], name)
            stack.enter_context(mock.patch.object(sys.modules[module], name, counted(stage, own)))
        options: dict[str, Any] = {"calib": str(data), "target": target, "overwrite": True}
        options["bench"] = target.startswith("latency")
        result = onnxdecomp.compress(model, output, **options)
    record = result.record
    own, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    spent = sum(used.ru_utime + used.ru_stime for used in (own, children))
    return {
        "cpu": spent,
        "wall": time.perf_counter() - start,
        "peak_mb": own.ru_maxrss / 1024,
        **{stage: seconds[stage] for stage in STAGES},
        "macs": record["totals"]["macs"]["ratio"],
        "error": (record["verify"] or {}).get("rel_l2"),
    }


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: None if runs[0][key] is None else statistics.median(r[key] for r in runs) for key in runs[0]}


def _more_wrong(corpus: Corpus, model: str, file: Path) -> Mapping[str, Any]:
    """Of a classifier of the corpus, the accuracy lost on training images that were not fitted to."""
    if not model or "cifar10" not in model or "cifar10" not in HELD_OUT:
        return {"drop": None}
    before, after = corpus.paired(model, file, "held_out")
    return {"drop": float(before.mean() - after.mean())}


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("run", "target", "tree", "processor s", *STAGES, "wall s", "peak MB", "MACs", "error", "drop")
    return markdown(
        head,
        (
            (
                *(row["run"], row["target"], row["tree"], f"{row['cpu']:.1f}"),
                *(f"{row[stage]:.1f}" for stage in STAGES),
                *(f"{row['wall']:.0f}", f"{row['peak_mb']:.0f}", f"{row['macs']:.2f}x"),
                "–" if row["error"] is None else f"{row['error']:.4f}",
                "–" if row["drop"] is None else f"{100 * row['drop']:.2f}",
            )
            for row in rows
        ),
    )


if __name__ == "__main__":
    main()
