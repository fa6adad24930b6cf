"""Joint methods: those that cut what passes between layers, so that no layer becomes a chain.

They are no `Decomposition`: their mathematics is in `fitting` (`select_units`, `rotate_heads`,
`rotate_scores`), and what they cut is found in the graph (`channels`). `shared`, which gives several layers
one first factor, does make chains and is a method like the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class JointMethod:
    """A way to cut a channel that layers make and others read.

    Attributes:
        name: What it is called in plans and on the command line.
        summary: What it does, a phrase.
        paper: Where it comes from.
        takes: The layers that it takes together.
    """

    name: str
    summary: str
    paper: str
    takes: tuple[str, ...]


WIDTH = JointMethod(
    "width",
    "fewer units between layers, those that read them fitted to the ones that stay",
    "Luo et al. 2017, arXiv:1707.06342; He et al. 2017, arXiv:1707.06168; Kurtic et al. 2023, "
    "arXiv:2302.04089; Lin et al. 2024, arXiv:2408.09632; Zhang and Yang 2026, arXiv:2602.05243",
    (
        "Conv into Conv or Gemm, depthwise ones between",
        "Gemm, MatMul into the like, gated too",
        "units of LSTM, GRU, RNN and what reads them",
    ),
)

ATTENTION = JointMethod(
    "attention",
    "smaller heads: values and outputs, queries and keys by maps of least loss",
    "Lin et al. 2024, arXiv:2408.09632; Zhang and Yang 2026, arXiv:2602.05243",
    ("projections of values and outputs", "projections of queries and keys"),
)

CUTS: Mapping[str, JointMethod] = {method.name: method for method in (WIDTH, ATTENTION)}
"""By name."""
