"""Plan and Choice: the decision for every layer, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxdecomp.core.chain import Chain, with_lookup
from onnxdecomp.core.layer import Dim, Layer
from onnxdecomp.errors import UsageError


@dataclass(frozen=True)
class Cost:
    """Numbers stored, and multiply-accumulates for one input at the layer's (assumed) shape."""

    params: int
    macs: int


@dataclass(frozen=True)
class Choice:
    """What happens to one operator.

    Attributes:
        layer, graph, op_type: The operator (see Layer).
        method: The method that takes it, or None where it stays as it is.
        options: The method's options, by name.
        ranks: The ranks, in the method's order.
        reason: Why it stays, a phrase for people; empty where it is decomposed.
        before: The dense operator's cost; None for an operator whose weight could not be read.
        after: The chain's cost, also where that is the reason to stay.
        weight: The canonical weight's shape (see Layer); () where it could not be read.
        input: The activation's shape as far as it is known, or None.
        fixed: It was asked to stay: its numbers are not repaired either.
        sized: The size of the activation is known (see Layer), and so are MACs: else they are a guess.
    """

    layer: str
    graph: str
    op_type: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    reason: str = ""
    before: Cost | None = None
    after: Cost | None = None
    weight: tuple[int, ...] = ()
    input: tuple[Dim, ...] | None = None
    fixed: bool = False
    sized: bool = True


@dataclass(frozen=True)
class Plan:
    """One choice per operator that carries a weight, in graph order.

    Attributes:
        choices: The choices.
        repair: Whether layers that are kept get other numbers, and BatchNormalization other statistics,
            where layers before them have changed what they see and calibration inputs show it.
    """

    choices: tuple[Choice, ...]
    repair: bool = True

    @property
    def decomposed(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.method is not None)

    def to_json(self) -> dict[str, Any]:
        choices = [asdict(choice) for choice in self.choices]
        return {"version": 1, "repair": self.repair, "choices": choices}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            UsageError: The value is no plan of a version that this release reads.
        """
        if value.get("version") != 1 or not isinstance(value.get("choices"), list):
            raise UsageError("this is no onnxdecomp plan of version 1")
        try:
            choices = tuple(_choice(entry) for entry in value["choices"])
            return Plan(choices, repair=bool(value.get("repair", False)))
        except KeyError as error:
            raise UsageError(f"the plan is damaged: a choice lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"the plan is damaged: {error}") from error


def _choice(entry: Mapping[str, Any]) -> Choice:
    def cost(value: Mapping[str, Any] | None) -> Cost | None:
        return None if value is None else Cost(int(value["params"]), int(value["macs"]))

    method, ranks = entry["method"], entry["ranks"]
    if method is not None and not isinstance(method, str):
        raise ValueError(f"layer {entry['layer']!r}: {method!r} is no name of a method")
    if not isinstance(ranks, list | tuple):
        raise ValueError(f"layer {entry['layer']!r}: {ranks!r} is no list of ranks")
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise ValueError(f"layer {entry['layer']!r}: the rank {rank!r} is no whole number")
    return Choice(
        layer=str(entry["layer"]),
        graph=str(entry["graph"]),
        op_type=str(entry["op_type"]),
        method=method,
        options=dict(entry["options"]),
        ranks=tuple(ranks),
        reason=str(entry["reason"]),
        before=cost(entry["before"]),
        after=cost(entry["after"]),
        weight=tuple(int(size) for size in entry.get("weight", ())),
        input=None if entry.get("input") is None else tuple(entry["input"]),
        fixed=bool(entry.get("fixed", False)),
        sized=bool(entry.get("sized", True)),
    )


def kept(layer: Layer, before: Cost, reason: str = "") -> Choice:
    """The choice that leaves the layer as it is, and from which every other is made by filling it in."""
    return Choice(
        layer.name,
        layer.graph,
        layer.op_type,
        reason=reason,
        before=before,
        weight=layer.weight.shape,
        input=layer.input_shape,
        sized=layer.sized,
    )


def cost_of(chain: Chain, layer: Layer) -> Cost:
    """The chain's cost at the layer's shape, free dimensions bound as Layer.assumed_input_shape does."""
    if layer.lookup:
        chain = with_lookup(chain)
    return Cost(chain.params, chain.macs(layer.assumed_input_shape()))
