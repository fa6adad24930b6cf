"""How idle threads wait, where the sessions of several models are timed in turns.

A thread of ONNX Runtime that has no work spins for some milliseconds before it sleeps, for waking it
would cost more than a small operator takes. That is how models are deployed, and so how they must be timed.
But with several sessions the spinning threads of one take the cores of the next. So there they spin for a
short time only, enough from one operator to the next, and a pause that is longer comes before each turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import onnxruntime as ort

Idling: TypeAlias = Literal["spin", "spin briefly", "sleep"]

_BRIEFLY_US = 300
_PAUSE = 1e-3
"""Seconds; threads have been seen to spin for twice as long as they were told."""
_SINCE = (1, 26)
"""The release of ONNX Runtime from which on the time can be set."""


def idling_of(threads: int, sessions: int) -> Idling:
    """How idle threads wait where so many sessions, of so many threads each, run in turns."""
    import onnxruntime

    if threads == 1 or sessions == 1:
        return "spin"
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    return "spin briefly" if version >= _SINCE else "sleep"


def set_idling(options: ort.SessionOptions, idling: Idling) -> None:
    """Have a session's idle threads wait so."""
    if idling == "sleep":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif idling == "spin briefly":
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_BRIEFLY_US))


def pause(idling: Idling) -> float:
    """Seconds after which threads that wait so are asleep, where that is worth waiting for."""
    return _PAUSE if idling == "spin briefly" else 0.0
