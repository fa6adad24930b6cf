"""The memory of a process and all that it has started, sampled while it runs."""

from __future__ import annotations

import threading

import psutil


class TreeMemory:
    """Samples the resident memory of a process and its descendants until it is stopped.

    Pages that two of them share count twice, and mapped files that were read count: it is an upper bound.
    """

    def __init__(self, pid: int, seconds: float = 0.05) -> None:
        self._process = psutil.Process(pid)
        self._seconds = seconds
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
        while not self._done.wait(self._seconds):
            total = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)
