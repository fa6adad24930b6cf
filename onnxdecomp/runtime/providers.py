"""Execution providers of ONNX Runtime: one row for each, with all that is particular to it.

ONNX Runtime lists the providers that it was built with; whether one starts is another matter
(onnxdecomp.runtime.provider_start).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from onnxdecomp.errors import UsageError

_NVIDIA_LIBRARIES = "install its libraries with: pip install 'onnxdecomp[cuda]'"
_OWN = "install it with: pip install {}in an environment of its own)"


Options: TypeAlias = tuple[tuple[str, str], ...]
"""Options of a provider, by ONNX Runtime's names."""


@dataclass(frozen=True)
class Provider:
    """What is particular to an execution provider.

    Attributes:
        name: Its short name, for users.
        ort_name: ONNX Runtime's name.
        device: What it computes on: the processor, an NVIDIA card, or what ONNX Runtime says of it.
        before_cpu: Providers, by short name, that get the nodes that it does not take before the CPU does.
        on_cuda: Tensors stay on a CUDA device between runs, and CUDA's libraries are needed.
        channels: The multiple of channels that its kernels work in; 0: the processor's, see `quantum`.
        mlas: Its kernels are those of MLAS, ONNX Runtime's own for processors: floating-point ones take
            blocks of channels (NCHWc), and what 8 bits suit depends on the processor.
        synchronous: A kernel has done its work when it returns, so that its time says something.
        local: A model runs on this machine.
        takes_options: ONNX Runtime knows options of it.
        deploy: Those that a careful user deploys with; "{cache}" stands for the folder of caches.
        precisions: What floating point can be computed in, with the options that ask for it.
        halves: It takes models in float32 to half precision itself.
        quick: Those for models that live for a moment, where nobody has given others.
        graph: The option that records a run once and replays it (CUDA graphs).
        needs: What must be there beside ONNX Runtime, for people.
        install: What to type where it is missing.
    """

    name: str
    ort_name: str
    device: Literal["processor", "nvidia", "other"] = "other"
    before_cpu: tuple[str, ...] = ()
    on_cuda: bool = False
    channels: int = 8
    mlas: bool = False
    synchronous: bool = False
    local: bool = True
    takes_options: bool = True
    deploy: Options = ()
    precisions: Mapping[str, Options] = field(default_factory=dict)
    halves: bool = False
    quick: Options = ()
    graph: str = ""
    needs: str = ""
    install: str | None = None

    @property
    def tensors_on(self) -> str:
        """Where tensors stay between runs, as torch and providers are called: "cuda" or "cpu"."""
        return "cuda" if self.on_cuda else "cpu"


_CUDA_DEPLOY: Options = (
    ("prefer_nhwc", "1"),
    ("fuse_conv_bias", "1"),
    ("enable_cuda_graph", "1"),
    ("cudnn_conv_algo_search", "EXHAUSTIVE"),
    ("cudnn_conv_use_max_workspace", "1"),
)
"""Channels last, the bias in the convolution's kernel, one launch for a run, algorithms searched once."""

_TENSORRT_DEPLOY: Options = (
    ("trt_engine_cache_enable", "1"),
    ("trt_engine_cache_path", "{cache}/tensorrt"),
    ("trt_timing_cache_enable", "1"),
    ("trt_timing_cache_path", "{cache}/tensorrt"),
    ("trt_cuda_graph_enable", "1"),
)
"""Engines and what was timed for them are kept: building one takes minutes."""

PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "cpu",
        "CPUExecutionProvider",
        "processor",
        channels=0,
        mlas=True,
        synchronous=True,
        takes_options=False,
        precisions={"fp32": (), "fp16": ()},
    ),
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        "nvidia",
        on_cuda=True,
        deploy=_CUDA_DEPLOY,
        precisions={"fp32": (("use_tf32", "0"),), "tf32": (("use_tf32", "1"),), "fp16": ()},
        quick=(("cudnn_conv_algo_search", "HEURISTIC"),),
        graph="enable_cuda_graph",
        needs="an NVIDIA driver, CUDA's libraries and cuDNN 9",
        install=_NVIDIA_LIBRARIES,
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        "nvidia",
        before_cpu=("cuda",),
        on_cuda=True,
        deploy=_TENSORRT_DEPLOY,
        precisions={
            "tf32": (),
            "fp16": (("trt_fp16_enable", "1"),),
            "bf16": (("trt_bf16_enable", "1"),),
        },
        halves=True,
        graph="trt_cuda_graph_enable",
        needs="what cuda needs and TensorRT 10, and a folder for engines, which take minutes to build",
        install=f"{_NVIDIA_LIBRARIES} tensorrt",
    ),
    Provider("tensorrt-rtx", "NvTensorRTRTXExecutionProvider", "nvidia"),
    Provider("openvino", "OpenVINOExecutionProvider", install=_OWN.format("onnxruntime-openvino (")),
    Provider("dml", "DmlExecutionProvider", install=_OWN.format("onnxruntime-directml (Windows, ")),
    Provider("coreml", "CoreMLExecutionProvider"),
    Provider("webgpu", "WebGpuExecutionProvider"),
    Provider("migraphx", "MIGraphXExecutionProvider"),
    Provider("dnnl", "DnnlExecutionProvider", "processor"),
    Provider("xnnpack", "XnnpackExecutionProvider", "processor"),
    Provider("qnn", "QNNExecutionProvider"),
    Provider("cann", "CANNExecutionProvider"),
    Provider("vitisai", "VitisAIExecutionProvider"),
    Provider("acl", "ACLExecutionProvider", "processor"),
    Provider("nnapi", "NnapiExecutionProvider"),
    Provider("rknpu", "RknpuExecutionProvider"),
    Provider("vsinpu", "VSINPUExecutionProvider"),
    Provider("azure", "AzureExecutionProvider", local=False),
)


def provider_of(name: str) -> Provider:
    """The provider of a short name (or of ONNX Runtime's name).

    Raises:
        UsageError: There is no such provider.
    """
    wanted = name.strip().lower()
    for row in PROVIDERS:
        if wanted in (row.name, row.ort_name.lower()):
            return row
    known = ", ".join(row.name for row in PROVIDERS)
    raise UsageError(f"unknown provider {name!r}; known are {known}")


def ort_name(provider: str) -> str:
    """ONNX Runtime's name of a provider given by its short name (or by that name already).

    Raises:
        UsageError: There is no such provider.
    """
    return provider_of(provider).ort_name


def short_name(name: str) -> str:
    """The short name of ONNX Runtime's provider `name`, or that name where it has none."""
    return next((row.name for row in PROVIDERS if row.ort_name == name), name)


def listed() -> tuple[str, ...]:
    """Short names of the providers that the installed ONNX Runtime was built with."""
    import onnxruntime as ort

    return tuple(short_name(name) for name in ort.get_available_providers())


def preference(
    provider: str, options: Mapping[str, str] | None = None
) -> list[str | tuple[str, dict[str, str]]]:
    """What a session is asked for, in order, the first with its options; the CPU takes what is left over."""
    row = provider_of(provider)
    first, *others = [ort_name(name) for name in dict.fromkeys((row.name, *row.before_cpu, "cpu"))]
    return [(first, dict(options)) if options else first, *others]


def quantum(provider: str) -> int:
    """The multiple of channels that an execution provider ("cpu", "cuda", "tensorrt", …) works in.

    On the CPU the block of MLAS' NCHWc layout (onnxruntime/core/mlas/lib/platform.cpp, NchwcBlockSize):
    16 with AVX-512 and with NEON, 8 on other x86-64 processors; narrower convolutions are padded to it.
    On CUDA and TensorRT 8, the channels of one 16-byte access in half precision, which the tensor cores'
    kernels want (NVIDIA, "Matrix Multiplication Background User's Guide"). A starting value: what counts
    is what was timed.

    Raises:
        UsageError: There is no such provider.
    """
    if channels := provider_of(provider).channels:
        return channels
    machine = platform.machine().lower()
    return 16 if machine in ("aarch64", "arm64") or _has_avx512() else 8


def _has_avx512() -> bool:
    config = np.show_config(mode="dicts")
    simd = config.get("SIMD Extensions", {}) if isinstance(config, dict) else {}
    features = [*simd.get("baseline", []), *simd.get("found", [])]
    return any(name.startswith("AVX512") or name == "X86_V4" for name in features)
