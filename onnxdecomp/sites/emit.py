"""The one place where a chain becomes ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxdecomp.chain import BlockMatMul, Chain, Convolve, Fold, MatMul, Permute, Reshape, Step, Transpose
from onnxdecomp.errors import ModelError
from onnxdecomp.layer import Array
from onnxdecomp.sites.base import Site
from onnxdecomp.sites.conv import onnx_transposed


@dataclass(eq=False)
class Emitter:
    """Collects the nodes of one chain.

    Attributes:
        constant: Makes a graph constant of an array: (array, wanted name, key or None) -> value. Arrays with
            the same key are stored once.
        unique: Makes a node or value name unique.
        name: The layer's name; parts are called name/label.
        share: What layers with the same factors have in common, or None for a layer with its own.
    """

    constant: Callable[[Array, str, object], ir.Value]
    unique: Callable[[str], str]
    name: str
    dtype: ir.DataType
    metadata: dict[str, str]
    share: object = None
    nodes: list[ir.Node] = field(default_factory=list)

    def add(
        self,
        op_type: str,
        inputs: list[ir.Value],
        label: str,
        **attributes: int | float | str | tuple[int, ...],
    ) -> ir.Value:
        name = self.unique(f"{self.name}/{label}")
        out = ir.Value(name=self.unique(f"{name}_output"), type=ir.TensorType(self.dtype))
        node = ir.node(
            op_type,
            inputs,
            attributes={k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()},
            outputs=[out],
            name=name,
            metadata_props={**self.metadata, "pkg.onnxdecomp.part": label},
        )
        self.nodes.append(node)
        return out

    def integers(self, values: list[int], name: str) -> ir.Value:
        return self.constant(np.array(values, np.int64), f"{self.name}/{name}", None)

    def weight(self, array: Array, label: str) -> ir.Value:
        stored = np.ascontiguousarray(array).astype(self.dtype.numpy(), copy=False)
        return self._shared(stored, f"{self.name}/{label}.weight", label)

    def _shared(self, array: Array, name: str, label: str) -> ir.Value:
        return self.constant(array, name, None if self.share is None else (self.share, label, array.shape))

    def bias(self, site: Site, chain: Chain, shape: tuple[int, ...] | None = None) -> ir.Value | None:
        """The chain's bias; the original's own value where it is unchanged and needs no new shape."""
        if chain.bias is None:
            return None
        array = chain.bias if shape is None else chain.bias.reshape(shape)
        kept = site.bias
        if kept is not None and chain.bias is site.layer.bias and _shape(kept) == array.shape:
            return kept
        return self.constant(array.astype(self.dtype.numpy()), f"{self.name}/bias", None)


def emit_conv(chain: Chain, site: Site, emit: Emitter) -> None:
    """The nodes of a chain on [N, C, *spatial]."""
    x = site.x
    rank = len(site.layer.kernel)
    labels = _labels(chain)
    for index, (step, label) in enumerate(zip(chain.steps, labels, strict=True)):
        if isinstance(step, Convolve):
            last = index == len(chain.steps) - 1
            x = _convolve(step, x, label, emit, emit.bias(site, chain) if last else None)
        elif isinstance(step, Fold):
            x = emit.add(
                "Reshape", [x, emit.integers([-1, step.channels] + [0] * rank, f"{label}.shape")], label
            )
        elif isinstance(step, Permute):
            order = emit.integers(list(step.order), f"{label}.order")
            x = emit.add("Gather", [x, order], label, axis=1)
        else:
            raise TypeError(f"{type(step).__name__} is no step on [N, C, *spatial]")
    if chain.bias is not None and not isinstance(chain.steps[-1], Convolve):
        bias = emit.bias(site, chain, (-1,) + (1,) * rank)
        assert bias is not None
        emit.add("Add", [x, bias], "bias")


def _convolve(step: Convolve, x: ir.Value, label: str, emit: Emitter, bias: ir.Value | None) -> ir.Value:
    spec = step.spec
    array = onnx_transposed(step.weight, spec.groups) if spec.transposed else step.weight
    weight = emit.weight(array, label)
    attributes: dict[str, int | float | str | tuple[int, ...]] = {
        "kernel_shape": tuple(int(k) for k in step.weight.shape[2:]),
        "strides": spec.strides,
        "dilations": spec.dilations,
        "group": spec.groups,
    }
    if isinstance(spec.pads, str):
        attributes["auto_pad"] = spec.pads
    else:
        attributes["pads"] = spec.pads
    if spec.transposed and spec.output_padding:
        attributes["output_padding"] = spec.output_padding
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return emit.add("ConvTranspose" if spec.transposed else "Conv", inputs, label, **attributes)


def emit_linear(chain: Chain, site: Site, emit: Emitter) -> None:
    """The nodes of a chain on the features of a Gemm's or MatMul's activation."""
    form = site.linear
    assert form is not None
    plain = all(isinstance(step, MatMul) for step in chain.steps)
    x = site.x
    rank = None if site.layer.input_shape is None else len(site.layer.input_shape)
    multiply_left = form.left and plain
    if form.swapped != (form.left and not plain):
        x = _swap_last(x, rank, "transposed", emit)
    gemm_last = form.gemm and not form.left and isinstance(chain.steps[-1], MatMul)
    labels = _labels(chain)
    for index, (step, label) in enumerate(zip(chain.steps, labels, strict=True)):
        if isinstance(step, MatMul):
            if gemm_last and index == len(chain.steps) - 1:
                _gemm(step, x, label, chain, site, emit)
                return
            array = step.weight.swapaxes(-1, -2) if multiply_left else step.weight
            weight = emit.weight(array, label)
            x = emit.add("MatMul", [weight, x] if multiply_left else [x, weight], label)
        else:
            x = _rearrange(step, x, rank, label, emit)
    if form.left and not plain:
        x = _swap_last(x, rank, "untransposed", emit)
    if chain.bias is not None:
        bias = emit.bias(site, chain, (-1, 1) if form.left else None)
        assert bias is not None
        x = emit.add("Add", [x, bias], "bias")
    if form.addend is not None:
        emit.add("Add", [x, _scaled(form.addend, form.scale, emit)], "addend")


def _gemm(step: MatMul, x: ir.Value, label: str, chain: Chain, site: Site, emit: Emitter) -> None:
    """The last product of a Gemm's chain, its bias or C along with it."""
    assert site.linear is not None
    weight = emit.weight(step.weight, label)
    bias = emit.bias(site, chain)
    if bias is not None:
        emit.add("Gemm", [x, weight, bias], label)
    elif site.linear.addend is not None:
        emit.add("Gemm", [x, weight, site.linear.addend], label, beta=site.linear.scale)
    else:
        emit.add("MatMul", [x, weight], label)


def _rearrange(step: Step, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    if rank is None:
        raise ModelError(f"{emit.name}: the rank of its activation is unknown; use a method without reshapes")
    lead = rank - 1
    if isinstance(step, Reshape):
        shape = emit.integers([0] * lead + list(step.target), f"{label}.shape")
        return emit.add("Reshape", [x, shape], label)
    if isinstance(step, BlockMatMul):
        # One row at a time against each block would be slow: the blocks go before the last leading axis.
        perm = (*range(lead - 1), lead, lead - 1, lead + 1)
        weight = emit.weight(step.weight, label)
        x = emit.add("Transpose", [x], f"{label}_blocks", perm=perm)
        x = emit.add("MatMul", [x, weight], label)
        return emit.add("Transpose", [x], f"{label}_rows", perm=perm)
    if isinstance(step, Transpose):
        return emit.add("Transpose", [x], label, perm=step.axes(lead + len(step.perm)))
    raise TypeError(f"{type(step).__name__} is no step on features")


def _swap_last(x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    if rank is None:
        raise ModelError(f"{emit.name}: the rank of its activation is unknown; use a method without reshapes")
    return emit.add("Transpose", [x], label, perm=(*range(rank - 2), rank - 1, rank - 2))


def _scaled(value: ir.Value, scale: float, emit: Emitter) -> ir.Value:
    if scale == 1.0:
        return value
    factor = emit.constant(np.array(scale, emit.dtype.numpy()), f"{emit.name}/beta", None)
    return emit.add("Mul", [value, factor], "scaled")


def _labels(chain: Chain) -> list[str]:
    """The steps' own labels, else first, step2, …, last."""
    count = len(chain.steps)
    usual = ["first", *(f"step{k}" for k in range(2, count)), "last"] if count > 1 else ["last"]
    return [step.label or name for step, name in zip(chain.steps, usual, strict=True)]


def needs_rank(chain: Chain, site: Site) -> bool:
    """Whether the nodes can only be written if the activation's rank is known."""
    if chain.is_conv:
        return False
    plain = all(isinstance(step, MatMul) for step in chain.steps)
    return not plain or (site.linear is not None and site.linear.swapped)


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]
