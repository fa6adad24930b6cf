"""What the papers report about single layers, and what onnxdecomp makes of the same layers.

    python -m bench.literature [--corpus FOLDER]

Sizes follow from shapes and ranks alone, so they are compared number by number; `~` marks figures that
are quoted second-hand or read off a rounded table. Ranks by EVBMF need trained weights: those of
models/digits.onnx and, where FOLDER/models/cifar10/vgg16_half_cifar10.onnx exists, of a trained VGG-16 of
half width. Nobody's trained ImageNet weights are here, so accuracies of the papers are not reproduced.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.provenance import markdown, provenance, write
from onnxdecomp.core.layer import Array, ConvSpec, Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, outline, refusal_of
from onnxdecomp.decompositions.registry import get

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One published figure and ours.

    Attributes:
        job: The layer, the method and its ranks.
        quantity: What is counted.
        published: The paper's figure, "~" in front where second-hand or rounded.
        ours: Ours.
        source: The paper.
        note: Where ours differs and why; "" where it does not.
    """

    job: str
    quantity: str
    published: str
    ours: str
    source: str
    note: str = ""


def parameters(method: Decomposition, layer: Layer, ranks: Ranks) -> int:
    """Numbers in the factors and the bias of the chain, without fitting it."""
    return outline(method, layer, ranks).params


def linear(inputs: int, outputs: int, bias: bool) -> Layer:
    """A fully connected layer without memory for its weight."""
    zero = np.zeros((), np.float32)
    weight = np.broadcast_to(zero, (outputs, inputs))
    return Layer("fc", "Gemm", weight, np.broadcast_to(zero, (outputs,)) if bias else None)


def convolution(outputs: int, inputs: int, kernel: tuple[int, int]) -> Layer:
    """A convolution without a bias and without memory for its weight."""
    weight = np.broadcast_to(np.zeros((), np.float32), (outputs, inputs, *kernel))
    pads = tuple(k // 2 for k in kernel) * 2
    return Layer("conv", "Conv", weight, None, ConvSpec((1, 1), (1, 1), pads))


def tt_mnist() -> list[Row]:
    """The first layer of the MNIST network, 784 to 625, as a TT-matrix."""
    layer, shape = linear(784, 625, bias=True), "4x7x4x7:5x5x5x5"
    rows = []
    for rank, published in ((4, 1725), (16, 15585)):
        method = get("tt", shape=shape)
        ours = parameters(method, layer, (rank,) * 3)
        rows.append(
            Row(
                f"784x625, tt, modes (4,7,4,7)x(5,5,5,5), rank {rank}",
                "parameters with bias",
                f"{published:,}",
                f"{ours:,}",
                "layer of Novikov et al. 2015, arXiv:1509.06569, as in t3f's tutorial",
            )
        )
    return rows


def cp_small() -> list[Row]:
    """CP of small kernels, each spatial axis a mode of its own."""
    cases = (
        ("5x5 kernel, 3 to 2 channels", convolution(2, 3, (5, 5)), 2, 30, "(3 + 2 + 5 + 5) R"),
        ("VGG-19's first layer, 3x3", convolution(64, 3, (3, 3)), 16, 1168, "(64 + 3 + 3 + 3) R"),
    )
    rows = []
    for name, layer, rank, published, formula in cases:
        split = parameters(get("cp", split_kernel=True), layer, (rank,))
        whole = parameters(get("cp"), layer, (rank,))
        rows.append(
            Row(
                f"{name}, cp rank {rank}, kernel split per axis",
                "parameters",
                f"~{published:,}",
                f"{split:,}",
                "the formula of Lebedev et al. 2015, arXiv:1412.6553; the example second-hand",
                f"{formula}; with the kernel as one mode, our default, {whole:,}",
            )
        )
    return rows


VGG_MODES = "2x7x8x8x7x4:4x4x4x4x4x4"
"""Novikov et al. 2015 for the layer of 25,088 inputs and 4,096 outputs."""


def tt_vgg() -> list[Row]:
    """Table 2 of Novikov et al. 2015: compression of the first fully connected layer of VGG."""
    layer = linear(25088, 4096, bias=False)
    dense = layer.weight.size
    rows = []
    for rank, figure in ((1, "713,614"), (2, "194,622"), (4, "50,972")):
        method = get("tt", shape=VGG_MODES)
        ranks = tuple(min(rank, full) for full in method.full_ranks(layer))
        ours = parameters(method, layer, ranks)
        rows.append(
            Row(
                f"25088x4096, tt, modes {VGG_MODES}, rank {rank}",
                "compression of the layer",
                figure,
                f"{dense / ours:,.0f} ({ours:,} parameters)",
                "Novikov et al. 2015, table 2",
            )
        )
    for rank, figure in ((1, "3,521"), (5, "704"), (50, "70")):
        ours = parameters(get("svd"), layer, (rank,))
        rows.append(
            Row(
                f"25088x4096, svd, rank {rank} (the paper's matrix rank)",
                "compression of the layer",
                figure,
                f"{dense / ours:,.0f} ({ours:,} parameters)",
                "Novikov et al. 2015, table 2",
            )
        )
    return rows


def evbmf_ranks(path: Path, what: str) -> list[Row]:
    """Tucker-2 with EVBMF ranks on the convolutions of a trained model, all together."""
    from onnxdecomp.ranks.spec import choose, parse

    method, spec = get("tucker"), parse("evbmf")
    dense = small = left = 0
    described = []
    for layer in _convolutions(path):
        if refusal_of(method, layer) is not None:
            continue
        ranks = choose(method, layer, spec)
        size = int(layer.weight.size)
        dense += size
        if isinstance(ranks, str) or (ours := parameters(method, layer, ranks)) >= size:
            left += 1
            small += size
            continue
        small += ours
        described.append(f"{layer.weight.shape[0]}x{layer.weight.shape[1]} to {ranks[0]},{ranks[1]}")
    return [
        Row(
            f"{what}: tucker, ranks by EVBMF ({'; '.join(described)}; {left} left dense)",
            "compression of the convolutions",
            "~1.09 for all of VGG-16 with its dense layers, 4.93 in FLOPs",
            f"{dense / small:.2f}",
            "Kim et al. 2016",
            "other trained weights: the ranks belong to the weights, so only the procedure is the same",
        )
    ]


def _convolutions(path: Path) -> Iterable[Layer]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            weight: Array = numpy_helper.to_array(weights[node.input[1]])
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            d = weight.ndim - 2
            spec = ConvSpec((1,) * d, (1,) * d, (0,) * (2 * d), groups)
            yield Layer(node.name, "Conv", weight, None, spec)


def sizes() -> list[Row]:
    """All rows that follow from shapes alone."""
    return [*tt_mnist(), *cp_small(), *tt_vgg()]


def main() -> None:
    """Compare and write bench/results/literature.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, help="folder with models/cifar10/vgg16_half_cifar10.onnx")
    options = parser.parse_args()
    rows = [*sizes(), *evbmf_ranks(ROOT / "models" / "digits.onnx", "models/digits.onnx")]
    vgg = options.corpus / "models/cifar10/vgg16_half_cifar10.onnx" if options.corpus else None
    if vgg is not None and vgg.exists():
        rows += evbmf_ranks(vgg, "VGG-16 of half width, trained on CIFAR-10")
    head = ("job", "quantity", "published", "ours", "source", "note")
    table = markdown(head, [(r.job, r.quantity, r.published, r.ours, r.source, r.note) for r in rows])
    said = "All of these are counts of numbers: nothing is sampled, so there are no intervals."
    write("literature", {**provenance(), "rows": [asdict(row) for row in rows]}, f"{table}\n\n{said}")


if __name__ == "__main__":
    main()
