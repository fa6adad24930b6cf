"""How long Tucker at rank 0.5 takes and how much memory, against the straightforward TensorLy way.

    python -m bench.compress_speed [--models resnet18 resnet50 vgg16] [--repeats 3] [--threads 1]

The networks are ResNet-18, ResNet-50 and VGG-16 at their ImageNet shapes with seeded random weights and
BatchNormalization folded (models/shapes.py). Both ways load the same file, decompose the same layers at
the same ranks (those that onnxdecomp's plan chooses) and write an ONNX file:

- onnxdecomp: `compress(..., method="tucker", rank="0.5", verify=False, bench=False)`, with its default
  pipeline, so with the simplifier in a process of its own and the lowering check of every layer;
- TensorLy: bench/straightforward.py.

Every run is a fresh process; the two ways take turns; both have the same number of threads, one unless
told otherwise (with more, a busy machine disturbs linear algebra out of all proportion). Reported are

- medians of the job's wall time, after the imports, and of the process' wall time with them;
- the peak of the resident memory beyond the imports, from one more run: the process' own high-water mark
  as the kernel keeps it, or the sum over the process and its children where samples of that are higher.
  Of a child too only what is beyond its imports counts (what a process holds that has imported what the
  simplifier's does). That run is not timed, for sampling takes a share of a core;
- the relative error of all decomposed weights together, recomputed from the written file:
  sqrt(sum |What - W|^2 / sum |W|^2).
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import psutil

from bench.dense import weight_error
from bench.provenance import RESULTS, ROOT, markdown, provenance, write
from bench.tree_memory import TreeMemory
from models import shapes

BUILDERS: Mapping[str, Callable[[], ir.Model]] = {
    "resnet18": lambda: shapes.resnet18(batch_norm=False),
    "resnet50": lambda: shapes.resnet50(batch_norm=False),
    "vgg16": shapes.vgg16,
}
WAYS = ("onnxdecomp", "tensorly")
MOST_REPEATS = {"vgg16": 1}
"""Timed runs where one takes minutes."""
METHOD, RANK = "tucker", "0.5"


@dataclass(frozen=True)
class Run:
    """One job in a process of its own.

    Attributes:
        job_s: Seconds from the file to the written file, imports done before.
        process_s: Seconds from the start of the process to its end.
        imports_bytes: Resident memory after the imports.
        own_peak_bytes: Peak of the resident memory of the process beyond that.
        peak_bytes: The same of the process and its children together; None where not sampled.
    """

    job_s: float
    process_s: float
    imports_bytes: int
    own_peak_bytes: int
    peak_bytes: int | None


def ranks_of(path: Path) -> dict[str, tuple[int, ...]]:
    """The ranks of onnxdecomp's plan, by layer."""
    import onnxdecomp

    plan = onnxdecomp.inspect(path, method=METHOD, rank=RANK).plan
    return {choice.layer: choice.ranks for choice in plan.decomposed}


def measure(way: str, source: Path, target: Path, ranks: Path, *, threads: int, sample: bool) -> Run:
    """Run one job; with `sample`, watch the memory of its children too."""
    command = [sys.executable, "-m", "bench.compress_speed", "--job", way]
    command += [str(path) for path in (source, target, ranks)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), *filter(None, sys.path))),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
    sampled = TreeMemory(process.pid, _imports_of_a_child(environment)) if sample else None
    output, _ = process.communicate()
    elapsed = time.perf_counter() - start
    together = sampled.stop() if sampled else None
    if process.returncode:
        raise SystemExit(f"the {way} job on {source.name} failed with exit code {process.returncode}")
    said = json.loads(output.splitlines()[-1])
    imports, own = said["imports_bytes"], said["peak_bytes"]
    peak = None if together is None else max(together, own) - imports
    return Run(said["job_s"], elapsed, imports, own - imports, peak)


def _imports_of_a_child(environment: Mapping[str, str]) -> int:
    """Resident bytes of a process that has imported what the simplifier's process imports."""
    code = "import onnxruntime, onnxsim, psutil; print(psutil.Process().memory_info().rss)"
    said = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True)
    return int(said.stdout.split()[-1])


def job(way: str, source: Path, target: Path, ranks: Path) -> dict[str, float]:
    """The work of one process: import, compress, say what it took."""
    if way == "onnxdecomp":
        work = _onnxdecomp_job()
    else:
        import tensorly.decomposition  # noqa: F401

        from bench import straightforward

        chosen = {name: tuple(value) for name, value in json.loads(ranks.read_text()).items()}

        def work(source: Path, target: Path) -> None:
            straightforward.compress(source, target, chosen)

    imports = psutil.Process().memory_info().rss
    start = time.perf_counter()
    work(source, target)
    elapsed = time.perf_counter() - start
    return {"job_s": elapsed, "imports_bytes": imports, "peak_bytes": _high_water_mark()}


def _onnxdecomp_job() -> Callable[[Path, Path], None]:
    # What compress loads on first use is loaded here, as TensorLy is for the other way.
    import onnx.reference  # noqa: F401
    import onnxruntime  # noqa: F401
    import scipy.linalg  # noqa: F401

    import onnxdecomp
    from onnxdecomp.pipeline import installed
    from onnxdecomp.workflow import compress

    for info in installed.available().values():
        info.load()
    assert compress

    def work(source: Path, target: Path) -> None:
        onnxdecomp.compress(source, target, method=METHOD, rank=RANK, verify=False, bench=False)

    return work


def _high_water_mark() -> int:
    """Peak resident bytes of this process; 0 where the system does not say (the samples remain).

    VmHWM belongs to this process alone, while ru_maxrss starts from that of its parent.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def compare(name: str, folder: Path, *, repeats: int, threads: int) -> dict[str, Any]:
    """Both ways on one network, in turns."""
    source, ranks = folder / f"{name}.onnx", folder / f"{name}.json"
    shapes.save(BUILDERS[name](), source)
    ranks.write_text(json.dumps(ranks_of(source)))
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for turn in range(repeats + 1):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            target = folder / f"{name}.{way}.onnx"
            target.unlink(missing_ok=True)
            last = turn == repeats
            runs[way].append(measure(way, source, target, ranks, threads=threads, sample=last))
            print(f"{name} {turn + 1}/{repeats + 1} {way}: {runs[way][-1]}", file=sys.stderr, flush=True)
    layers = json.loads(ranks.read_text())
    size = source.stat().st_size
    ways = {}
    for way in WAYS:
        target = folder / f"{name}.{way}.onnx"
        *timed, sampled = runs[way]
        assert sampled.peak_bytes is not None
        ways[way] = {
            "job_s": statistics.median(run.job_s for run in timed),
            "process_s": statistics.median(run.process_s for run in timed),
            "peak_bytes": sampled.peak_bytes,
            "peak_over_model": sampled.peak_bytes / size,
            "rel_error": weight_error(source, target, layers),
            "bytes": target.stat().st_size,
            "runs": [asdict(run) for run in timed],
            "memory_run": asdict(sampled),
        }
        target.unlink()
    return {"model": name, "bytes": size, "layers": len(layers), "repeats": repeats, "ways": ways}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    head = (
        "network",
        "way",
        "job",
        "with imports",
        "faster",
        "peak memory",
        "of the model",
        "weight error",
    )
    rows = []
    for result in results:
        baseline = result["ways"]["tensorly"]
        for way in WAYS:
            found = result["ways"][way]
            rows.append(
                (
                    f"{result['model']}, {result['bytes'] / 1e6:.0f} MB",
                    way,
                    f"{found['job_s']:.2f} s",
                    f"{found['process_s']:.2f} s",
                    "" if found is baseline else _faster(baseline, found),
                    f"{found['peak_bytes'] / 1e6:.0f} MB",
                    f"{found['peak_over_model']:.2f}x",
                    f"{found['rel_error']:.5f}",
                )
            )
    said = "So few turns have no 95 % interval: in brackets are the least and the largest of their ratios."
    return f"{markdown(head, rows)}\n\n{said}"


def _faster(baseline: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How many times as fast, and how that differs between the turns."""
    ratios = [old["job_s"] / new["job_s"] for old, new in zip(baseline["runs"], found["runs"], strict=True)]
    spread = "one turn" if len(ratios) == 1 else f"{min(ratios):.1f} to {max(ratios):.1f}"
    return f"{baseline['job_s'] / found['job_s']:.1f}x ({spread})"


def main() -> None:
    """Measure and write bench/results/compress_speed.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each way; of VGG-16 one")
    parser.add_argument(
        "--job", nargs=4, metavar=("WAY", "SOURCE", "TARGET", "RANKS"), help=argparse.SUPPRESS
    )
    parser.add_argument("--threads", type=int, default=1, help="of the linear algebra, for both ways")
    options = parser.parse_args()
    if options.job:
        way, *paths = options.job
        print(json.dumps(job(way, *map(Path, paths))))
        return
    if min(options.repeats, options.threads) < 1:
        parser.error("--repeats and --threads must be 1 or more")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            repeats = min(options.repeats, MOST_REPEATS.get(name, options.repeats))
            found = compare(name, Path(folder), repeats=repeats, threads=options.threads)
        # Network by network, so that an hour's run that is cut short leaves what it has measured.
        results = {**_earlier(), name: {**provenance(), "threads": options.threads, **found}}
        ordered = [results[known] for known in BUILDERS if known in results]
        write("compress_speed", {"method": METHOD, "rank": RANK, "results": ordered}, table(ordered))


def _earlier() -> dict[str, Any]:
    """The results of earlier runs, by network; each says when and where it was measured."""
    file = RESULTS / "compress_speed.json"
    if not file.exists():
        return {}
    return {result["model"]: result for result in json.loads(file.read_text())["results"]}


if __name__ == "__main__":
    main()
