"""The memory of a process and all that it has started, sampled while it runs."""

from __future__ import annotations

import threading

import psutil

_SAMPLE_SECONDS = 0.02


class TreeMemory:
    """Samples the resident memory of a process and its descendants until it is stopped.

    Of each descendant, `imports` bytes do not count. Pages that two of them share count twice, and mapped
    files that were read count: it is an upper bound.
    """

    def __init__(self, pid: int, imports: int = 0) -> None:
        self._process = psutil.Process(pid)
        self._imports = imports
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The highest sum seen, in bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            try:
                total = self._process.memory_info().rss
                children = self._process.children(recursive=True)
            except psutil.Error:
                return
            for process in children:
                try:
                    total += max(0, process.memory_info().rss - self._imports)
                except psutil.Error:
                    continue
            self._peak = max(self._peak, total)
