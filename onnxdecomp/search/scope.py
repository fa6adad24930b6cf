"""Scope: which layers a search looks at, and why it leaves others alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxdecomp.calibration.reachability import UNREACHED
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.patterns import names_of, of_layers, selected
from onnxdecomp.decompositions.base import Refusal
from onnxdecomp.decompositions.joint import CUTS
from onnxdecomp.decompositions.registry import get
from onnxdecomp.latency.quantum import Blocked
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tied_weights import Tie
from onnxdecomp.search.candidates import NOTHING_CHEAPER, QUICK, What
from onnxdecomp.search.finite_weights import unsound
from onnxdecomp.search.plan import Cost

_BLOCKS = 4
"""Blocks that a layer must have for its ranks to be whole ones."""


@dataclass(frozen=True)
class Scope:
    """Which layers are looked at, and with what.

    Attributes:
        methods: Names, or ("auto",).
        cuts: Joint methods that may cut channels.
        multiple: Ranks are multiples of it, and so are widths.
        measured: The multiples that the device's kernels were seen to work in, by their kind, where it was
            asked; see `multiple_of`.
        quantum: What the kernels work in that the result will run on; wide channels are multiples of it.
        what: The cost along which candidates are laid out.
        include, exclude: Shell patterns of layer names.
        options: The methods' options, by method.
        skip_below: Layers below this share of the average one in MACs and parameters are left alone.
        worse: See `candidates`.
        seed: Of methods that start at random.
    """

    methods: tuple[str, ...] = ("auto",)
    cuts: tuple[str, ...] = tuple(CUTS)
    multiple: int = 1
    measured: Mapping[Blocked, int] = field(default_factory=dict)
    quantum: int = 1
    what: What = "macs"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    skip_below: float = 0.1
    worse: float = 1.3
    seed: int = 0

    def of_layers(self, layers: Sequence[Layer]) -> Scope:
        """The same with its patterns told names from."""
        include, exclude = (of_layers(names, layers) for names in (self.include, self.exclude))
        return replace(self, include=include, exclude=exclude)

    def multiple_of(self, *layers: Layer) -> int:
        """What ranks of these layers are multiples of, and widths between them.

        Of what was measured the coarsest of the kernels that they would run in, 1x1 convolutions being
        products: so far as each layer has several blocks of it, for narrow layers have finer kernels.
        """
        kinds: list[Blocked] = ["product"]
        if any(math.prod(own.kernel) > 1 for own in layers):
            kinds.append("convolution")
        known = [self.measured[kind] for kind in kinds if kind in self.measured]
        if not known:
            return self.multiple
        narrow, block = min(min(own.inputs, own.outputs) for own in layers), max(known)
        while block > 1 and _BLOCKS * block > narrow:
            block //= 2
        return max(block, min(self.multiple, max(known)))

    def holds(self, layer: Layer) -> bool:
        """Whether the layer may be changed, by its name."""
        return selected(names_of(layer), self.include, self.exclude)


def reasons_to_stay(
    matched: Sequence[LayerMatch], dense: Sequence[Cost], idle: Sequence[bool], scope: Scope
) -> list[str]:
    """Why layers stay whatever the methods say, or ""; `idle` are those that no input reaches."""
    share = scope.skip_below / max(1, len(matched))
    few_macs = share * sum(cost.macs for cost in dense)
    few_params = share * sum(cost.params for cost in dense)
    reasons = []
    for match, cost, alone in zip(matched, dense, idle, strict=True):
        if not scope.holds(match.layer):
            reasons.append("excluded by name")
        elif cost.macs < few_macs and cost.params < few_params:
            reasons.append(
                f"too small: below {scope.skip_below:g} of the average layer in MACs and parameters"
            )
        else:
            reasons.append(unsound(match.layer.weight) or (UNREACHED if alone else ""))
    return reasons


def refusals(names: Sequence[str], match: LayerMatch) -> str:
    """Why no method has a candidate for a layer: none takes it, or no rank of those that do is of use."""
    tried = QUICK if tuple(names) == ("auto",) else names
    found = [get(name).specialise(match.layer) for name in tried]
    reasons = [answer.reason for answer in found if isinstance(answer, Refusal)]
    return "; ".join(dict.fromkeys(reasons)) if len(reasons) == len(found) else NOTHING_CHEAPER


def untouchable(
    matched: Sequence[LayerMatch], idle: Sequence[bool], found: Sequence[Tie], scope: Scope
) -> dict[int, str]:
    """The layers that no cut of a channel may change, by their places, with the reasons."""
    reasons = {}
    for place, (match, alone) in enumerate(zip(matched, idle, strict=True)):
        name = match.layer.name
        if not scope.holds(match.layer):
            reasons[place] = f"{name} is excluded by name"
        elif alone or unsound(match.layer.weight):
            reasons[place] = f"{name}: {unsound(match.layer.weight) or UNREACHED}"
    for tie in found:
        if tie.is_shared:
            names = {member: matched[member].layer.name for member in tie.members}
            reasons |= {member: f"something else reads the weight of {names[member]}" for member in names}
    return reasons
