"""LayerAdapter: all that is known of a family of operators. LayerMatch: a layer of one in its graph.

A new kind of layer is one class derived from LayerAdapter in a file of its own, and one line in
onnxdecomp.layers.registry or an entry point of another package: finding, putting chains in its place, the
lowering check, calibration, timing, shapes, quantization and training ask the class, and no other module
knows its operators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, ConvSpec, Dim, Layer
from onnxdecomp.graph.attributes import named_output, node_name
from onnxdecomp.graph.traversal import Place
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.scope import Scope, Snapshot, Weight, working
from onnxdecomp.layers.states import States
from onnxdecomp.layers.storage import Storage

Operator: TypeAlias = tuple[str, str]
"""A domain, "" for ONNX's own, and an operator's type."""


@dataclass(frozen=True)
class ParameterRoles:
    """Which inputs of an operator training moves, by position.

    Attributes:
        weights: Those that multiply the activation.
        biases: Those that are added.
    """

    weights: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutputChannels:
    """Where an operator's stored weight has its output channels, which are axis 1 of the output.

    Attributes:
        count: How many.
        rank: Axes of the output.
        split: The shape that the weight is looked at in.
        along: The shape of a number for each channel beside it.
    """

    count: int
    rank: int
    split: tuple[int, ...]
    along: tuple[int, ...]


@dataclass(frozen=True)
class FeatureAxes:
    """The axes that a layer's features lie along, for cutting some out (see onnxdecomp.channels).

    Attributes:
        x, y: Of the activation and of the node's first output, from the end where negative.
        inputs, outputs: Of the stored weight; of a convolution in groups one has the features of one group
            only. None: these features cannot be cut.
        bias: The position of an operand [T] that is added; others follow the output's shape from the right.
    """

    x: int
    y: int
    inputs: int | None
    outputs: int | None
    bias: int | None = None


@dataclass(frozen=True, eq=False)
class LayerAdapter(ABC):
    """A family of operators, each linear in a constant weight.

    The class finds the layers of its operators. An instance belongs to one layer: its fields hold how that
    layer's node is the canonical one of `Layer`, as far as `Layer` itself does not say it.

    Class attributes:
        operators: The operators of the family.
        optional_weight: Most operators of the family hold no weight: of one that cannot be read nothing is
            said.
        has_rows: Calibration can cut rows out of the activation: `rows` has the features on the last axis,
            or the layer is a convolution.
        feature_axis: Where the output has the features.
        bias_at: The position of the operator's bias, if that is the chain's.
        rounding: How many times the usual rounding the lowering check allows.
        layout: How factors are laid out that become the operator's own weight. Layers share factors with
            those of the same layout alone.
        per_channel: Types of its operators whose weights ONNX Runtime's quantizer takes channel by channel.

    Attributes:
        weight_at: The weight's position among the operator's inputs.
        left: The weight is the left operand: y = W x, with the features on the last axis but one.
        follow: Positions of further inputs whose shape follows the activation's, such as initial states.
    """

    operators: ClassVar[tuple[Operator, ...]]
    optional_weight: ClassVar[bool] = False
    has_rows: ClassVar[bool] = False
    feature_axis: ClassVar[int] = -1
    bias_at: ClassVar[int | None] = None
    rounding: ClassVar[int] = 1
    layout: ClassVar[str] = ""
    per_channel: ClassVar[frozenset[str]] = frozenset()

    weight_at: int = field(default=1, kw_only=True)
    left: bool = field(default=False, kw_only=True)
    follow: tuple[int, ...] = field(default=(), kw_only=True)

    # Finding the layer, and putting a chain in its place.

    @classmethod
    @abstractmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str | None:
        """The layer of a node of the family; why it cannot be one; or None where it holds no weight."""

    @abstractmethod
    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        """Why the chain cannot take the operator's place, a phrase for people; None where it can."""

    @abstractmethod
    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        """Emit the chain's nodes. The last one's outputs take the place of the operator's."""

    @property
    def reads_as_stored(self) -> bool:
        """Whether a first factor can stand before the operator, which then reads that one's product."""
        return False

    def live(self, now: Callable[[ir.Value], ir.Value]) -> LayerAdapter:
        """The same with values of the graph that it holds as they are now."""
        return self

    # The lowering check.

    @abstractmethod
    def stored(self, weight: Array, layer: Layer) -> Array:
        """The canonical weight in the operator's own layout."""

    @abstractmethod
    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        """Small random inputs by position: the activation, and those that may be computed."""

    def attributes(self, layer: Layer, node: Snapshot) -> Mapping[str, Any]:
        """The operator's attributes, which fit the probe inputs too."""
        return node.attributes

    def reference(
        self, match: LayerMatch, chain: Chain, feeds: Mapping[str, Array], opset: int, ir_version: int
    ) -> Array | None:
        """What the chain's dense weight gives, where the operator itself is not to be run with it."""
        return None

    # Calibration and timing.

    def rows(self, x: Array) -> Array:
        """The activation with the features on its last axis."""
        return x

    def takes_bias(self, layer: Layer) -> bool:
        """Whether the layer can take a bias for the means of its outputs without a further node."""
        return False

    @property
    def is_plain(self) -> bool:
        """Whether the operator gives out the product and its bias, and has done nothing else to it."""
        return False

    @property
    def fuses_activation(self) -> bool:
        """Whether ONNX Runtime fuses an activation function behind the operator with it."""
        return False

    @classmethod
    def timed(cls, layer: Layer) -> LayerAdapter | None:
        """The adapter of such a layer alone, nothing else about it; None where that cannot be timed."""
        return None

    # Folding what follows into the layer, cutting features out, shapes, and training.

    @classmethod
    def output_channels(cls, node: ir.Node, shape: tuple[int, ...]) -> OutputChannels | None:
        """Where a weight of this shape has them; None where it cannot be scaled channel by channel."""
        return None

    def feature_axes(self, node: ir.Node) -> FeatureAxes | None:
        """Where features lie; None where none can be cut out."""
        return None

    def states(self, node: ir.Node) -> States | None:
        """The units that the operator makes where it reads them itself, too; None where it does not."""
        return None

    @classmethod
    def with_bias(cls, node: ir.Node) -> ir.Node:
        """The node, whose third input is a bias, or one that has such an input, put in its place."""
        return node

    @classmethod  # noqa: B027 - ONNX's inference knows most
    def stand_in(cls, node: ir.Node) -> None:
        """Make a node that ONNX's shape inference does not know one that has the same shapes, in place."""

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        """Which inputs of the operator training moves."""
        return ParameterRoles()

    @classmethod
    def is_matrix(cls, node: ir.Node, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape multiplies vectors as a matrix, not as groups or a stack of them."""
        return False

    @classmethod
    def fan_in(cls, node: ir.Node, shape: Sequence[int]) -> int:
        """How many numbers an output adds up, for a weight of this shape."""
        return shape[-2]

    # For the families themselves.

    def layer_match(
        self,
        node: ir.Node,
        scope: Scope,
        x: ir.Value,
        source: Weight,
        weight: Array,
        *,
        input_shape: tuple[Dim, ...] | None,
        output_shape: tuple[Dim, ...] | None = None,
        bias: Array | None = None,
        bias_value: ir.Value | None = None,
        after: tuple[ir.Node, ...] = (),
        conv: ConvSpec | None = None,
        lookup: bool = False,
        packed: int = 1,
        storage: Storage | None = None,
        through: ir.Value | None = None,
    ) -> LayerMatch:
        """The layer of a node, of this adapter.

        Args:
            node: The node.
            scope: Where it stands.
            x: The activation.
            source: The operand with the weight.
            weight: The weight as `Layer` has it, in any element type.
            input_shape, output_shape, bias, conv, lookup: See Layer.
            bias_value, packed, storage, through: See LayerMatch.
            after: Nodes behind it that a chain replaces, too.
        """
        constant = source.constant
        layer = Layer(
            name=node_name(node),
            op_type=node.op_type,
            weight=working(weight),
            bias=bias,
            conv=conv,
            graph=scope.place.path,
            input_shape=input_shape,
            output_shape=output_shape,
            dtype=constant.dtype,
            lookup=lookup,
        )
        quantized = storage is not None or "DequantizeLinear" in constant.via
        return LayerMatch(
            layer,
            scope.place,
            (node, *after),
            x,
            source.value,
            constant.root,
            self,
            bias_value,
            quantized,
            packed,
            storage,
            through,
        )


@dataclass(frozen=True, eq=False)
class LayerMatch:
    """A layer and the graph objects around it.

    Attributes:
        layer: The plain value that methods see.
        place: The graph or function that the operator stands in.
        nodes: What a chain replaces, in order; the last one's name and output survive.
        x: The activation.
        weight: The operand that holds the weight (before any Transpose, Cast, … behind it is resolved).
        root: The value that stores it: layers with the same root and transformations share factors.
        adapter: Of the operator's family; what else its node says.
        bias: The constant bias as the graph has it, or None.
        quantized: The weight is stored quantized, behind a DequantizeLinear or in the operator's own way.
        packed: Numbers of the weight in one element of what is stored.
        storage: How factors are stored when they are quantized again; None: as int8.
        through: The operand that the operator reads in place of its activation: that one quantized, by a node
            that others may read too. None: it reads the activation itself.
    """

    layer: Layer
    place: Place
    nodes: tuple[ir.Node, ...]
    x: ir.Value
    weight: ir.Value
    root: ir.Value
    adapter: LayerAdapter
    bias: ir.Value | None = None
    quantized: bool = False
    packed: int = 1
    storage: Storage | None = None
    through: ir.Value | None = None

    @property
    def kept_bytes(self) -> float | None:
        """Bytes of one number of a quantized weight as it is stored; None for any other weight."""
        tensor = ir.convenience.get_const_tensor(self.root) if self.quantized else None
        return None if tensor is None else tensor.dtype.itemsize / self.packed

    @property
    def requantizes(self) -> bool:
        """Whether its factors can be stored quantized as its weight was; int8 ones are of float32 only."""
        return self.quantized and (self.storage is not None or self.layer.dtype == "float32")

    @property
    def output(self) -> ir.Value:
        """The first output that is not left out, as a recurrent operator's may be."""
        return named_output(self.nodes[-1])

    @property
    def operand(self) -> ir.Value:
        """What the operator reads of the activation."""
        return self.x if self.through is None else self.through

    def snapshot(self) -> Snapshot:
        """The first node, as if it read the activation itself."""
        seen = Snapshot.of(self.nodes[0])
        if self.through is None:
            return seen
        return replace(seen, inputs=tuple(self.x if v is self.through else v for v in seen.inputs))

    def current(self) -> LayerMatch:
        """The match as its nodes read now: rewriting the layer before it gave its activation a new value."""

        def live(value: ir.Value) -> ir.Value:
            above = None if self.through is None else self.through.producer()
            nodes = self.nodes if above is None else (above, *self.nodes)
            operands = [v for node in nodes for v in node.inputs if v is not None]
            return value if value in operands else next(v for v in operands if v.name == value.name)

        return replace(self, x=live(self.x), adapter=self.adapter.live(live))


@dataclass(frozen=True)
class Skip:
    """An operator with a weight that stays as it is, and why.

    Attributes:
        name, op_type, graph: The operator.
        reason: A phrase for people.
        weight: The shape of its largest weight, as it is stored; () where it holds none that was found.
        params: The numbers of all of its weights that are not a layer's as well.
        macs: Multiply-accumulates by them; None where they are not known.
    """

    name: str
    op_type: str
    graph: str
    reason: str
    weight: tuple[int, ...] = ()
    params: int = 0
    macs: int | None = None
