"""What is the process's own: threads that change it for a while leave it as it was."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import onnxdecomp
from onnxdecomp.cli import console, process
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.latency import cache
from onnxdecomp.quantization.files import silent
from onnxdecomp.runtime import process_state, provider_start
from tests.builders.commands import environment
from tests.builders.models import network

Scope = Callable[[], AbstractContextManager[Any]]

SCOPES: dict[str, Scope] = {
    "a library's logger": lambda: process_state.quiet_logger("onnx_ir"),
    "all logging": lambda: process_state.quiet_logging("onnxruntime"),
    "warnings": process_state.no_warnings,
    "stdout": process_state.no_stdout,
    "a session": lambda: provider_start.quiet("cpu"),
    "a session elsewhere": lambda: provider_start.quiet("dml"),
    "a tool": silent,
    "a command": lambda: process.quiet(enabled=True),
    "progress": lambda: console.progress("working"),
}


def state() -> dict[str, Any]:
    """What overlapping calls are known to have left behind, in this or another library."""
    root = logging.getLogger()
    loggers = ("", "onnx_ir", "onnxruntime", "onnxscript")
    return {
        "levels": [logging.getLogger(name).level for name in loggers],
        "handlers": (list(root.handlers), list(root.filters), root.manager.disable),
        "streams": (sys.stdout, sys.stderr),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "path": list(sys.path),
        "blas": {entry["filepath"]: entry["num_threads"] for entry in threadpool_info()},
    }


@pytest.mark.parametrize("name", SCOPES)
def test_overlapping_scopes(name: str) -> None:
    before = state()
    scope, inside, left = SCOPES[name], threading.Event(), threading.Event()

    def second() -> None:
        with scope():
            inside.set()
            assert left.wait(10)

    # The first in is the first out: each would restore what it found.
    with ThreadPoolExecutor(1) as pool:
        with scope():
            running = pool.submit(second)
            assert inside.wait(10)
            changed = state()
        during = state()
        left.set()
        running.result()
    assert changed != before or name == "a session"  # ONNX Runtime's own logger cannot be asked
    assert during == changed
    assert state() == before


def test_a_change_that_fails_leaves_nothing() -> None:
    def change() -> process_state.Undo:
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError), process_state.shared("nothing", change):  # noqa: PT011
            pass
    done = []
    with pytest.raises(KeyError), process_state.shared("nothing", lambda: lambda: done.append(True)):
        raise KeyError
    assert done == [True]


def test_other_threads_still_print_and_log(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(log)

    def speak(who: str) -> None:
        print(who)
        logging.getLogger().error(who)
        logging.getLogger("somebody.else").error(who)

    try:
        with process_state.no_stdout(), silent(), ThreadPoolExecutor(1) as pool:
            speak("ours")
            logging.getLogger("onnxruntime.quantization").error("a tool")
            pool.submit(speak, "theirs").result()
    finally:
        logging.getLogger().removeHandler(log)
    assert capsys.readouterr().out == "theirs\n"
    assert log.stream.getvalue().split() == ["ours", "theirs", "theirs"]  # "ours" by a logger of its own


def test_one_at_a_time() -> None:
    inside: list[int] = []

    def work(_: int) -> int:
        with process_state.alone("a test"), process_state.alone("a test"):
            inside.append(1)
            most = len(inside)
            threading.Event().wait(0.001)
            inside.pop()
            return most

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(16))) == 1


def test_eight_threads_compress_eight_models(tmp_path: Path) -> None:
    """The bytes that come out are those of serial runs, and the process is as before."""
    kinds: list[dict[str, Any]] = [
        {"method": "tucker", "rank": "4"},
        {"method": "svd", "rank": "0.5", "quantize": "fp16"},
        {"method": "svd", "target": "macs=1.5x"},
        {"method": "cp", "rank": "2", "calib": "data"},
        {"method": "svd", "target": "params=1.5x", "calib": "data"},
        {"method": "tt", "rank": "0.5", "simplify": "onnxscript"},
        {"method": "tucker", "rank": "0.5", "calib": "data", "quantize": "int8"},
        {"method": "spatial", "rank": "0.5"},
    ]
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((6, 8, 8, 8), np.float32))
    models = [network(tmp_path / f"{index}.onnx", channels=8 + index) for index in range(len(kinds))]

    def run(index: int, folder: Path) -> bytes:
        options = {"simplify": "none", **kinds[index]}
        if "calib" in options:
            options["calib"] = tmp_path / "data.npz"
        folder.mkdir(exist_ok=True)
        file = folder / f"{index}.onnx"
        onnxdecomp.compress(models[index], file, bench=False, threads=1, **options)
        return file.read_bytes()

    first = state()
    serial = [run(index, tmp_path / "serial") for index in range(len(kinds))]
    before = state()  # of warnings and BLAS there may be more: SciPy is imported by now
    assert {**before, "warnings": 0, "blas": 0} == {**first, "warnings": 0, "blas": 0}
    with ThreadPoolExecutor(len(kinds)) as pool:
        runs = [pool.submit(run, index, tmp_path / "parallel") for index in range(len(kinds))]
        parallel = [running.result() for running in runs]
    assert [a == b for a, b in zip(serial, parallel, strict=True)] == [True] * len(kinds)
    assert state() == before


def test_one_model_in_several_threads(tmp_path: Path) -> None:
    model = load(network(tmp_path / "net.onnx"))

    def run(_: int) -> Any:
        done = onnxdecomp.compress(model, method="tucker", rank="4", simplify="none", bench=False, threads=1)
        return done.record["verify"]["outputs"]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    assert len(results) == 4
    assert all(result == results[0] for result in results)


def test_the_tools_of_onnx_runtime_load_in_any_order() -> None:
    program = """
import subprocess
import sys
before = list(sys.path)
from onnxdecomp.quantization.files import load_tools
load_tools()
assert sys.path == before
from onnxdecomp.quantization.int8 import operators
assert "Conv" in operators()
assert sys.path == before
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=120)


def test_two_writers_of_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and its data are one writer's, whoever was last."""
    rename, rng = Path.replace, np.random.default_rng(0)

    def slowly(self: Path, to: Path) -> Path:
        done = rename(self, to)
        time.sleep(float(rng.uniform(0, 0.02)))  # the others go on meanwhile
        return done

    monkeypatch.setattr(Path, "replace", slowly)
    target = tmp_path / "m.onnx"
    models = [load(network(tmp_path / f"{size}.onnx", channels=size)) for size in (16, 20, 24, 28)]

    def write(model: Any) -> None:
        save(model, target, overwrite=True, external=True)

    def weights_of(model: Any) -> dict[str, Any]:
        return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}

    written = [weights_of(model) for model in models]
    whole = []
    for _ in range(8):
        with ThreadPoolExecutor(len(models)) as pool:
            for done in [pool.submit(write, model) for model in models]:
                done.result()
        weights = weights_of(load(target))
        whole.append(any(all(np.array_equal(weights[n], own[n]) for n in own) for own in written))
    assert whole == [True] * 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "m"))) == [
        "m.onnx",
        "m.onnx.data",
    ]


def test_two_processes_with_one_cache_of_timings(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from onnxdecomp.latency.cache import Stored, load, store
file, own = Path(sys.argv[1]), sys.argv[2]
for index in range(20):
    assert store({f"{own}-{index}": Stored(index, 0.5), "both": Stored(1.0, 1.0)}, file) is None
    assert load(["both"], file) == ({"both": Stored(1.0, 1.0)}, None)
"""
    file = tmp_path / "new" / "timings.sqlite"
    line = [sys.executable, "-c", program, str(file)]
    running = [subprocess.Popen([*line, name], env=environment()) for name in ("one", "two")]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    found, note = cache.load([f"{name}-{index}" for name in ("one", "two") for index in range(20)], file)
    assert (len(found), note) == (40, None)
