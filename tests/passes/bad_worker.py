"""A simplifier's process that misbehaves as $BAD_WORKER says, or copies."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(tool: str, source: str, target: str) -> int:
    """Misbehave."""
    print("chatter on stdout")
    behaviour = os.environ["BAD_WORKER"]
    if behaviour == "fails for onnxsim only":
        behaviour = "error" if tool == "onnxsim" else "copy"
    if behaviour == "copy":
        shutil.copy(source, target)
        return 0
    if behaviour == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "hang":
        time.sleep(60)
    if behaviour == "error":
        print("ValueError: an honest error", file=sys.stderr)
        return 1
    if behaviour == "garbage":
        Path(target).write_bytes(b"\xff\xff not a model")
        return 0
    if behaviour == "silence":
        return 0
    import onnx

    result = onnx.load(source)
    graph = result.graph
    if behaviour == "renames output":
        graph.node[-1].output[0] = graph.output[0].name = "renamed"
    elif behaviour == "loses input":
        del graph.input[1]
    elif behaviour == "changes type":
        graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    elif behaviour == "raises opset":
        result.opset_import[0].version += 1
    elif behaviour == "adds operator":
        graph.node[-1].domain = "com.microsoft"
        result.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(result, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
