"""How 8 bits are used, which depends on the processor.

As ONNX Runtime advises for its CPU provider (docstring of `onnxruntime.quantization.quantize_static`): on
x86-64 activations are unsigned and weights signed. Without VNNI two products are added in 16 bits, which may
saturate; with weights of 7 bits they do not. On ARM both are signed, and on NVIDIA's providers symmetric too.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import Any

from onnxdecomp.runtime import environment
from onnxdecomp.runtime.providers import provider_of

_DOT_PRODUCTS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""Of /proc/cpuinfo: instructions that multiply bytes and add in 32 bits."""

_WITHOUT_KERNEL = frozenset(
    ("ArgMax", "BatchNormalization", "ConvTranspose", "CumSum", "InstanceNormalization", "LayerNormalization")
)
"""Operators that the quantizer takes and the CPU provider has no integer kernel for: they would only run
between a DequantizeLinear and a QuantizeLinear."""


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized to 8 bits.

    Attributes:
        signed: Whether activations are int8 and symmetric, else uint8 with a zero point.
        reduce_range: Whether weights use 7 of their 8 bits.
        per_channel: Whether weights have a scale for each output channel, else one in all.
        leave: Types of operators that stay in floating point.
        exclude: Names of nodes that stay in floating point.
        keep: Outputs of nodes, by name, that stay in floating point.
    """

    signed: bool = False
    reduce_range: bool = False
    per_channel: bool = True
    leave: frozenset[str] = frozenset()
    exclude: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()

    def facts(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "activations": "int8" if self.signed else "uint8",
            "weights": "int8",
            "weight_bits": 7 if self.reduce_range else 8,
            "per_channel": self.per_channel,
        }


def scheme_for(provider: str, *, weight_bits: str = "auto", per_channel: bool = True) -> Scheme:
    """The scheme that suits a provider (its short name) on this machine.

    Args:
        provider: Where the model will run.
        weight_bits: "7", "8", or "auto": 7 where products of 8 would saturate.
        per_channel: See Scheme.
    """
    cpu = provider_of(provider).mlas
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    scheme = Scheme(
        signed=not (cpu and x86),
        reduce_range=cpu and x86 and not _DOT_PRODUCTS & environment.cpu_flags(),
        per_channel=per_channel,
        leave=_WITHOUT_KERNEL if cpu else frozenset(),
    )
    return scheme if weight_bits == "auto" else replace(scheme, reduce_range=weight_bits == "7")
