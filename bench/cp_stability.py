"""How much the CP of a kernel depends on its starting point, and how large its components are.

    python -m bench.cp_stability [--corpus FOLDER] [--seeds 20]

Per kernel and rank: the mean of the relative errors over the seeds, and their spread, largest minus smallest
over mean. The same from random starts in place of the method's own, which are slices' singular vectors with
some noise. The cancellation is the root sum of squares of the components' norms over the kernel's norm: at
most 1 for orthogonal components, without a bound for components that cancel each other; the largest over the
seeds, and that of plain alternating least squares without the error-preserving correction. The kernels are
seeded ones of 512x512x3x3 (Gaussian, and with falling spectra) and, with --corpus, the largest 3x3 kernels of
a VGG-16 of half width and of SqueezeNet 1.1, and the smallest of a ResNet-20: there a rank may be half of the
full one and the error small, and what remains of it depends more on the start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.decompose_speed import Case, weight_of
from bench.provenance import markdown, provenance, write
from onnxdecomp.core.layer import Array
from onnxdecomp.decompositions.cp import Cp, _perturbed, _start
from onnxdecomp.tensor.cp_als import alternate, as_double, distance, norm
from onnxdecomp.tensor.cp_stability import stabilise
from onnxdecomp.tensor.tenalg import cp_weights

LARGEST = ("cifar10/vgg16_half_cifar10.onnx", "imagenet/squeezenet1.1.onnx")
SMALLEST = ("cifar10/resnet20_cifar10.onnx",)
RANKS = (16, 64, 128)
SMALL_RANKS = (4, 8, 16, 32)


def kernels(corpus: Path | None) -> Iterator[tuple[str, Array, tuple[int, ...]]]:
    """Names, kernels [T, S, K] and ranks."""
    for spectrum in ("flat", "decaying"):
        case = Case("cp", (512, 512, 3, 3), RANKS[:1], spectrum)
        yield f"512x512x3x3, {spectrum}", weight_of(case).reshape(512, 512, 9), RANKS
    for model in (*LARGEST, *SMALLEST) if corpus else ():
        import onnx
        from onnx import numpy_helper

        assert corpus is not None
        tensors = [t for t in onnx.load(corpus / "models" / model).graph.initializer if len(t.dims) == 4]
        # The first layer sees the image's three channels only.
        spatial = [t for t in tensors if tuple(t.dims[2:]) == (3, 3) and t.dims[1] > 3]
        choose, ranks = (max, RANKS) if model in LARGEST else (min, SMALL_RANKS)
        kernel = numpy_helper.to_array(choose(spatial, key=lambda t: t.dims[0] * t.dims[1]))
        weight: Array = kernel.reshape(*kernel.shape[:2], -1).astype(np.float32)
        yield f"{Path(model).stem}, {'x'.join(map(str, kernel.shape))}", weight, ranks


def from_random(method: Cp, w: Array, rank: int, seed: int) -> list[Array]:
    """The method's fit from normal factors."""
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal((n, rank)) for n in w.shape]
    return stabilise(as_double(w), method._refined(w, start), method._sweeps(w, rank, correction=True))


def plain(method: Cp, w: Array, rank: int, seed: int) -> list[Array]:
    """Least squares alone, from the method's start."""
    start = _perturbed(_start(w, rank), np.random.default_rng(seed))
    return alternate(w, start, method.tolerance, 2 * method.max_sweeps)


def spread(w: Array, fit: Callable[[int], list[Array]], seeds: int) -> dict[str, float]:
    """What the seeds make of the kernel."""
    size, errors, cancellations = norm(w), [], []
    for seed in range(seeds):
        factors = fit(seed)
        errors.append(distance(w, factors) / size)
        cancellations.append(float(np.linalg.norm(cp_weights(factors))) / size)
    mean = float(np.mean(errors))
    return {
        "error": mean,
        "spread": (max(errors) - min(errors)) / mean,
        "cancellation": max(cancellations),
        "seeds": seeds,
    }


def main() -> None:
    """Measure and write bench/results/cp_stability.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, help="folder with models/")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    method, seeds = Cp(), options.seeds
    rows: list[dict[str, Any]] = []
    for name, w, ranks in kernels(options.corpus):
        for rank in ranks:
            ways: dict[str, Callable[[int], list[Array]]] = {
                "onnxdecomp": partial(method._fit, w, rank, w.size),
                "random": partial(from_random, method, w, rank),
                "als": partial(plain, method, w, rank),
            }
            found = {
                way: spread(w, fit, min(5, seeds) if way == "als" else seeds) for way, fit in ways.items()
            }
            rows.append({"kernel": name, "rank": rank, **found})
            print(rows[-1], file=sys.stderr, flush=True)
    head = ["kernel", "rank", "error", "spread", "error, random starts", "spread, random starts"]
    head += ["cancellation", "error, plain ALS", "cancellation, plain ALS"]
    table = markdown(head, map(_cells, rows))
    said = "The spread is that of all seeds, from the least to the largest, in place of an interval."
    write("cp_stability", {**provenance(), "rows": rows}, f"{table}\n\n{said}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    ours, random, als = row["onnxdecomp"], row["random"], row["als"]
    return [
        row["kernel"],
        str(row["rank"]),
        f"{ours['error']:.4f}",
        f"{ours['spread']:.2%}",
        f"{random['error']:.4f}",
        f"{random['spread']:.2%}",
        f"{ours['cancellation']:.2f}",
        f"{als['error']:.4f}",
        f"{als['cancellation']:.2f}",
    ]


if __name__ == "__main__":
    main()
