"""How much memory a model needs: the growth of the peak resident set of a fresh process that runs it.

The growth counts weights (also mapped ones that were touched), activations and the provider's own
buffers, but not Python, NumPy and ONNX Runtime, which are loaded before the count begins. Memory on a
device is not seen.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.runtime import temporary_files


def peak_growth(
    model: Path,
    feed: Mapping[str, Array],
    *,
    provider: str = "cpu",
    threads: int = 1,
    runs: int = 3,
    timeout: float = 300,
) -> int | None:
    """Bytes by which a fresh process's peak grows as it loads and runs the model; None if it fails."""
    with temporary_files.folder() as folder:
        inputs = folder / "feed.npz"
        names = list(feed)
        np.savez(inputs, **{f"input_{k}": feed[name] for k, name in enumerate(names)})  # type: ignore[arg-type]
        request = {
            "model": str(model),
            "inputs": str(inputs),
            "names": names,
            "provider": provider,
            "threads": threads,
            "runs": runs,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=True,
                # The child must find this package wherever the parent found it.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            return int(json.loads(done.stdout)["bytes"])
        except (subprocess.SubprocessError, OSError, ValueError, KeyError):
            return None


def peak() -> int:
    """Peak resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would start from the parent's peak here, since it survives exec.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    if (peak := getattr(info, "peak_wset", None)) is not None:  # Windows
        return int(peak)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS: bytes


def give_back() -> None:
    """Return freed memory to the system.

    glibc keeps blocks of up to 32 MB for later once it has seen such come and go: as many bytes as a model
    has, after a session that is closed.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _child() -> None:
    from onnxdecomp.runtime.session import open_session, run

    request = json.load(sys.stdin)
    with np.load(request["inputs"], allow_pickle=True) as archive:  # written by the parent
        feed = {name: archive[f"input_{k}"] for k, name in enumerate(request["names"])}
    import onnxruntime  # noqa: F401  (not to be counted)

    before = peak()
    session = open_session(request["model"], provider=request["provider"], threads=request["threads"])
    for _ in range(request["runs"]):
        run(session, feed)
    print(json.dumps({"bytes": peak() - before}))


if __name__ == "__main__":
    _child()
