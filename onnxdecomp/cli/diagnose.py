"""What is installed, what of it really works, and what to type where it does not."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxdecomp._version import __version__
from onnxdecomp.runtime import environment, jsonio, provider_start, providers

REQUIRED = ("numpy", "scipy", "onnx", "onnx-ir", "onnxscript", "onnxsim", "tensorly", "click", "rich")

RUNTIMES = frozenset(
    {
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-directml",
        "onnxruntime-openvino",
        "onnxruntime-qnn",
        "onnxruntime-migraphx",
        "onnxruntime-rocm",
        "onnxruntime-silicon",
        "onnxruntime-training",
        "onnxruntime-vitisai",
        "onnxruntime-webgpu",
        "ort-nightly",
        "ort-nightly-gpu",
    }
)
"""Distributions that each bring a module `onnxruntime`: in one folder the one installed last wins."""

_CUDA = ("cuda", "cudart", "cublas", "cublasLt", "cufft", "curand", "cudnn")

_CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True)
class Problem:
    """Something wrong, and the command that mends it."""

    what: str
    remedy: str | None


@dataclass(frozen=True)
class Runtime:
    """An installed distribution that brings ONNX Runtime, and the folder that it is imported from."""

    name: str
    version: str
    folder: str


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation.

    Attributes:
        version: Of onnxdecomp.
        python, system: Interpreter and operating system.
        cpu: The processor's name, the cores this process may use, and what of the instruction sets that
            matter here it has (empty where the system does not tell).
        packages: Version, or None where missing, of each package needed.
        runtimes: Version of each installed distribution of ONNX Runtime; there should be one. Of one that
            is installed in several folders, that which is imported.
        providers: What came of starting a session on each provider listed.
        cuda: Which of CUDA's libraries were found ("cuda" is the driver's); empty without a CUDA
            provider.
        problems: What is wrong.
    """

    version: str
    python: str
    system: str
    cpu: Mapping[str, Any]
    packages: Mapping[str, str | None]
    runtimes: Mapping[str, str]
    providers: tuple[provider_start.Start, ...]
    cuda: Mapping[str, bool]
    problems: tuple[Problem, ...]

    def started(self, provider: str) -> bool:
        """Whether a session started on the provider (short name)."""
        return any(start.provider == provider and start.started for start in self.providers)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        result: dict[str, Any] = jsonio.plain(self)
        return result


def diagnose(requested: Sequence[str] = ()) -> Diagnosis:
    """Look at this installation; providers in `requested` are tried even if they are not listed.

    Raises:
        UsageError: There is no provider of such a name.
    """
    wanted = [providers.short_name(providers.ort_name(name)) for name in requested]
    packages = {name: _version(name) for name in REQUIRED}
    runtimes = installed_runtimes(metadata.distributions())
    problems = [
        Problem(f"{name} is not installed", "pip install --upgrade onnxdecomp")
        for name, version in packages.items()
        if version is None
    ]
    broken = _broken_runtime(runtimes)
    problems += broken
    usable = not any("module" in problem.what for problem in broken) and bool(runtimes)
    starts: tuple[provider_start.Start, ...] = ()
    if usable:
        names = dict.fromkeys((*providers.listed(), *wanted))
        starts = tuple(provider_start.start(name) for name in names if providers.provider_of(name).local)
        problems += [
            Problem(f"{start.provider} does not start: {start.reason}{_needs(start.provider)}", start.remedy)
            for start in starts
            if not start.started
        ]
    nvidia = any(providers.provider_of(start.provider).on_cuda for start in starts)
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        cpu={"name": environment.cpu(), "cores": environment.cores(), "features": cpu_features()},
        packages=packages,
        runtimes=dict(sorted((each.name, each.version) for each in reversed(runtimes))),
        providers=starts,
        cuda={name: _library_found(name) for name in _CUDA} if nvidia else {},
        problems=tuple(problems),
    )


def _needs(provider: str) -> str:
    needs = providers.provider_of(provider).needs
    return f"; it needs {needs}" if needs else ""


def installed_runtimes(distributions: Any) -> tuple[Runtime, ...]:
    """Those distributions that bring ONNX Runtime, in the order in which Python looks for them."""
    found: dict[tuple[str, str], Runtime] = {}
    for distribution in distributions:
        name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"] or "")).lower()
        if name in RUNTIMES:
            folder = str(Path(str(distribution.locate_file(""))).resolve())
            found.setdefault((name, folder), Runtime(name, str(distribution.version), folder))
    return tuple(found.values())


def _broken_runtime(runtimes: Sequence[Runtime]) -> list[Problem]:
    distinct = sorted({runtime.name for runtime in runtimes})
    names = " ".join(distinct)
    best = next((name for name in distinct if name != "onnxruntime"), "onnxruntime")
    problems = []
    folders = tuple(dict.fromkeys(runtime.folder for runtime in runtimes))
    for folder in folders:
        together = sorted(runtime.name for runtime in runtimes if runtime.folder == folder)
        if len(together) > 1:
            problems.append(
                Problem(
                    f"{' and '.join(together)} are installed over each other; one hides the other",
                    f"pip uninstall -y {' '.join(together)} && pip install {best}",
                )
            )
    if len(folders) > 1:
        imported = _imported_folder()
        used, *others = (
            _listed(runtimes, folder) for folder in sorted(folders, key=lambda folder: folder != imported)
        )
        problems.append(
            Problem(
                f"{used} is imported, and not {' or '.join(others)}",
                "keep one: run pip uninstall with the Python whose folder it is, or shorten PYTHONPATH",
            )
        )
    if not runtimes:
        problems.append(Problem("ONNX Runtime is not installed", "pip install --upgrade onnxdecomp"))
        return problems
    reason = _import_failure()
    if reason:
        problems.append(
            Problem(
                f"the onnxruntime module {reason}",
                f"pip uninstall -y {names} && pip install {best}",
            )
        )
    return problems


def _imported_folder() -> str:
    """The folder that the module really comes from; "" where it cannot be imported."""
    try:
        import onnxruntime
    except ImportError:
        return ""
    file = getattr(onnxruntime, "__file__", None)
    return str(Path(file).resolve().parent.parent) if file else ""


def _listed(runtimes: Sequence[Runtime], folder: str) -> str:
    found = (f"{each.name} {each.version}" for each in runtimes if each.folder == folder)
    return f"{' with '.join(found)} in {folder}"


def _import_failure() -> str | None:
    try:
        import onnxruntime
    except ImportError as error:
        return f"cannot be imported: {error}"
    if not hasattr(onnxruntime, "InferenceSession"):
        # What is left of the folder still imports after the other distribution's files went with it.
        return "is empty: another distribution of it was removed"
    return None


def cpu_features(info: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The instruction sets that matter to inference, as Linux names them; () on other systems."""
    try:
        text = info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return tuple(flag for flag in _CPU_FLAGS if flag in flags)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _library_found(name: str) -> bool:
    """Whether the library is in NVIDIA's wheels or where the system's loader looks."""
    if name == "cuda":  # comes with the driver
        try:
            ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
        except OSError:
            return False
        return True
    for distribution in metadata.distributions():
        if str(distribution.metadata["Name"] or "").lower().startswith("nvidia-"):
            files = distribution.files or []
            if any(re.match(rf"(lib)?{name}(64)?[._]", file.name) for file in files):
                return True
    return ctypes.util.find_library(name) is not None
