"""The hardware's quantum: ranks that fill whole blocks of channels."""

from __future__ import annotations

import platform

import numpy as np


def round_to_multiple(rank: int, multiple: int, full: int, *, up: bool = False) -> int:
    """The nearest multiple (halves up; with `up` the next one), at least `multiple`, never above `full`.

    A full rank stays full, so that a fraction of 1.0 is exact whatever the multiple is.
    """
    if rank >= full:
        return full
    blocks = -(-rank // multiple) if up else (2 * rank + multiple) // (2 * multiple)
    return min(full, max(1, blocks) * multiple)


def quantum(provider: str) -> int:
    """The multiple of channels that an execution provider ("cpu", "cuda", "tensorrt", …) works in.

    On the CPU the block of MLAS' NCHWc layout (onnxruntime/core/mlas/lib/platform.cpp, NchwcBlockSize):
    16 with AVX-512 and with NEON, 8 on other x86-64 processors; narrower convolutions are padded to it.
    On CUDA and TensorRT 8, the channels of one 16-byte access in half precision, which the tensor cores'
    kernels want (NVIDIA, "Matrix Multiplication Background User's Guide"). A starting value: what counts
    is what was timed.
    """
    if provider != "cpu":
        return 8
    machine = platform.machine().lower()
    return 16 if machine in ("aarch64", "arm64") or _has_avx512() else 8


def _has_avx512() -> bool:
    config = np.show_config(mode="dicts")
    simd = config.get("SIMD Extensions", {}) if isinstance(config, dict) else {}
    features = [*simd.get("baseline", []), *simd.get("found", [])]
    return any(name.startswith("AVX512") or name == "X86_V4" for name in features)
