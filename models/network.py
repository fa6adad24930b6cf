"""Network: an ONNX graph written layer by layer, with PyTorch's names for the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

Floats: TypeAlias = NDArray[np.float32]
Parameters: TypeAlias = Callable[[str, tuple[int, ...]], Floats]
"""Gives the parameter of that name and shape."""

OPSET = 18
IR_VERSION = 10


class Network:
    """Writes nodes one after another; every method takes a value and gives the next.

    A layer called "stem" has the parameters "stem.weight", "stem.bias", … , its node is called "stem".
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._tape = Tape()

    def node(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        output = ir.Value(name=f"{name}.out")
        return self._tape.op(op_type, inputs, attributes, name=name, output=output)

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        return self._tape.initializer(ir.tensor(array, name=name))

    def parameter(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        array = self._parameters(name, shape)
        if array.shape != shape:
            raise ValueError(f"parameter {name} has the shape {array.shape}, the network needs {shape}")
        return self.constant(name, array)

    def conv(
        self,
        x: ir.Value,
        name: str,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int = 1,
        bias: bool,
    ) -> ir.Value:
        """A square convolution, padded so that stride 1 keeps the size."""
        tensors = [self.parameter(f"{name}.weight", (outputs, inputs, kernel, kernel))]
        if bias:
            tensors.append(self.parameter(f"{name}.bias", (outputs,)))
        return self.node(
            "Conv",
            [x, *tensors],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )

    def batch_norm(self, x: ir.Value, name: str, channels: int) -> ir.Value:
        tensors = [
            self.parameter(f"{name}.{part}", (channels,))
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return self.node("BatchNormalization", [x, *tensors], name, epsilon=1e-5)

    def conv_norm(
        self,
        x: ir.Value,
        name: str,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int = 1,
        batch_norm: bool,
    ) -> ir.Value:
        """A convolution and its BatchNormalization, or the folded form: the convolution with a bias."""
        x = self.conv(x, name, inputs, outputs, kernel=kernel, stride=stride, bias=not batch_norm)
        return self.batch_norm(x, f"{name}.norm", outputs) if batch_norm else x

    def relu(self, x: ir.Value, name: str) -> ir.Value:
        return self.node("Relu", [x], name)

    def max_pool(self, x: ir.Value, name: str, kernel: int, stride: int, *, padding: int = 0) -> ir.Value:
        size = [kernel, kernel]
        return self.node(
            "MaxPool", [x], name, kernel_shape=size, strides=[stride, stride], pads=[padding] * 4
        )

    def flatten(self, x: ir.Value, name: str) -> ir.Value:
        return self.node("Flatten", [x], name, axis=1)

    def global_average(self, x: ir.Value, name: str) -> ir.Value:
        """The mean over the picture: [N, C, H, W] to [N, C]."""
        return self.flatten(self.node("GlobalAveragePool", [x], name), f"{name}.flatten")

    def linear(self, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        weight = self.parameter(f"{name}.weight", (outputs, inputs))
        return self.node("Gemm", [x, weight, self.parameter(f"{name}.bias", (outputs,))], name, transB=1)

    def model(self, name: str, picture: ir.Value, scores: ir.Value, classes: int) -> ir.Model:
        """The finished model from the input value to the class scores [N, classes], called "scores"."""
        return self.graph(name, [picture], scores, "scores", ["N", classes])

    def graph(
        self, name: str, inputs: Sequence[ir.Value], output: ir.Value, called: str, shape: Sequence[int | str]
    ) -> ir.Model:
        """The finished model from the inputs to one output of that name and shape."""
        output.name = called
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(shape)
        graph = ir.Graph(
            inputs,
            [output],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="onnxdecomp/models")


def picture(channels: int, size: int) -> ir.Value:
    """The input "image": float32 [N, channels, size, size] with any N."""
    shape = ir.Shape(["N", channels, size, size])
    return ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def from_state(state: Mapping[str, Floats]) -> Parameters:
    """Parameters out of a dictionary of arrays, as a trained network's `state_dict`."""
    return lambda name, shape: state[name]


def state_of(model: ir.Model) -> dict[str, Floats]:
    """The model's parameters by name: what `from_state` takes."""
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
