"""What decomposition is worth on a graphics card: one script of at most ten minutes.

    python -m bench.cuda [--provider cuda] [--seconds 540] [--only CASE …]
    python -m bench.cuda --provider cpu --small        # the same way on the processor, with small networks

First the numbers: networks of the corpus, decomposed, run on the provider and on the processor, and their
outputs are compared. Then the kernels: the multiple of channels that products and convolutions work in, and a
hundred chains timed as branches of few sessions and each in its own. Then the cases: each is a fresh process
that gets its share of the time and is ended after it ("not done"). It compresses for the provider with the
profile for deployment, in half precision where the provider has it, and times both models in turns at the
batch that was chosen for; on CUDA once more without CUDA graphs. Of networks of the corpus the task's metric
is measured on the processor, too. The realised share is the gain in latency over the gain in MACs.

Weights of ResNet-50, VGG-16 and the encoder are random: their speed is what counts. Results are written to
bench/results/cuda.json and .md (with --small to standard output alone), with device, driver, versions and
date. Networks of the corpus that are not there (see bench/corpus.py) are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.corpus import Corpus, add_option
from bench.provenance import ROOT, markdown, provenance, write
from models import encoder, shapes

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
        methods: As `--method`.
        corpus: Whether it lies in the corpus, with inputs.
        shapes: Of one row of the inputs, where the network leaves them free.
    """

    name: str
    target: str
    batch: int
    methods: str = "auto"
    corpus: bool = False
    shapes: Mapping[str, tuple[int, ...]] | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.target}, batch {self.batch}"


_WORDS = {"input_ids": (1, 128), "attention_mask": (1, 128)}
_IMAGE = {"input": (1, 1, 512, 512)}

CASES = (
    Case("resnet50", "macs=2x", 32, "width"),
    Case("vgg16", "macs=2x", 32, "width"),
    Case("encoder", "macs=1.5x", 32, shapes=_WORDS),
    Case("vgg16_half_cifar10", "latency=1.8x", 256, corpus=True),
    Case("vdsr", "latency=1.3x", 1, corpus=True, shapes=_IMAGE),
    Case("dncnn_25", "latency=1.3x", 1, corpus=True, shapes=_IMAGE),
    Case("encoder", "macs=1.5x", 1, shapes=_WORDS),
    Case("resnet50", "macs=2x", 1, "width"),
    Case("vgg16", "macs=2x", 1, "width"),
)

SMALL = (Case("resnet50", "macs=1.2x", 2, "width"), Case("encoder", "macs=1.2x", 2, "svd", shapes=_WORDS))

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


def main() -> None:
    """Measure, and write bench/results/cuda.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything")
    parser.add_argument("--small", action="store_true", help="small networks; nothing is written")
    parser.add_argument("--only", nargs="+", help="names of networks")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(json.loads(options.child), options)))
        return
    end = time.monotonic() + options.seconds - MARGIN
    cases = [case for case in (SMALL if options.small else CASES) if case.name in (options.only or case.name)]
    cases = [case for case in cases if not case.corpus or options.corpus.has(case.name)]
    work: list[tuple[str, dict[str, Any]]] = [("numbers", {"numbers": True}), ("kernels", {"kernels": True})]
    work += [(case.title, {"case": vars(case)}) for case in cases]
    found = []
    for index, (title, asked) in enumerate(work):
        left = end - time.monotonic()
        share = min(left, max(90.0, left / (len(work) - index)))
        start = time.monotonic()
        result = _ran(asked, share) if left > 0 else {"failed": "no time was left"}
        found.append({"case": title, "seconds": round(time.monotonic() - start, 1), **result})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    record = {**provenance(), **_card(options.provider), "provider": options.provider, "cases": found}
    if options.small:
        print(_table(found))
    else:
        write("cuda", record, _table(found))


def _ran(asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What a child found, or why it found nothing."""
    line = [sys.executable, "-m", "bench.cuda", *sys.argv[1:], "--child", json.dumps(asked)]
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
    with tempfile.TemporaryDirectory() as folder:
        if "numbers" in asked:
            return {"numbers": _numbers(options, Path(folder))}
        if "kernels" in asked:
            return {"kernels": _kernels(options)}
        return _measured(Case(**asked["case"]), options, Path(folder))


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


def _kernels(options: argparse.Namespace) -> dict[str, Any]:
    """The multiples that kernels work in, by precision; what many chains cost in few sessions and in many."""
    from onnxdecomp.core.layer import ConvSpec, Layer
    from onnxdecomp.decompositions.base import outline
    from onnxdecomp.decompositions.registry import get
    from onnxdecomp.latency import opened
    from onnxdecomp.latency.cache import where
    from onnxdecomp.latency.chain_model import chain_model, frame_model
    from onnxdecomp.latency.measure import typical_times
    from onnxdecomp.latency.quantum import measured_quanta
    from onnxdecomp.runtime.device import device_of
    from onnxdecomp.runtime.providers import provider_of
    from onnxdecomp.runtime.setting import setting_of

    row, found = provider_of(options.provider), dict[str, Any]()
    for precision in () if options.small else ("fp32", "tf32", "fp16"):
        if precision in row.precisions:
            under = setting_of(options.provider, 1, precision=precision)
            began = time.monotonic()
            multiples = measured_quanta(under.quick, under.converted or "float")
            found[precision] = {"multiples": multiples, "seconds": round(time.monotonic() - began, 1)}
    width, count = (32, 10) if options.small else (256, 100)
    spec = ConvSpec((1, 1), (1, 1), (1, 1, 1, 1))
    layer = Layer("conv", "Conv", np.zeros((width, width, 3, 3), np.float32), None, spec)
    shape = (8, width, 14, 14)
    ranks = np.linspace(width // count + 1, width - 1, count).round().astype(int)
    chains = [outline(get("svd"), layer, (int(rank),)) for rank in ranks]
    models = [frame_model(layer, shape), *(chain_model(chain, layer, shape) for chain in chains)]
    on = where(setting_of(options.provider, 1).quick)
    took, times = dict[str, float](), dict[str, Any]()
    for name, together in {"branches": lambda _: True, "sessions": lambda _: False}.items():
        began = time.monotonic()
        with mock.patch.object(opened, "together", together):
            runs = [run for run in opened.runnables(models, on) if not isinstance(run, str)]
        ms = typical_times(runs, 10.0, clock=device_of(on.setting).meter(on.setting))
        took[name], times[name] = round(time.monotonic() - began, 1), ms[1:] - ms[0]
    apart = np.abs(times["branches"] / times["sessions"] - 1)
    return {"multiples": found, "chains": count, "seconds": took, "apart": float(np.median(apart))}


def _measured(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One case: the search's time, and both models in turns under the setting, also without graphs."""
    import onnxdecomp
    from onnxdecomp.evaluate.benchmark import bench_under
    from onnxdecomp.latency.as_run import as_run
    from onnxdecomp.latency.meter import timed_input
    from onnxdecomp.runtime.providers import provider_of
    from onnxdecomp.runtime.setting import setting_of

    row = provider_of(options.provider)
    profile: Any = "deploy" if row.deploy else "default"
    precision = "fp16" if row.on_cuda else None
    calib = None
    if case.corpus:
        file = options.corpus.model(case.name)
        calib = {name: array[:256] for name, array in options.corpus.calibration(case.name).items()}
    else:
        file = networks(options.small)[case.name](folder / "net.onnx")
    new = folder / "new.onnx"
    started = time.monotonic()
    asked: dict[str, Any] = {"target": case.target, "method": case.methods, "calib": calib}
    asked |= {"provider": options.provider, "profile": profile, "precision": precision, "batch": case.batch}
    asked |= {"verify": False, "allow_slower": True, "simplify": "none", "input_shapes": case.shapes}
    done = onnxdecomp.compress(file, new, **asked)
    searched = time.monotonic() - started
    setting = setting_of(options.provider, 0 if row.on_cuda else 1, case.batch, precision or "", profile)
    data = timed_input(file, shapes=case.shapes, batch=case.batch)
    totals = done.record["totals"]["macs"]
    macs = totals["before"] / totals["after"]
    result: dict[str, Any] = {
        "search_s": round(searched, 1),
        "macs": macs,
        "notes": list(done.notes),
        "cuts": len(done.plan.cuts),
        "chains": len(done.plan.decomposed),
    }
    unrecorded = replace(setting, given=((row.graph, "0"),)) if row.graph else None
    for name, under in {"deploy": setting, "without_graph": unrecorded}.items():
        if under is None:
            continue
        timed = bench_under(
            [file, new], under, data=data, duration=3.0, limit=20.0, memory=False, convert=as_run
        )
        ratio = timed.models[1].ratio
        assert ratio is not None
        result[name] = {
            "graph": timed.graph,
            "original_ms": timed.models[0].latency.p50,
            "new_ms": timed.models[1].latency.p50,
            "speedup": [1 / ratio.value, 1 / ratio.high, 1 / ratio.low],
            "nodes": [sum(model.nodes.values()) for model in timed.models],
            "realised": 1 / ratio.value / macs,
        }
    if case.corpus:
        result["metric"] = options.corpus.evaluate(case.name, new, most=_SAMPLES)
    return result


def _card(provider: str) -> dict[str, Any]:
    """The device's name and its driver's version."""
    from onnxdecomp.runtime import environment

    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        told = ""
    return {"device": environment.device(provider), "card": told}


def _table(found: list[dict[str, Any]]) -> str:
    said = [_said(case["kernels"]) for case in found if "kernels" in case]
    head = ("case", "MACs", "speedup [95 %]", "realised", "without graphs", "search, s")
    rows = []
    for case in found:
        if "numbers" in case or "kernels" in case:
            continue
        if "failed" in case:
            rows.append((case["case"], "", case["failed"], "", "", ""))
            continue
        plain = case.get("without_graph")
        rows.append(
            (
                case["case"],
                f"{case['macs']:.2f}x",
                _speed(case["deploy"]),
                f"{case['deploy']['realised']:.2f}",
                "" if plain is None else _speed(plain),
                f"{case['search_s']:.0f}",
            )
        )
    return "\n\n".join((markdown(head, rows), *said))


def _said(kernels: Mapping[str, Any]) -> str:
    """A sentence on the kernels."""
    multiples = "; ".join(
        f"{precision}: " + ", ".join(f"{kind}s in multiples of {n}" for kind, n in own["multiples"].items())
        for precision, own in kernels["multiples"].items()
    )
    took = kernels["seconds"]
    return (
        f"{multiples or 'No multiples were measured'}. {kernels['chains']} chains took {took['branches']} s "
        f"as branches and {took['sessions']} s in sessions of their own; their times differ by "
        f"{kernels['apart']:.0%} in the median."
    )


def _speed(timed: Mapping[str, Any]) -> str:
    value, low, high = timed["speedup"]
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
