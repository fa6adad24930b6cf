"""Channel: what layers make and others read, unit by unit, with nothing between that mixes the units.

A unit is a feature that can be left out: the row of a weight that makes it and the columns that read it. What
stands between keeps units apart, so leaving some out is the same as setting the readers' columns of them to
zero (see onnxdecomp.channels.cut_check). The units of a channel are found by propagation as in DepGraph (Fang
et al. 2023, "DepGraph: Towards Any Structural Pruning").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import LayerMatch

NONE = -1
"""Stands for a place that belongs to no unit of the channel, and stays."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer whose columns read the channel.

    Attributes:
        match: The layer.
        units: int [g, D], the unit of each feature of a row of the weight as `fitting.quadratic_loss.as_rows`
            has it, [g, T/g, D]; NONE: the feature is none of the channel's.
    """

    match: LayerMatch
    units: Array


@dataclass(frozen=True, eq=False)
class Producer:
    """A layer whose rows make the channel.

    Attributes:
        match: The layer.
        units: int [T], the unit of each output; NONE: the output is none of the channel's.
        operands: int [T], of the channel's product the operand that each output becomes, 0 or 1; NONE:
            neither, or both. None where there is not one product.
    """

    match: LayerMatch
    units: Array
    operands: Array | None = None


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored tensor that has places of the channel.

    Attributes:
        node: Whose operand it is.
        at: The operand's position.
        units: int, as many axes as the tensor: its size along the axes that the units differ on, else 1.
    """

    node: ir.Node
    at: int
    units: Array


@dataclass(frozen=True, eq=False)
class Shaped:
    """An activation that becomes smaller with the channel.

    Attributes:
        value: The activation.
        units: int, as many axes as the value: its size along the axes that the units differ on, else 1.
    """

    value: ir.Value
    units: Array


@dataclass(frozen=True, eq=False)
class Channel:
    """Units that can be left out, one by one or the same number of each block.

    Attributes:
        name: That of the first producer's layer in graph order; channels of further rows of that layer have
            ":2", ":3", … behind it, one whose units are whole blocks of another's (heads, groups) ":blocks".
        width: Units, 0 to width - 1, in the order of the first producer's rows.
        blocks: The units are so many equal runs, of each of which equally many must stay (heads, groups of a
            convolution); 1: any may go.
        producers: The layers that make it, in graph order; several where their outputs are added, multiplied
            or otherwise combined unit by unit. All are cut alike.
        readers: The layers that read it, in graph order.
        recurrences: What recurrent layers that make it read of it themselves, a direction each: no layers of
            the model (see onnxdecomp.layers.recurrence), but what they lose counts as that of readers.
        products: The products of two activations, both of the channel, that sum over its units, as of queries
            and keys. Leaving a unit out takes a term out of the sum.
        stored: Everything stored that a cut slices: weights and biases of producers and readers,
            and what stands between (depthwise weights, statistics of a normalisation, constants).
        shaped: The activations between, whose sizes change.
        layers: The layer of each node of `nodes` that is one's first.
        nodes: All nodes whose tensors, attributes or shapes change.
        linear: Nothing but layout, sums and numbers that all units share stands between producers and
            readers or products, and each producer's own bias: units of a block may be mixed, not only picked.
    """

    name: str
    width: int
    blocks: int
    producers: tuple[Producer, ...]
    readers: tuple[Reader, ...]
    recurrences: tuple[Reader, ...]
    products: tuple[ir.Node, ...]
    stored: tuple[Stored, ...]
    shaped: tuple[Shaped, ...]
    layers: Mapping[ir.Node, LayerMatch]
    nodes: tuple[ir.Node, ...]
    linear: bool

    @property
    def features(self) -> int:
        """Those that a unit has in every layer that makes or reads it: of a head all, where it is one."""
        units = [*(end.units for end in self.producers), *(end.units for end in self.readers)]
        return max(1, math.gcd(*(int((own >= 0).sum()) for own in units)) // self.width)

    @property
    def fewest(self) -> int:
        """Units of each block that must stay: of a single one the axis could not be told from others."""
        return 1 if self.blocks == 1 else min(2, self.width // self.blocks)

    @cached_property
    def spans(self) -> tuple[Array, ...]:
        """Sets of units, ascending, of each of which one must stay at least: all of some activation."""
        found = {}
        for part in self.shaped:
            units = np.unique(part.units[part.units != NONE])
            if units.size < self.width and not (part.units == NONE).any():
                found[units.tobytes()] = units
        return tuple(found.values())


def rows_left(channel: Channel, units: Array) -> list[Array | None]:
    """Of each reader the outputs that stay with these units, bool [T]; None: all, for it makes none."""
    made = {producer.match.nodes[0]: producer.units for producer in channel.producers}
    own = [made.get(reader.match.nodes[0]) for reader in channel.readers]
    return [None if rows is None else (rows < 0) | np.isin(rows, units) for rows in own]


@dataclass(frozen=True)
class ChannelSkip:
    """The outputs of a layer that cannot be cut.

    Attributes:
        name: The layer's.
        reason: What breaks the channel, a phrase for people.
    """

    name: str
    reason: str
