"""How much memory one step of the work may take: known before anything large is allocated."""

from __future__ import annotations

from pathlib import Path

_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of a control group's limit and use, of its second and its first version."""

_SHARE = 0.5
"""Of what is left: the rest is for what stands beside the step, and for other programs."""

KEPT = 512 << 20
"""Bytes that values may take together which are kept only to save time, as activations at a cut."""


def budget() -> int:
    """Bytes that a single step may allocate: half of what the machine, and limits on the process, leave."""
    return int(_SHARE * max(0, min([_machine(), *_limits()])))


def gibibytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.1f} GiB"


def _machine() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _limits() -> list[int]:
    """What a control group (of a container, say) and `ulimit -v` leave, where there are such limits."""
    left = [_read(limit) - _read(used) for limit, used in _GROUPS if _read(limit) and _read(used)]
    try:
        import resource

        import psutil

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            left.append(most - psutil.Process().memory_info().vms)
    except ImportError:  # Windows has none
        pass
    return left


def _read(path: str) -> int:
    """The number in a file; 0 where there is none ("max" is no limit)."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
