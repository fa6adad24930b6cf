"""What may be said of a plan: how far to go, by which methods, in which layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from onnxdecomp.core.options import option

Saving: TypeAlias = Literal["macs", "params", "both", "either", "none"]
Objective: TypeAlias = Literal["latency", "macs", "size"]

NO_METHOD = "none"
"""In place of a method: no layer gets any."""

DEFAULT_TARGET = "error=0.05"
"""What is reached where neither ranks nor a target are given."""


@dataclass(frozen=True)
class PlanOptions:
    """The options of a pass that plans: those of the command line and of a pipeline's file."""

    target: str = option(
        "",
        "What to reach; the ranks are searched for: macs=2x | params=4x | size=3x | latency=1.5x | "
        "error=0.05 (of the output) | drop=0.01 (of the accuracy on --eval, or of --metric) | metric>=0.8 | "
        "disagreement=0.05; several with commas",
        group="goal",
        metavar="BUDGET",
        otherwise=f"the fastest within {DEFAULT_TARGET}, or by what outputs seem (docs/guides/metrics.md)",
        places=(("decompose", "target"),),
    )
    objective: Objective = option(
        "latency",
        "What is least where the target limits a loss: latency, or, with nothing timed, MACs or the bytes of "
        "the file",
        group="goal",
        places=(("decompose", "objective"),),
    )
    rank: str = option(
        "",
        "In place of a target, ranks: 16 | 16,32 | 0.5 (of full) | energy=0.95 | error=0.05 (of the weight) "
        "| evbmf; of width and attention the units that stay: 64 | 0.5",
        group="goal",
        metavar="SPEC",
        places=(("decompose", "rank"),),
    )
    layers: tuple[str, ...] = option(
        (),
        "Other ways for some layers: PATTERN=METHOD[:rank=SPEC][:option=value] or PATTERN=keep. Repeatable; "
        "the first that fits wins",
        group="goal",
        flag="--layer",
        metavar="RULE",
        places=(("decompose", "layers"),),
    )
    method: str = option(
        "auto",
        "Decomposition; see 'onnxdecomp methods'. Several with commas: with --rank a layer gets the first "
        "that fits, else the best. auto: the best of all (with --rank: tucker). width and attention cut "
        "channels between layers. none: nothing is decomposed, only quantized",
        group="methods",
        metavar="NAME",
        places=(("decompose", "method"),),
    )
    options: Mapping[str, Mapping[str, object]] = option(
        {},
        "A table of options for each method; on the command line --METHOD-OPTION",
        group="methods",
        flag=None,
        places=(("decompose", "options"),),
    )
    rank_multiple: str = option(
        "",
        "Round ranks and widths to multiples of N; auto: of what the provider's kernels block by, as widths "
        "of four such blocks and more always are where no N is given",
        group="methods",
        metavar="N|auto",
        otherwise="auto where latency counts, else 1",
        places=(("decompose", "rank_multiple"),),
    )
    include: tuple[str, ...] = option(
        (),
        "Only layers of that name, or whose name matches, such as 'conv3*'; repeatable",
        group="methods",
        metavar="PATTERN",
        places=(("decompose", "include"),),
    )
    exclude: tuple[str, ...] = option(
        (),
        "No layer of that name, or whose name matches; repeatable",
        group="methods",
        metavar="PATTERN",
        places=(("decompose", "exclude"),),
    )
    must_save: Saving = option(
        "macs",
        "What a chain must need less of than its layer, or the layer stays. 'none' decomposes every layer at "
        "any rank, full ranks (--rank 1.0) included",
        group="methods",
        places=(("decompose", "must_save"),),
    )
    skip_below: float = option(
        0.1,
        "A layer stays if both its MACs and its parameters are below this share of the average",
        group="methods",
        metavar="SHARE",
        at_least=0,
        places=(("decompose", "skip_below"),),
    )
    freeze_initializers: bool = option(
        False,
        "Make initializers that are also graph inputs constants: they are no inputs any more",
        group="methods",
        places=(("decompose", "freeze_initializers"), ("normalise", "freeze_initializers")),
    )
    repair: bool = option(
        True,
        "Give layers that are kept (and not excluded) numbers that make up for what those before them have "
        "lost; with --calib",
        group="methods",
        flag="--repair/--no-repair",
        places=(("decompose", "repair"),),
    )
    requantize: bool = option(
        False,
        "Store the factors of quantized weights as int8 again, or as MatMulNBits",
        group="methods",
        places=(("decompose", "requantize"),),
    )
    mask: str = option(
        "",
        "Input that is 0 where a position is padding, which counts neither in fits nor in errors. Several "
        "with commas; none: no input is",
        group="data",
        metavar="NAME",
        otherwise="attention_mask, input_mask and their like",
        places=(("decompose", "mask"),),
    )
    seed: int = option(
        0, "Of all randomness", group="runtime", metavar="N", at_least=0, places=(("decompose", "seed"),)
    )

    @property
    def idle(self) -> bool:
        """Whether nothing is to be decomposed."""
        return self.method == NO_METHOD

    @property
    def searches(self) -> bool:
        """Whether ranks are found for a target, and not given."""
        return not (self.rank or self.layers or self.idle)

    @property
    def goal(self) -> str:
        """The target, or what it is where none is named."""
        return self.target or DEFAULT_TARGET
