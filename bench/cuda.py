"""What decomposition is worth on a graphics card: one script of at most ten minutes.

    python -m bench.cuda [--provider cuda] [--seconds 540] [--only CASE …] [--work FOLDER] [--steps STEP …]
    python -m bench.cuda --work FOLDER --steps metrics    # anywhere: it takes no card
    python -m bench.cuda --provider cpu --small           # the same on the processor, with small networks

First the numbers: networks of the corpus, decomposed, run on the provider and on the processor, and their
outputs are compared. Then the kernels: the multiple of channels that products and convolutions work in, and a
hundred chains timed as branches of few sessions and each in its own. Then the cases. They are compressed for
the provider with the profile for deployment, in half precision where the provider has it (search); and both
models are timed in turns at the batch that was chosen for, and at others where the goal is no latency, at
the smallest on CUDA once more without CUDA graphs (time). Of networks of the corpus the task's metric is
measured on the processor (metrics). Each of these is a fresh process that gets its share of the time and is
ended after it ("not done"). Searches may run beside each other, by --only, in one folder; timings must not.
Where the time on a card is short, the plans of a search that has ended are carried out there (--plans).
The realised share is the gain in latency over the gain in MACs.

Weights of ResNet-50, VGG-16 and the encoder are random: their speed is what counts. Results are written to
bench/results/cuda.json and .md (with --small to standard output alone), with device, driver, versions and
date. Networks of the corpus that are not there (see bench/corpus.py) are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.corpus import Corpus, add_option
from bench.cuda_kernels import kernels
from bench.cuda_tables import table
from bench.provenance import RESULTS, ROOT, provenance, write
from models import encoder, shapes

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.runtime.setting import Setting

_SAMPLES = 500
"""Of the task's, by which a network's metric is measured."""

MARGIN = 5.0
"""Seconds that are kept for the end."""


@dataclass(frozen=True)
class Case:
    """A network, what is asked of it, and on how many rows.

    Attributes:
        name: Of the network.
        target: As `--target`.
        batch: Rows.
        others: Rows at which the model is timed besides.
        methods: As `--method`.
        corpus: Whether it lies in the corpus, with inputs.
        shapes: Of one row of the inputs, where the network leaves them free.
    """

    name: str
    target: str
    batch: int
    others: tuple[int, ...] = ()
    methods: str = "auto"
    corpus: bool = False
    shapes: Mapping[str, tuple[int, ...]] | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.target}, batch {self.batch}"


_WORDS = {"input_ids": (1, 128), "attention_mask": (1, 128)}
_IMAGE = {"input": (1, 1, 512, 512)}

CASES = (
    Case("vgg16_half_cifar10", "latency=1.8x", 256, corpus=True),
    Case("encoder", "macs=1.5x", 32, (1,), shapes=_WORDS),
    Case("vgg16", "macs=2x", 32, (1,), "width"),
    Case("resnet50", "macs=2x", 32, (1,), "width"),
    Case("dncnn_25", "latency=1.3x", 1, corpus=True, shapes=_IMAGE),
    Case("vdsr", "latency=1.3x", 1, corpus=True, shapes=_IMAGE),
)

SMALL = (
    Case("resnet50", "macs=1.2x", 2, (1,), "width"),
    Case("encoder", "macs=1.2x", 2, methods="svd", shapes=_WORDS),
)

_COMPARED = ("resnet20_cifar10", "vgg16_half_cifar10", "squeezenet1.1", "vdsr")


def networks(small: bool) -> Mapping[str, Callable[[Path], Path]]:
    """What writes a network with random weights."""
    size, width = (64, 0.25) if small else (224, 1.0)
    sizes = {"layers": 2, "width": 64, "vocabulary": 100} if small else {"layers": 12, "width": 768}
    made: dict[str, Callable[[], Any]] = {
        "resnet50": lambda: shapes.resnet50(batch_norm=False, size=size, width=width),
        "vgg16": lambda: shapes.vgg16(size=size, width=width),
        "encoder": lambda: encoder.encoder(**sizes),
    }
    return {name: partial(_saved, make) for name, make in made.items()}


def _saved(make: Callable[[], Any], path: Path) -> Path:
    return shapes.save(make(), path)


STEPS = ("numbers", "kernels", "search", "time", "metrics")


def main() -> None:
    """Measure, and write bench/results/cuda.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--small", action="store_true", help="small networks; nothing is written")
    parser.add_argument("--only", nargs="+", help="names of networks")
    parser.add_argument("--work", type=Path, help="folder for models and what was found; kept")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--plans", type=Path, help="folder of an earlier search: its plans are carried out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(json.loads(options.child), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    """Take all steps, and put together what is in the folder."""
    end = time.monotonic() + options.seconds - MARGIN
    cases = [case for case in (SMALL if options.small else CASES) if case.name in (options.only or case.name)]
    cases = [case for case in cases if not case.corpus or options.corpus.has(case.name)]
    todo: list[tuple[str, Case | None]] = []
    for step in options.steps:
        todo += [(step, None)] if step in ("numbers", "kernels") else [(step, case) for case in cases]
    for index, (step, case) in enumerate(todo):
        name = step if case is None else f"{case.name}.{step}"
        if case and step == "metrics" and not case.corpus:
            continue
        left = end - time.monotonic()
        share = min(left, max(90.0, left / (len(todo) - index)))
        start = time.monotonic()
        result = _ran(step, case, options.work, share) if left > 0 else {"failed": "no time was left"}
        result = {"seconds": round(time.monotonic() - start, 1), **result}
        (options.work / f"{name}.json").write_text(json.dumps(result, indent=1))
        print(name, json.dumps(result), file=sys.stderr, flush=True)
    found = [{"case": step, **_kept(options.work, step)} for step in ("numbers", "kernels")]
    for case in SMALL if options.small else CASES:
        steps = {step: _kept(options.work, f"{case.name}.{step}") for step in ("search", "time", "metrics")}
        if any(steps.values()):
            found.append({"case": case.title, **steps})
    if options.small:
        print(table(found))
    elif "time" in options.steps:
        card = {**provenance(), **_card(options.provider), "provider": options.provider}
        write("cuda", {**card, "cases": found}, table(found))
    elif "metrics" in options.steps:  # perhaps on another machine
        record = json.loads((RESULTS / "cuda.json").read_text())
        write("cuda", {**record, "cases": found}, table(found))


def _kept(folder: Path, name: str) -> dict[str, Any]:
    file = folder / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _ran(step: str, case: Case | None, work: Path, seconds: float) -> dict[str, Any]:
    """What a child found, or why it found nothing."""
    asked = json.dumps({"step": step, "case": case and case.name})
    line = [sys.executable, "-m", "bench.cuda", *sys.argv[1:], "--work", str(work), "--child", asked]
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {seconds:.0f} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return found


def _child(asked: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    if asked["step"] == "numbers":
        with tempfile.TemporaryDirectory() as folder:
            return _numbers(options, Path(folder))
    if asked["step"] == "kernels":
        return kernels(options.provider, options.small)
    case = next(case for case in (SMALL if options.small else CASES) if case.name == asked["case"])
    new = options.work / f"{case.name}.onnx"
    if asked["step"] == "search":
        return _searched(case, options, new)
    if asked["step"] == "time":
        return _timed(case, options, new)
    return dict(options.corpus.evaluate(case.name, new, most=_SAMPLES))


def _numbers(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The largest relative error of decomposed networks' outputs on the provider, against the processor's."""
    import onnxdecomp
    from onnxdecomp.runtime.messages import one_line
    from onnxdecomp.runtime.session import open_session, run

    found: dict[str, Any] = {}
    files = {"digits": ROOT / "models" / "digits.onnx"}
    if not options.small:
        corpus: Corpus = options.corpus
        files |= {name: corpus.model(name) for name in _COMPARED if corpus.has(name)}
    for name, file in files.items():
        new = folder / f"{name}.onnx"
        try:
            onnxdecomp.compress(file, new, rank="0.5", verify=False, bench=False)
            from onnxdecomp.latency.meter import timed_input

            feed = timed_input(new)[0]
            expected, got = (run(open_session(new, provider=on), feed) for on in ("cpu", options.provider))
            errors = []
            for a, b in zip(expected, got, strict=True):
                errors.append(float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-12))
            found[name] = max(errors)
        except Exception as error:  # one network must not cost the others
            found[name] = one_line(error)
    return found


def _original(case: Case, options: argparse.Namespace) -> Path:
    """The network of a case, made where it is not there."""
    if case.corpus:
        return Path(options.corpus.model(case.name))
    file: Path = options.work / f"{case.name}.original.onnx"
    return file if file.exists() else networks(options.small)[case.name](file)


def _setting(options: argparse.Namespace, batch: int) -> Setting:
    from onnxdecomp.runtime.providers import provider_of
    from onnxdecomp.runtime.setting import setting_of

    row = provider_of(options.provider)
    threads, precision = (0, "fp16") if row.on_cuda else (1, "")
    return setting_of(options.provider, threads, batch, precision, "deploy" if row.deploy else "default")


def _searched(case: Case, options: argparse.Namespace, new: Path) -> dict[str, Any]:
    """Compress the network for the setting; how long it takes, and what is done to it."""
    import onnxdecomp

    file, setting, calib = _original(case, options), _setting(options, case.batch), None
    if case.corpus:
        calib = {name: array[:256] for name, array in options.corpus.calibration(case.name).items()}
    given = options.plans and options.plans / f"{case.name}.plan.json"
    asked: dict[str, Any] = {"target": case.target, "method": case.methods}
    if given and given.exists():
        asked = {"plan": given}
    started = time.monotonic()
    done = onnxdecomp.compress(
        file,
        new,
        **asked,
        calib=calib,
        provider=setting.provider,
        profile=setting.profile,
        precision=setting.precision or None,
        batch=case.batch,
        input_shapes=case.shapes,
        simplify="onnxsim" if case.corpus else "none",
        verify=False,
        allow_slower=True,
        overwrite=True,
    )
    totals = done.record["totals"]["macs"]
    new.with_suffix(".record.json").write_text(json.dumps(done.record, indent=1))
    new.with_suffix(".plan.json").write_text(json.dumps(done.record["plan"], indent=1))
    return {
        "searched": "target" in asked,
        "took_s": round(time.monotonic() - started, 1),
        "cores": len(os.sched_getaffinity(0)),
        "macs": totals["before"] / totals["after"],
        "notes": list(done.notes),
        "cuts": len(done.plan.cuts),
        "chains": len(done.plan.decomposed),
    }


def _timed(case: Case, options: argparse.Namespace, new: Path) -> dict[str, Any]:
    """Both models in turns at each batch, at the smallest once more without CUDA graphs."""
    from onnxdecomp.latency.as_run import as_run
    from onnxdecomp.latency.meter import timed_input

    if not new.exists():
        return {"failed": "there is no model"}
    macs, batches = _kept(options.work, f"{case.name}.search")["macs"], []
    with tempfile.TemporaryDirectory() as folder:
        # Converted once, and not for each of the settings.
        files = [as_run(each, _setting(options, 1), Path(folder)) for each in (_original(case, options), new)]
        for batch in (case.batch, *case.others):
            setting = _setting(options, batch)
            data = timed_input(_original(case, options), shapes=case.shapes, batch=batch)
            settings = {"deploy": setting}
            if setting.graph and batch == min((case.batch, *case.others)):
                settings["without_graph"] = setting.without_graph
            found = {name: _compared(files, data, under, macs) for name, under in settings.items()}
            batches.append({"batch": batch, **found})
    return {"batches": batches}


def _compared(files: Sequence[Path], data: Feeds, setting: Setting, macs: float) -> dict[str, Any]:
    """The two models under a setting."""
    from onnxdecomp.evaluate.benchmark import bench_under
    from onnxdecomp.latency.as_run import as_run

    timed = bench_under(files, setting, data=data, duration=2.0, limit=8.0, memory=False, convert=as_run)
    ratio = timed.models[1].ratio
    assert ratio is not None
    return {
        "graph": timed.graph,
        "original_ms": timed.models[0].latency.p50,
        "new_ms": timed.models[1].latency.p50,
        "speedup": [1 / ratio.value, 1 / ratio.high, 1 / ratio.low],
        "nodes": [sum(model.nodes.values()) for model in timed.models],
        "realised": 1 / ratio.value / macs,
    }


def _card(provider: str) -> dict[str, Any]:
    """The card's name, and what its driver tells."""
    from onnxdecomp.runtime import environment

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        told = ""
    return {"card": {"name": environment.device(provider), "told": told}}


if __name__ == "__main__":
    main()
