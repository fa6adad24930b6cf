"""Every decomposition and helper that TensorLy has, too, against the one in use, on weights of real models.

    python -m bench.tensorly_methods [--corpus FOLDER] [--limit 15] [--only svd tt]

The weights are the largest of some models of the corpus (ONNXDECOMP_CORPUS) or, without one, those of
models/digits.onnx; noise at full ranks, where methods ought to be exact; and zeros.
Each way gets the same tensor and the same ranks and runs in a process of its own with one BLAS thread: CPU
seconds, the peak of the resident memory above what was there before, and |What - W| / |W|; of a CP also the
root sum of squares of its components' norms over |W|, large where they cancel each other. Imports are not
counted. A way that takes more CPU seconds than --limit is ended. Random starts are seeded; `parafac` has 100
sweeps and the tolerance 1e-4, the ring's alternation 50 and the same. Helpers: see bench/tensorly_helpers.py.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bench import tensorly_helpers
from bench.corpus import Corpus
from bench.decompose_speed import restart_peak, status_bytes
from bench.provenance import ROOT, markdown, provenance, write
from onnxdecomp.core.layer import Array, ConvSpec, Layer, Ranks, channels
from onnxdecomp.decompositions.base import Refusal
from onnxdecomp.decompositions.cp import _perturbed, _start
from onnxdecomp.decompositions.registry import get
from onnxdecomp.decompositions.tr import Tr
from onnxdecomp.decompositions.tt import Tt
from onnxdecomp.graph.load import load
from onnxdecomp.layers.find import find
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.tensor.tenalg import cp_weights
from onnxdecomp.tensor.tensorization import split

MODELS = (
    *("mlperf_resnet8", "meshnet_model20chan3cls", "charrnn_shakespeare", "mlperf_ad01"),
    *("squeezenet1.1", "vgg16_half_cifar10"),
)
FRACTIONS = (0.25, 0.5)
_LARGE = 100_000
"""Elements above which the first fraction alone is measured."""
_LEAST, _MOST = 4_000, 700_000
"""Elements of a weight that is taken."""


@dataclass(frozen=True)
class Made:
    """What a way has found.

    Attributes:
        dense: Makes the approximation, in the weight's shape.
        components: Of a CP: the factors [n_m, R].
    """

    dense: Callable[[], Array]
    components: Sequence[Array] = ()


Way: TypeAlias = Callable[[], Made]
"""What is timed."""

TAKEN = {
    "svd": "ours, the eigenvectors of the smaller Gram matrix: the error of `truncated_svd`, sooner "
    "the larger the matrix is. `symeig_svd` takes the larger Gram matrix; `randomized_svd` ends 1 to 3 "
    "% above.",
    "tucker": "our HOOI, with TensorLy's `mode_dot`. `partial_tucker` and `tucker` take whole SVDs: 1.4 "
    "to 8 times as long from 64 channels on, for an error that is at most 0.04 % smaller.",
    "cp": "our alternation and correction, with TensorLy's `khatri_rao`, `cp_to_tensor` and "
    "`cp_normalize`. `parafac` ends between 0.4 % below and 19 % above our error, sooner on small "
    "weights, later on large ones. From its own starts the components have 2 to 8 times the norms of "
    "ours, since they cancel each other; only from our start is it exact at full ranks; of zeros its "
    "equations are singular. `randomised_parafac` ends 24 to 88 % above.",
    "tt": "TensorLy's `tensor_train`, given our truncation in place of whole SVDs: the same error, of"
    " the largest weight in a fifth of the time, of small ones some milliseconds later. "
    "`randomized_svd` ends up to 2.4 % above.",
    "tt matrix": "TensorLy's `tensor_train` in the same way; `tensor_train_matrix` is that, and has no "
    "kernel.",
    "tr": "our starts by TR-SVD and alternation. `tensor_ring` refuses r_0 r_1 above its first "
    "unfolding; else its error is a fifth to three fifths larger. `tensor_ring_als` takes no start: "
    "from a random one it ends between 1.1 % below and 3.3 % above our error; its normal equations are "
    "not exact at full ranks and singular for zeros, and `lstsq` takes up to 6 times as long. "
    "`tensor_ring_als_sampled` ends 16 to 78 % above.",
}
"""What the product uses of a method, and why."""


def weights(corpus: Path | None) -> Iterator[tuple[str, Layer, Sequence[float]]]:
    """The largest convolution and the largest matrix of each model, noise and zeros; and which fractions."""
    files = {"digits": ROOT / "models" / "digits.onnx"}
    if corpus is not None:
        files = {name: Corpus(corpus).model(name) for name in MODELS}
    for name, file in files.items():
        matched, _ = find(load(file))
        layers = sorted((s.layer for s in matched), key=lambda layer: -layer.weight.size)
        layers = [
            one
            for one in layers
            if _LEAST <= one.weight.size <= _MOST and one.groups == 1 and min(channels(one)) > 1
        ]
        convolution = [one for one in layers if one.conv is not None and not one.is_matrix]
        linear = [one for one in layers if one.conv is None and not one.is_stack]
        for layer in (*convolution[:1], *linear[:1]):
            few = FRACTIONS[:1] if layer.weight.size > _LARGE else FRACTIONS
            yield f"{name} {'x'.join(map(str, layer.weight.shape))}", layer, few
    plain = ConvSpec((1, 1), (1, 1), (0, 0, 0, 0))
    noise = np.random.default_rng(0).standard_normal((16, 12, 3, 3), dtype=np.float32)
    yield "noise 16x12x3x3, full ranks", Layer("noise", "Conv", noise, None, plain), (1.0,)
    yield "zeros 16x12x3x3", Layer("zeros", "Conv", np.zeros_like(noise), None, plain), (0.25,)


def ways_of(method: str, layer: Layer, ranks: Ranks) -> dict[str, Way]:
    """Ours and TensorLy's of one method."""
    decomposition = get("tt" if method == "tt matrix" else method)

    def ours() -> Made:
        with one_thread():
            factors = decomposition.fit(layer, ranks)
        components: list[Array] = []
        if method == "cp":
            first, depthwise, last = factors
            rank = len(first)
            components = [last.reshape(-1, rank), first.reshape(rank, -1).T, depthwise.reshape(rank, -1).T]
        return Made(lambda: decomposition.assemble(layer, factors).dense(), components)

    return {"ours": ours, **_THEIRS[method](layer, ranks)}


def _svd(layer: Layer, ranks: Ranks) -> dict[str, Way]:
    from tensorly.tenalg import svd_interface

    def way(kind: str) -> Way:
        def run() -> Made:
            u, s, v = svd_interface(layer.weight, n_eigenvecs=ranks[0], method=kind, random_state=0)
            return Made(lambda: np.asarray((u * s) @ v))

        return run

    return {kind: way(kind) for kind in ("truncated_svd", "symeig_svd", "randomized_svd")}


def _tucker(layer: Layer, ranks: Ranks) -> dict[str, Way]:
    import tensorly as tl
    from tensorly.decomposition import partial_tucker, tucker

    w = layer.weight.reshape(*layer.weight.shape[:2], -1)

    def partial() -> Made:
        (core, factors), _ = partial_tucker(w, list(ranks), modes=[0, 1])
        product = tl.tenalg.multi_mode_dot
        return Made(lambda: np.asarray(product(core, factors, modes=[0, 1])).reshape(layer.weight.shape))

    def whole() -> Made:
        found = tucker(w, [*ranks, w.shape[2]])
        return Made(lambda: np.asarray(found.to_tensor()).reshape(layer.weight.shape))

    return {"partial_tucker": partial, "tucker": whole}


def _cp(layer: Layer, ranks: Ranks) -> dict[str, Way]:
    from tensorly.decomposition import parafac, randomised_parafac

    w, (rank,) = layer.weight.reshape(*layer.weight.shape[:2], -1), ranks

    def made(found: Any) -> Made:
        scaled = [found.factors[0] * found.weights, *found.factors[1:]]
        return Made(lambda: np.asarray(found.to_tensor()).reshape(layer.weight.shape), scaled)

    def way(**options: Any) -> Way:
        return lambda: made(parafac(w, rank, n_iter_max=100, tol=1e-4, random_state=0, **options))

    def from_our_start() -> Made:
        start = [f.astype(w.dtype) for f in _perturbed(_start(w, rank), np.random.default_rng(0))]
        return made(parafac(w, rank, init=(None, start), n_iter_max=100, tol=1e-4))

    def sampled() -> Made:
        return made(randomised_parafac(w, rank, 10 * rank, n_iter_max=100, tol=1e-4, random_state=0))

    return {
        "parafac svd": way(),
        "parafac svd normalised": way(normalize_factors=True),
        "parafac random": way(init="random"),
        "parafac random linesearch": way(init="random", linesearch=True),
        "parafac, our start": from_our_start,
        "randomised_parafac": sampled,
    }


def _tt(layer: Layer, ranks: Ranks) -> dict[str, Way]:
    from tensorly.decomposition import tensor_train

    w = np.moveaxis(layer.weight.reshape(*layer.weight.shape[:2], -1), 0, 2)

    def way(kind: str) -> Way:
        def run() -> Made:
            found = tensor_train(w, [1, *ranks, 1], svd=kind, random_state=0)
            return Made(lambda: np.moveaxis(np.asarray(found.to_tensor()), 2, 0).reshape(layer.weight.shape))

        return run

    return {f"tensor_train {kind}": way(kind) for kind in ("truncated_svd", "randomized_svd")}


def _tt_matrix(layer: Layer, ranks: Ranks) -> dict[str, Way]:
    from tensorly.decomposition import tensor_train_matrix

    ins, outs = zip(*Tt().modes(layer), strict=True)
    (t, s), (outputs, inputs) = layer.weight.shape, (math.prod(outs), math.prod(ins))
    w = np.pad(layer.weight, ((0, outputs - t), (0, inputs - s))).T.reshape(*ins, *outs)

    def run() -> Made:
        found = tensor_train_matrix(w, [1, *ranks, 1])
        return Made(lambda: np.asarray(found.to_matrix()).T[:t, :s])

    return {"tensor_train_matrix": run}


def _tr(layer: Layer, ranks: Ranks) -> dict[str, Way]:
    import tensorly as tl
    from tensorly.decomposition import tensor_ring, tensor_ring_als, tensor_ring_als_sampled

    (x,) = split(layer, Tr()._sides(layer))
    x = np.ascontiguousarray(x)
    around = [*ranks, ranks[0]]

    def made(cores: Any) -> Made:
        ring = np.asarray(tl.tr_to_tensor(list(cores)))
        return Made(lambda: np.moveaxis(ring, -1, 0).reshape(layer.weight.shape))

    def from_every_mode() -> Made:
        found: list[tuple[float, Any]] = []
        for mode in range(x.ndim):
            try:
                ring = tensor_ring(x, around, mode=mode)
            except ValueError:  # r_m r_{m+1} is more than the unfolding has
                continue
            found.append((float(np.linalg.norm(tl.tr_to_tensor(ring) - x)), ring))
        if not found:
            raise ValueError("no mode of the tensor takes these ranks")
        return made(min(found, key=lambda pair: pair[0])[1])

    def als(solve: str) -> Way:
        return lambda: made(tensor_ring_als(x, around, solve, n_iter_max=50, tol=1e-4, random_state=0))

    def sampled() -> Made:
        samples = 10 * max(a * b for a, b in itertools.pairwise(around))
        return made(tensor_ring_als_sampled(x, around, samples, n_iter_max=50, tol=1e-4, random_state=0))

    return {
        "tensor_ring, best mode": from_every_mode,
        "tensor_ring_als lstsq": als("lstsq"),
        "tensor_ring_als normal_eq": als("normal_eq"),
        "tensor_ring_als_sampled": sampled,
    }


_THEIRS: Mapping[str, Callable[[Layer, Ranks], dict[str, Way]]] = {
    "svd": _svd,
    "tucker": _tucker,
    "cp": _cp,
    "tt": _tt,
    "tt matrix": _tt_matrix,
    "tr": _tr,
}
_LINEAR = ("svd", "tt matrix")


def measured(way: Way, weight: Array, limit: float) -> dict[str, Any]:
    """The result of a process that runs it, {"limit_s": …} or {"failed": …}."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(way, weight, limit, there))
    process.start()
    there.close()
    try:
        result: dict[str, Any] = here.recv()
    except EOFError:
        result = {"limit_s": limit}
    process.join()
    if process.exitcode not in (0, -signal.SIGXCPU):
        return {"failed": f"exit {process.exitcode}"}
    return result


def _child(way: Way, weight: Array, limit: float, result: Connection) -> None:
    warnings.simplefilter("ignore")  # a rank above that of an unfolding
    before, started = restart_peak(), time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(started + limit), resource.RLIM_INFINITY))
    try:
        made = way()
    except (np.linalg.LinAlgError, ValueError) as failure:
        result.send({"failed": f"{type(failure).__name__}: {failure}".splitlines()[0]})
        return
    seconds, peak = time.process_time() - started, status_bytes("VmHWM") - before
    size = float(np.linalg.norm(weight)) or 1.0
    found = {"cpu_s": seconds, "peak_bytes": max(0, peak)}
    found["error"] = float(np.linalg.norm(made.dense() - weight)) / size
    if made.components:
        found["components"] = float(np.linalg.norm(cp_weights(made.components))) / size
    result.send(found)


def method_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each weight, method and fraction."""
    rows = []
    for name, layer, fractions in weights(options.corpus):
        for method in _THEIRS:
            if (layer.conv is None) != (method in _LINEAR) or (options.only and method not in options.only):
                continue
            decomposition = get("tt" if method == "tt matrix" else method)
            found = decomposition.specialise(layer)
            if isinstance(found, Refusal) or found.name != decomposition.name:
                continue
            for fraction in fractions:
                ranks = decomposition.fraction_ranks(layer, fraction)
                sides = {
                    way: measured(run, layer.weight, options.limit)
                    for way, run in ways_of(method, layer, ranks).items()
                }
                load = round(os.getloadavg()[0], 1)
                rows.append({"weight": name, "method": method, "ranks": ranks, "load": load, "ways": sides})
                print(_method_table(rows[-1:]).split("\n", 2)[2], file=sys.stderr, flush=True)
    return rows


def _method_table(rows: list[dict[str, Any]]) -> str:
    head = ("weight", "method", "ranks", "way", "error", "CPU s", "peak MB", "components")
    cells = []
    for row in rows:
        for way, found in row["ways"].items():
            ranks = ",".join(map(str, row["ranks"]))
            if "error" in found:
                megabytes = found["peak_bytes"] / 1e6
                components = f"{found['components']:.2f}" if "components" in found else ""
                numbers = [f"{found['error']:.5f}", f"{found['cpu_s']:.3f}", f"{megabytes:.0f}", components]
            else:
                why = "failed" if "failed" in found else f"> {found['limit_s']:g} CPU s"
                numbers = [why, "–", "–", ""]
            cells.append([row["weight"], row["method"], ranks, way, *numbers])
    return markdown(head, cells)


def _reasons(taken: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {why}" for name, why in taken.items())


def main() -> None:
    """Measure and write bench/results/tensorly_methods.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    there = os.environ.get("ONNXDECOMP_CORPUS")
    parser.add_argument("--corpus", type=Path, default=Path(there) if there else None)
    parser.add_argument("--limit", type=float, default=15, help="CPU seconds for one way")
    parser.add_argument("--only", nargs="*", help="methods to run")
    options = parser.parse_args()
    import scipy.linalg
    import tensorly  # noqa: F401

    scipy.linalg.eigh(np.eye(3))  # what is loaded here is no part of what is measured
    with one_thread():
        methods, helpers = method_rows(options), tensorly_helpers.rows()
    text = [
        _method_table(methods),
        _reasons(TAKEN),
        tensorly_helpers.table(helpers),
        _reasons(tensorly_helpers.TAKEN),
    ]
    result = {
        **provenance(),
        "limit_s": options.limit,
        "methods": methods,
        "taken": TAKEN,
        "helpers": helpers,
        "helpers_taken": tensorly_helpers.TAKEN,
    }
    write("tensorly_methods", result, "\n\n".join(text))


if __name__ == "__main__":
    main()
