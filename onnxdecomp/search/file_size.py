"""Bytes: plans for a target of size, corrected by the files that they make, a few times over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from onnxdecomp.graph.save import save
from onnxdecomp.runtime import temporary_files
from onnxdecomp.search.knapsack import OutOfReach
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.select import Chosen

FILES = 4
"""Files that are made at most for one plan."""

_CLOSE = 0.97
"""A file that uses up this share of what is allowed is not improved on."""

_METADATA = 512
"""Bytes that are left for what is written into the model last: version, methods, the plan's hash."""


def file_size(model: ir.Model) -> int:
    """Bytes of the file that the model will be, with its external data."""
    with temporary_files.folder() as folder:
        save(model, folder / "model.onnx")
        return sum(file.stat().st_size for file in Path(folder).iterdir()) + _METADATA


def refine_by_size(
    choose: Callable[[float], Chosen | OutOfReach], made: Callable[[Plan], int], limit: float
) -> Chosen | OutOfReach:
    """The plan of least loss among those whose files were made and are small enough.

    Args:
        choose: The best plan where files need so many bytes more than is expected of them.
        made: Makes a plan's file and counts its bytes.
        limit: The most that they may be.

    Returns:
        The plan; or the least that was reached.
    """
    best: Chosen | None = None
    smallest, spare = float("inf"), 0.0
    seen: list[Plan] = []
    for _ in range(FILES):
        found = choose(spare)
        if isinstance(found, OutOfReach):
            if not seen:
                return found
            break
        if found.plan in seen:
            break
        seen.append(found.plan)
        size = made(found.plan)
        smallest = min(smallest, size)
        if size <= limit and (best is None or found.loss < best.loss):
            best = found
        if _CLOSE * limit <= size <= limit:
            break
        assert found.size is not None
        spare = size - found.size
    if best is not None:
        return best
    return OutOfReach(f"the smallest file that was made has {smallest:.0f} bytes", (smallest,))
