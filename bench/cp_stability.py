"""How much the CP of large kernels depends on its starting point, and how large its components are.

    python -m bench.cp_stability [--corpus FOLDER] [--seeds 20]

Per kernel: the relative error over the seeds (mean, and largest minus smallest over mean), and the largest
cancellation over the seeds, which is the root sum of squares of the components' norms over the kernel's
norm: at most 1 for orthogonal components, without a bound for components that cancel each other. The same
for plain alternating least squares from the same starts, without the error-preserving correction. The
kernels are seeded ones of 512x512x3x3 (Gaussian, and with falling spectra) and, with --corpus, the largest
3x3 kernels of a VGG-16 of half width and of SqueezeNet 1.1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.decompose_speed import Case, weight_of
from bench.provenance import markdown, provenance, write
from onnxdecomp.layer import Array
from onnxdecomp.methods.als import alternate, distance, intensities, norm
from onnxdecomp.methods.cp import Cp, _perturbed, _start

MODELS = ("cifar10/vgg16_half_cifar10.onnx", "imagenet/squeezenet1.1.onnx")
RANK = 64


def kernels(corpus: Path | None) -> Iterator[tuple[str, Array]]:
    """Names and kernels [T, S, K]."""
    for spectrum in ("flat", "decaying"):
        case = Case("cp", (512, 512, 3, 3), (RANK,), spectrum)
        yield f"512x512x3x3, {spectrum}", weight_of(case).reshape(512, 512, 9)
    for model in MODELS if corpus else ():
        import onnx
        from onnx import numpy_helper

        assert corpus is not None
        tensors = [t for t in onnx.load(corpus / "models" / model).graph.initializer if len(t.dims) == 4]
        spatial = [t for t in tensors if tuple(t.dims[2:]) == (3, 3)]
        largest = numpy_helper.to_array(max(spatial, key=lambda t: t.dims[0] * t.dims[1]))
        weight: Array = largest.reshape(*largest.shape[:2], -1).astype(np.float32)
        yield f"{Path(model).stem}, {'x'.join(map(str, largest.shape))}", weight


def spread(w: Array, fit: Callable[[int], list[Array]], seeds: int) -> dict[str, float]:
    """What the seeds make of the kernel."""
    size, errors, cancellations = norm(w), [], []
    for seed in range(seeds):
        factors = fit(seed)
        errors.append(distance(w, factors) / size)
        cancellations.append(float(np.linalg.norm(intensities(factors))) / size)
    mean = float(np.mean(errors))
    return {
        "error": mean,
        "spread": (max(errors) - min(errors)) / mean,
        "cancellation": max(cancellations),
    }


def main() -> None:
    """Measure and write bench/results/cp_stability.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, help="folder with models/")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    method = Cp()
    rows: list[dict[str, Any]] = []
    for name, w in kernels(options.corpus):

        def corrected(seed: int, w: Array = w) -> list[Array]:
            return method._fit(w, RANK, w.size, seed)

        def plain(seed: int, w: Array = w) -> list[Array]:
            return alternate(w, _perturbed(_start(w, RANK), seed), method.tolerance, 2 * method.max_sweeps)

        ours, als = spread(w, corrected, options.seeds), spread(w, plain, min(5, options.seeds))
        rows.append({"kernel": name, "rank": RANK, "onnxdecomp": ours, "als": als})
        print(rows[-1], file=sys.stderr, flush=True)
    head = ("kernel, rank", "error", "spread", "cancellation", "error, plain ALS", "cancellation, plain ALS")
    table = markdown(
        head,
        [
            (
                f"{row['kernel']}, {row['rank']}",
                f"{row['onnxdecomp']['error']:.4f}",
                f"{row['onnxdecomp']['spread']:.2%}",
                f"{row['onnxdecomp']['cancellation']:.2f}",
                f"{row['als']['error']:.4f}",
                f"{row['als']['cancellation']:.2f}",
            )
            for row in rows
        ],
    )
    write("cp_stability", {**provenance(), "seeds": options.seeds, "rows": rows}, table)


if __name__ == "__main__":
    main()
