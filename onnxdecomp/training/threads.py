"""torch's threads, which belong to the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onnxdecomp.runtime.process_state import Undo, shared


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many threads for torch, and as many as before afterwards; None is as torch has it."""

    def change() -> Undo:
        before = torch.get_num_threads()
        if count is not None:
            torch.set_num_threads(count)
        return lambda: torch.set_num_threads(before)

    with shared("torch's threads", change):
        yield
