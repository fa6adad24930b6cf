"""One weight at a time against TensorLy and TensorLy-Torch: seconds, memory and error at the same ranks.

    python -m bench.decompose_speed [--threads 1 2] [--limit 60] [--only svd cp] [--torch-python PYTHON]

With --only the other rows of the result stay as they are.

The weights are seeded: Gaussian ("flat", the hardest for a truncation) or with the singular values of
every mode falling as those of trained weights do ("decaying"). Each side of each case runs in a process
of its own with the given number of threads; its clock starts when the weight is in memory and the
imports are done. Reported are

- wall seconds and CPU seconds of the decomposition (of all threads);
- the peak of the resident memory beyond what the process held before it, the weight and imports (Linux);
- the relative error |What - W| / |W|, from the factors.

TensorLy-Torch's factorized tensors are initialised from the same weight at its defaults. Its CP splits the
kernel into two modes, as Lebedev et al. 2015 do; it has no SVD and no tensor ring. PyTorch is pinned and
large, so it has an environment of its own, whose Python is named by --torch-python:

    python -m venv torch-env && torch-env/bin/pip install . torch==2.13.0 tensorly-torch opt_einsum

Without it that side is left out, and the JSON says why. T3F is not compared: it needs TensorFlow.

A side whose decomposition takes more CPU seconds than the limit is ended by the kernel and reported as
"> limit". The load of the machine before each run is kept in the JSON: wall times of a shared machine mean
little, CPU times more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.provenance import RESULTS, ROOT, markdown, provenance, write
from onnxdecomp.core.layer import Array, ConvSpec, Layer
from onnxdecomp.tensor.blas_threads import one_thread

SIDES = ("onnxdecomp", "tensorly", "tltorch")


@dataclass(frozen=True)
class Case:
    """A weight, a method and its ranks.

    Attributes:
        method: Registered name.
        shape: Of the weight.
        ranks: For the method; () takes the method's ranks at `fraction`.
        spectrum: "flat" or "decaying".
        fraction: Of the weight's parameters, where the ranks are not given.
    """

    method: str
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    spectrum: str
    fraction: float = 0.0

    @property
    def name(self) -> str:
        """As in the table and for --case."""
        ranks = ",".join(map(str, self.ranks)) or f"{self.fraction:g} of the parameters"
        return f"{self.method} {'x'.join(map(str, self.shape))} rank {ranks}, {self.spectrum}"


CASES = (
    Case("svd", (4096, 1024), (256,), "decaying"),
    Case("tucker", (512, 512, 3, 3), (256, 256), "decaying"),
    Case("tucker", (512, 512, 3, 3), (256, 256), "flat"),
    Case("cp", (512, 512, 3, 3), (128,), "decaying"),
    Case("cp", (512, 512, 3, 3), (256,), "decaying"),
    # TensorLy's tensor_ring takes no r0 r1 above the first mode.
    Case("tr", (512, 512, 3, 3), (16, 24, 24), "decaying"),
    Case("tt", (4096, 25088), (), "decaying", 0.01),
    Case("svd", (4096, 25088), (256,), "decaying"),
)


def weight_of(case: Case) -> Array:
    """The seeded weight in float32."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(case.shape, dtype=np.float32)
    if case.spectrum == "flat":
        return w
    flat = w.reshape(*case.shape[:2], -1)
    for axis in (0, 1):
        n = flat.shape[axis]
        scale = (np.arange(1, n + 1) ** -0.5).astype(np.float32)
        flat *= scale.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        for _ in range(3):  # reflections hide the order of the channels
            direction = rng.standard_normal(n, dtype=np.float32)
            v = np.asarray(direction / np.linalg.norm(direction))
            along = np.tensordot(v, flat, axes=(0, axis))
            flat -= 2 * np.expand_dims(along, axis) * v.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return flat.reshape(case.shape)


def layer_of(case: Case, weight: Array) -> Layer:
    """The weight as a convolution or a Gemm."""
    if weight.ndim == 2:
        return Layer("layer", "Gemm", weight)
    d = weight.ndim - 2
    return Layer("layer", "Conv", weight, None, ConvSpec((1,) * d, (1,) * d, (1,) * (2 * d)))


def ranks_of(case: Case, layer: Layer) -> tuple[int, ...]:
    """The given ranks or those of the fraction."""
    from onnxdecomp.decompositions.registry import get

    return case.ranks or get(case.method).fraction_ranks(layer, case.fraction)


def ours(case: Case, weight: Array) -> Callable[[], Callable[[], Array]]:
    """The decomposition to be timed; what it returns makes the approximation."""
    from onnxdecomp.decompositions.registry import get

    layer, method = layer_of(case, weight), get(case.method)
    ranks = ranks_of(case, layer)

    def run() -> Callable[[], Array]:
        with one_thread():
            factors = method.fit(layer, ranks)
        if case.method == "tt":  # sending the identity through the train would take minutes
            return lambda: _matrix_of_train(factors)
        return lambda: method.assemble(layer, factors).dense()

    return run


def _matrix_of_train(cores: Sequence[Array]) -> Array:
    """The matrix [Π j_k, Π i_k] of TT-matrix cores [r_{k-1}, i_k, j_k, r_k]."""
    product = np.ones((1, 1, 1), np.float32)  # outputs, inputs, bond
    for core in cores:
        product = np.einsum("tsr,rijq->tjsiq", product, core, optimize=True)
        t, j, s, i, q = product.shape
        product = product.reshape(t * j, s * i, q)
    return product[:, :, 0]


def theirs(case: Case, weight: Array) -> Callable[[], Callable[[], Array]]:
    """The same with TensorLy's own functions at their defaults, CP with our number of sweeps."""
    import tensorly as tl
    from tensorly import decomposition as td

    from onnxdecomp.decompositions.registry import get

    layer = layer_of(case, weight)
    ranks = ranks_of(case, layer)
    if case.method == "svd":

        def svd() -> Callable[[], Array]:
            u, s, v = tl.tenalg.svd_interface(weight, n_eigenvecs=ranks[0])
            return lambda: (u * s) @ v

        return svd
    if case.method == "tucker":

        def tucker() -> Callable[[], Array]:
            (core, factors), _ = td.partial_tucker(weight, rank=list(ranks), modes=[0, 1], init="svd")
            return lambda: np.asarray(tl.tenalg.multi_mode_dot(core, factors, modes=[0, 1]))

        return tucker
    if case.method == "cp":
        folded = weight.reshape(*weight.shape[:2], -1)

        def parafac() -> Callable[[], Array]:
            found = td.parafac(folded, ranks[0], n_iter_max=50, init="random", random_state=0, tol=1e-3)
            return lambda: np.asarray(tl.cp_to_tensor(found)).reshape(weight.shape)

        return parafac
    if case.method == "tt":
        modes: Sequence[tuple[int, int]] = get("tt").modes(layer)  # type: ignore[attr-defined]
        ins, outs = zip(*modes, strict=True)
        tensor = np.ascontiguousarray(weight).reshape(*outs, *ins)

        def tensor_train() -> Callable[[], Array]:
            found = td.tensor_train_matrix(tensor, [1, *ranks, 1])
            return lambda: np.asarray(found.to_tensor()).reshape(weight.shape)

        return tensor_train
    # Inputs, kernel, outputs, as the method has them.
    folded = np.ascontiguousarray(np.moveaxis(weight.reshape(*weight.shape[:2], -1), 0, 2))

    def tensor_ring() -> Callable[[], Array]:
        found = td.tensor_ring(folded, [*ranks, ranks[0]])
        return lambda: np.moveaxis(np.asarray(tl.tr_to_tensor(found)), 2, 0).reshape(weight.shape)

    return tensor_ring


def torch_side(case: Case, weight: Array) -> Callable[[], Callable[[], Array]]:
    """The same with TensorLy-Torch's factorized tensors."""
    import torch
    from tltorch.factorized_tensors import FactorizedTensor, TensorizedTensor

    from onnxdecomp.decompositions.registry import get

    layer = layer_of(case, weight)
    ranks = ranks_of(case, layer)
    tensor = torch.from_numpy(weight)
    if case.method == "tt":
        modes: Sequence[tuple[int, int]] = get("tt").modes(layer)  # type: ignore[attr-defined]
        ins, outs = zip(*modes, strict=True)

        def train() -> Callable[[], Array]:
            bonds = [1, *ranks, 1]
            found = TensorizedTensor.from_matrix(tensor, outs, ins, bonds, factorization="blocktt")
            return lambda: np.asarray(found.to_matrix().detach().numpy())

        return train
    kernel = weight.shape[2:]
    rank = (*ranks, *kernel) if case.method == "tucker" else ranks[0]

    def factorized() -> Callable[[], Array]:
        found = FactorizedTensor.from_tensor(tensor, rank, factorization=case.method)
        return lambda: np.asarray(found.to_tensor().detach().numpy())

    return factorized


RUNNERS = {"onnxdecomp": ours, "tensorly": theirs, "tltorch": torch_side}


def child(index: int, side: str, limit: float) -> None:
    """Run one side of one case in this process and print the result as JSON."""
    case = CASES[index]
    weight = weight_of(case)
    run = RUNNERS[side](case, weight)
    import scipy.linalg  # the imports are no part of the decomposition
    import tensorly  # noqa: F401

    scipy.linalg.eigh(np.eye(3))
    before = restart_peak()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wall, cpu = time.perf_counter(), time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu + limit), hard))
    dense = run()
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    result = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": status_bytes("VmHWM") - before,
    }
    total = lost = 0.0
    approximation = dense()
    for row, approximate in zip(weight, approximation, strict=True):
        total += float(np.sum(np.square(row, dtype=np.float64)))
        lost += float(np.sum(np.square(row - approximate, dtype=np.float64)))
    print(json.dumps({**result, "error": (lost / total) ** 0.5}))


def restart_peak() -> int:
    """Set the high-water mark of the resident memory to what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(key: str) -> int:
    """Bytes that the kernel gives for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measure(index: int, side: str, threads: int, limit: float, python: str | None) -> dict[str, Any]:
    """The result of one process of that interpreter, or {"limit_s": …}, {"failed": …} or {"skipped": …}."""
    if side == "tltorch" and CASES[index].method in ("svd", "tr"):
        return {"skipped": f"TensorLy-Torch has no factorization for {CASES[index].method}"}
    if not python:
        return {"skipped": "no --torch-python was given"}
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
    command = [
        python,
        "-m",
        "bench.decompose_speed",
        "--limit",
        str(limit),
        "--child",
        str(index),
        side,
    ]
    load = os.getloadavg()[0]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        return {"limit_s": limit, "load": load}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else "killed", "load": load}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "load": load}


def main() -> None:
    """Measure and write bench/results/decompose_speed.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the linear algebra")
    parser.add_argument("--limit", type=float, default=60, help="CPU seconds for one side of a case")
    parser.add_argument("--only", nargs="*", help="methods to run")
    parser.add_argument("--torch-python", metavar="PYTHON", help="an interpreter that has TensorLy-Torch")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1], options.limit)
        return
    from onnxdecomp.decompositions.registry import names

    pythons = dict.fromkeys(SIDES, sys.executable) | {"tltorch": options.torch_python}
    rows = _earlier() if options.only else {}
    for index, case in enumerate(CASES):
        if options.only and case.method not in options.only:
            continue
        if case.method not in names():
            print(f"skipped: {case.name}: no method {case.method!r} is registered", file=sys.stderr)
            continue
        for threads in options.threads:
            limits = threads, options.limit
            sides = {side: measure(index, side, *limits, python) for side, python in pythons.items()}
            row = {"case": case.name, "threads": threads, "limit_s": options.limit, **sides}
            print(_table([row]).splitlines()[-1], file=sys.stderr, flush=True)
            rows[case.name, threads] = row
            _keep(rows)


def _keep(rows: Mapping[tuple[str, int], dict[str, Any]]) -> None:
    """Write the result files."""
    order = [case.name for case in CASES]
    listed = [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]
    write("decompose_speed", {**provenance(), "rows": listed}, _table(listed))


def _earlier() -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of the result file, by case and threads."""
    path = RESULTS / "decompose_speed.json"
    known = {case.name for case in CASES}
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {(row["case"], row["threads"]): row for row in rows if row["case"] in known and "threads" in row}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["case", "threads"]
    for quantity in ("wall s", "CPU s", "peak MB", "error"):
        head += [f"{quantity}, {side}" for side in SIDES]
    lines = []
    for row in rows:
        line = [row["case"], str(row["threads"])]
        for key, form in (
            ("wall_s", "{:.1f}"),
            ("cpu_s", "{:.1f}"),
            ("peak_bytes", "{:.0f}"),
            ("error", "{:.5f}"),
        ):
            for side in SIDES:
                line.append(_cell(row[side], key, form))
        lines.append(line)
    said = "One run each, so there are no intervals; errors are those of one seeded weight."
    return f"{markdown(head, lines)}\n\n{said}"


def _cell(result: Mapping[str, Any], key: str, form: str) -> str:
    if "skipped" in result:
        return ""
    if "failed" in result:
        return f"failed: {result['failed']}" if key == "wall_s" else "–"
    if "limit_s" in result:
        return f"> {result['limit_s']:.0f}" if key == "cpu_s" else "–"
    return form.format(result[key] / 1e6 if key == "peak_bytes" else result[key])


if __name__ == "__main__":
    main()
