"""Plan and Choice: the decision for every layer, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from onnxdecomp.core.chain import Chain, with_lookup
from onnxdecomp.core.json_values import Json
from onnxdecomp.core.layer import Dim, Layer
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnxdecomp.layers.adapter import Skip


@dataclass(frozen=True)
class Cost:
    """Numbers stored, and multiply-accumulates for one input at the layer's (assumed) shape."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


FREE = Cost(0, 0)
"""Nothing."""


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
        copied: Numbers of its bias, where that is a copy of another layer's: the original stores them once.
        sized: The size of the activation is known (see Layer), and so are MACs: else they are a guess.
        group: What the layers have in common that share their first factor (method "shared"): the name of one
            that was the first of them. That factor's cost is the first one's. "" for any other method.
        left: What is left of the weight's shape where it is smaller behind cuts of channels, and `after`
            is the cost of that; () elsewhere.
    """

    layer: str
    graph: str
    op_type: str
    method: str | None = None
    options: Mapping[str, Json] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    reason: str = ""
    before: Cost | None = None
    after: Cost | None = None
    weight: tuple[int, ...] = ()
    input: tuple[Dim, ...] | None = None
    fixed: bool = False
    copied: int = 0
    sized: bool = True
    group: str = ""
    left: tuple[int, ...] = ()

    @property
    def narrowed(self) -> bool:
        """Whether it is smaller behind the cuts of channels."""
        return bool(self.left)


def choice_of(skip: Skip) -> Choice:
    """What happens to an operator that is no layer: it stays, with what it holds."""
    choice = Choice(skip.name, skip.graph, skip.op_type, reason=skip.reason)
    if not skip.params:
        return choice
    cost = Cost(skip.params, skip.macs or 0)
    return replace(choice, before=cost, weight=skip.weight, sized=skip.macs is not None)


@dataclass(frozen=True)
class Cut:
    """What happens to one channel: what some layers make and others read, with nothing but operators that
    work unit by unit between them.

    Attributes:
        channel: Its name, which is that of the first layer that makes it.
        method: The method that cuts it, or None where it stays as it is.
        width: Its units.
        kept: Those that are left, `width` where it stays.
        producers, readers: The layers that make it, and those that read it.
        reason: Why it stays, a phrase for people; empty where it is cut.
        before: What all layers cost that it is an axis of.
        after: What they cost with this channel alone cut; None where it stays.
    """

    channel: str
    method: str | None
    width: int
    kept: int
    producers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    reason: str = ""
    before: Cost | None = None
    after: Cost | None = None


@dataclass(frozen=True)
class Plan:
    """One choice per operator that carries a weight, in graph order.

    Attributes:
        choices: The choices.
        repair: Whether layers that are kept get other numbers, and BatchNormalization other statistics,
            where layers before them have changed what they see and calibration inputs show it.
        channels: What happens to the channels between layers, in graph order; empty where none was looked at.
    """

    choices: tuple[Choice, ...]
    repair: bool = True
    channels: tuple[Cut, ...] = ()

    @property
    def decomposed(self) -> tuple[Choice, ...]:
        """The choices that replace a layer by a chain."""
        return tuple(choice for choice in self.choices if choice.method is not None)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The channels that are cut."""
        return tuple(cut for cut in self.channels if cut.method is not None)

    @property
    def changes(self) -> bool:
        """Whether anything is decomposed."""
        return bool(self.decomposed or self.cuts)

    def to_json(self) -> dict[str, Json]:
        """The plan as JSON values: of version 1, which earlier releases read, where no channel is in it."""
        choices: list[Json] = [_to_json(choice) for choice in self.choices]
        if not self.channels:
            return {"version": 1, "repair": self.repair, "choices": choices}
        channels: list[Json] = [asdict(cut) for cut in self.channels]
        return {"version": 2, "repair": self.repair, "choices": choices, "channels": channels}

    @staticmethod
    def from_json(value: Mapping[str, Json]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            UsageError: The value is no plan of a version that this release reads.
        """
        entries = value.get("choices")
        if value.get("version") not in (1, 2) or not isinstance(entries, list):
            raise UsageError("this is no onnxdecomp plan of version 1 or 2")
        try:
            choices = tuple(_choice(entry) for entry in entries)
            cuts = tuple(_cut(_mapping(entry)) for entry in _list(value.get("channels", ())))
            return Plan(choices, repair=bool(value.get("repair", False)), channels=cuts)
        except KeyError as error:
            raise UsageError(f"the plan is damaged: a choice lacks {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"the plan is damaged: {error}") from error


def _to_json(choice: Choice) -> dict[str, Json]:
    unsaid = {name for name in ("group", "left") if not getattr(choice, name)}
    return {key: value for key, value in asdict(choice).items() if key not in unsaid}


def _choice(entry: Mapping[str, Json]) -> Choice:
    method, ranks = entry["method"], entry["ranks"]
    if method is not None and not isinstance(method, str):
        raise ValueError(f"layer {entry['layer']!r}: {method!r} is no name of a method")
    if not isinstance(ranks, list | tuple):
        raise ValueError(f"layer {entry['layer']!r}: {ranks!r} is no list of ranks")
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise ValueError(f"layer {entry['layer']!r}: the rank {rank!r} is no whole number")
    shape = entry.get("input")
    return Choice(
        layer=str(entry["layer"]),
        graph=str(entry["graph"]),
        op_type=str(entry["op_type"]),
        method=method,
        options=_mapping(entry["options"]),
        ranks=tuple(ranks),
        reason=str(entry["reason"]),
        before=_cost(entry["before"]),
        after=_cost(entry["after"]),
        weight=tuple(_whole(size) for size in _list(entry.get("weight", ()))),
        input=None if shape is None else tuple(_dimension(size) for size in _list(shape)),
        fixed=bool(entry.get("fixed", False)),
        copied=_whole(entry.get("copied", 0)),
        sized=bool(entry.get("sized", True)),
        group=str(entry.get("group", "")),
        left=tuple(_whole(size) for size in _list(entry.get("left", ()))),
    )


def _cut(entry: Mapping[str, Json]) -> Cut:
    method, width, kept = entry["method"], _whole(entry["width"]), _whole(entry["kept"])
    if method is not None and not isinstance(method, str):
        raise ValueError(f"channel {entry['channel']!r}: {method!r} is no name of a method")
    if not isinstance(entry["kept"], int) or not 1 <= kept <= width:
        raise ValueError(f"channel {entry['channel']!r}: {entry['kept']} of {width} units cannot be kept")
    return Cut(
        channel=str(entry["channel"]),
        method=method,
        width=width,
        kept=kept,
        producers=tuple(map(str, _list(entry.get("producers", ())))),
        readers=tuple(map(str, _list(entry.get("readers", ())))),
        reason=str(entry.get("reason", "")),
        before=_cost(entry.get("before")),
        after=_cost(entry.get("after")),
    )


def _cost(value: Json) -> Cost | None:
    if value is None:
        return None
    held = _mapping(value)
    return Cost(_whole(held["params"]), _whole(held["macs"]))


def _mapping(value: Json) -> dict[str, Json]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is no table")
    return {str(key): item for key, item in value.items()}


def _list(value: Json) -> Sequence[Json]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is no list")
    return value


def _whole(value: Json) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no number")
    return int(value)


def _dimension(value: Json) -> Dim:
    if value is not None and not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no dimension")
    return value


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
    shape, beside = layer.assumed_input_shape(), layer.recurrence
    return Cost(chain.params + beside, chain.macs(shape) + beside * math.prod(shape[:-1]))


def cost_after_first(chain: Chain, layer: Layer) -> Cost:
    """What the chain costs beside its first step, where that is another layer's, too."""
    whole, first = cost_of(chain, layer), chain.steps[0]
    return Cost(whole.params - first.params, whole.macs - first.macs(layer.assumed_input_shape()))
