"""The kinds of fewer bits that there are, by name, and what each of them is.

"int8" is one of those that begin with it, chosen by measurement. The name of kernels may say the numbers that
share a scale behind a colon, "int4:64": what runs so takes another time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from onnxdecomp.layers.storage import Storage

Kind: TypeAlias = Literal["none", "int8", "int8-static", "int8-dynamic", "int8-block", "int4", "fp16"]

STATIC: Final = "int8-static"
DYNAMIC: Final = "int8-dynamic"
BLOCKS: Final = "int8-block"
INT4: Final = "int4"
CHOSEN: Final = "int8"
"""Stands for one of the others."""

Block: TypeAlias = Literal[16, 32, 64, 128, 256]

BLOCK: Block = 32
"""Numbers that share a scale where nobody says how many."""

INT4_BITS = 4

_BITS: Mapping[str, int] = {BLOCKS: 8, INT4: INT4_BITS}
_INTEGERS = 4
"""MatMulNBits' accuracy_level for activations that are rounded to int8, block by block."""


def kernels(kind: str, block_size: int = BLOCK) -> str:
    """The kernels of a kind: its name, with the block size where that is not the usual one."""
    return f"{kind}:{block_size}" if kind in _BITS and block_size != BLOCK else kind


def in_blocks(kind: str) -> bool:
    """Whether a kind has a scale for every block of a weight's numbers."""
    return kind in _BITS


def storage_of(
    name: str, provider: str, weight_bits: str = "auto", table_bits: int | None = None
) -> Storage | None:
    """How a kind stores weights; None for one that is no storage of single weights.

    Args:
        name: As `kernels` gives it.
        provider: Where the model will run, a short name.
        weight_bits: As for `scheme_for`.
        table_bits: Of the numbers of tables, 4 or 8; None: as many as others have.
    """
    import numpy as np

    from onnxdecomp.layers.blocks import Blocks
    from onnxdecomp.layers.dynamic_int8 import DynamicInt8
    from onnxdecomp.layers.storage import WithTables
    from onnxdecomp.quantization.scheme import scheme_for

    kind, _, block = name.partition(":")

    def blocks(bits: int) -> Blocks:
        return Blocks(bits, int(block or BLOCK), True, np.dtype(np.float32), _INTEGERS)

    reduce = scheme_for(provider, weight_bits=weight_bits).reduce_range
    own: Storage | None = DynamicInt8(reduce) if kind == DYNAMIC else None
    if kind in _BITS:
        own = blocks(_BITS[kind])
    if own is None or table_bits is None:
        return own
    return WithTables(own, blocks(INT4_BITS) if table_bits == INT4_BITS else DynamicInt8(reduce))


def bytes_of(name: str) -> float | None:
    """Bytes of a weight's number under kernels; None: those of its own type."""
    kind, _, block = name.partition(":")
    if kind in _BITS:  # a scale and a zero point for every block
        return _BITS[kind] / 8 + (4 + _BITS[kind] / 8) / int(block or BLOCK)
    return {STATIC: 1.0, DYNAMIC: 1.0, CHOSEN: 1.0, "fp16": 2.0}.get(kind)
