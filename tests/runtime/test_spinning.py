from __future__ import annotations

import time

import numpy as np
import onnxruntime
import pytest

from onnxdecomp.runtime.session import open_session
from onnxdecomp.runtime.spinning import Idling, idling_of, pause
from tests.builders.models import scores


@pytest.mark.parametrize(
    ("threads", "sessions", "version", "expected"),
    [
        (1, 5, "1.31.1", "spin"),
        (2, 1, "1.31.1", "spin"),
        (2, 2, "1.31.1", "spin briefly"),
        (0, 2, "2.0.0", "spin briefly"),
        (2, 2, "1.25.1", "sleep"),
    ],
)
def test_only_sessions_of_several_threads_disturb_each_other(
    threads: int, sessions: int, version: str, expected: Idling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert idling_of(threads, sessions) == expected


@pytest.mark.parametrize("idling", ["spin briefly", "sleep"])
def test_threads_sleep_after_the_pause(idling: Idling) -> None:
    session = open_session(scores(np.eye(512)).SerializeToString(), threads=2, idling=idling)
    feed = {"x": np.ones((256, 512), np.float32)}

    def spent() -> float:
        """Of the processor's time, by the session's threads in 100 ms after the pause."""
        session.run(None, feed)
        time.sleep(pause(idling))
        began = time.process_time()
        time.sleep(0.1)
        return time.process_time() - began

    assert min(spent() for _ in range(5)) < 0.005
