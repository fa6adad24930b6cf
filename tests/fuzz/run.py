"""A case in a process of its own, forked from one that has imported all, and what is wrong with its end."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tests.fuzz.models import Array, bases
from tests.fuzz.mutations import damaged, pick

TIMEOUT_S = 60
"""Seconds of the processor's time that a case may take."""
_MEMORY = 6 << 30
_HANGS = (signal.SIGALRM, signal.SIGPROF)
_PATIENCE = 5
"""A case may take so many times its limit by the clock, for other work may go on beside it."""
_LONG_S = 20
"""Seconds after which a run of one small input counts as endless."""
_CODES = {"inspect": {0, 2, 3}, "verify": {0, 1, 2, 3}, "compress": {0, 1, 2, 3}}

_METHODS = (
    "svd",
    "auto",
    "tucker",
    "tucker",
    "cp",
    "tt",
    "tr",
    "ht",
    "spatial",
    "kronecker",
    "btt",
    "tproduct",
    "btd",
)
_NUMBERS = (
    ("--rank", "0.5"),
    ("--rank", "0.5"),
    ("--rank", "0.5", "--must-save", "none"),
    ("--rank", "0.5", "--must-save", "none", "--requantize"),
    ("--rank", "3"),
    ("--rank", "energy=0.9"),
    ("--target", "macs=1.3x"),
    ("--target", "error=0.3"),
    ("--target", "params=1.2x"),
)
_MORE = (
    (),
    (),
    (),
    ("--no-verify",),
    ("--quantize", "fp16"),
    ("--max-error", "0.9"),
    ("--freeze-initializers",),
)
_WITH_DATA = (
    ("--calib", "calib.npz"),
    ("--eval", "calib.npz"),
    ("--calib", "calib.npz", "--quantize", "int8"),
)


@dataclass(frozen=True)
class Case:
    """Files, and the command that is run on them.

    Attributes:
        name: How it was made.
        files: By name.
        inputs: Of calib.npz, none where there are none.
        line: The command's arguments.
    """

    name: str
    files: dict[str, bytes]
    inputs: dict[str, Array]
    line: tuple[str, ...]


def case(seed: int, number: int) -> Case:
    """The case of this number."""
    rng = np.random.default_rng((seed, number))
    base = pick(rng, bases())
    files, done = damaged(base.files, rng)
    inputs = dict(base.inputs)
    what = rng.random()
    line: tuple[str, ...]
    if what < 0.12:
        line = ("inspect", "m.onnx", "--method", pick(rng, _METHODS))
    elif what < 0.18:
        files |= {f"good/{name}": content for name, content in base.files.items()}
        line = ("verify", *pick(rng, (("m.onnx", "good/m.onnx"), ("good/m.onnx", "m.onnx"))))
    else:
        numbers = pick(rng, _NUMBERS)
        method = "auto" if numbers[0] == "--target" and rng.random() < 0.1 else pick(rng, _METHODS)
        if numbers[0] == "--target" and method not in ("auto", "cp"):
            method = "svd"
        more = pick(rng, _WITH_DATA) if inputs and rng.random() < 0.35 else pick(rng, _MORE)
        tool = pick(rng, ("onnxsim", "onnxscript")) if rng.random() < 0.03 else "none"
        target = pick(rng, (("-o", "out.onnx"),) * 5 + (("-o", "m.onnx", "--overwrite"),))
        line = ("compress", "m.onnx", *target, "--simplify", tool, "--no-bench", "--threads", "1")
        line += ("--method", method, *numbers, *more)
    return Case(f"{base.name}: {done}", files, inputs, line)


def warm_up() -> None:
    """Import what commands import, so that forked processes need not. No thread may start here."""
    import importlib
    import pkgutil

    import onnxdecomp_passes

    import onnxdecomp

    for package in (onnxdecomp, onnxdecomp_passes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(
                ("onnxdecomp.training", "onnxdecomp.report", "onnxdecomp.integrations")
            ):
                importlib.import_module(module.name)
    from onnxdecomp.quantization.files import load_tools

    load_tools()
    import onnxscript.version_converter  # noqa: F401
    import scipy.linalg  # noqa: F401

    bases()
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Outcome:
    """How a case ended: the exit code (negative: the signal that ended it), what it wrote, what is wrong."""

    code: int
    err: str
    wrong: tuple[str, ...]


def run(wanted: Case, *, timeout: int = TIMEOUT_S) -> Outcome:
    """Run a case in a forked process and judge it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder, out, err, said = (Path(place) / name for name in ("work", "out", "err", "said"))
        _write(wanted, folder)
        before = _content(folder)
        child = os.fork()
        if not child:
            _child(wanted, folder, out, err, said, timeout)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        text = err.read_text(encoding="utf-8", errors="replace") if err.exists() else ""
        result = json.loads(said.read_text()) if said.exists() else {}
        after = _content(folder)
        if -code in _HANGS and _endless(folder / "m.onnx"):
            return Outcome(code, text, ())
        words = _wrong_words(wanted, code, text)
        return Outcome(code, text, (*words, *_wrong_files(wanted, code, text, before, after, result)))


def _write(wanted: Case, folder: Path) -> None:
    for name, content in wanted.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if wanted.inputs:
        np.savez(folder / "calib.npz", **wanted.inputs)  # type: ignore[arg-type]


def _content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def _child(wanted: Case, folder: Path, out: Path, err: Path, said: Path, timeout: int) -> None:
    """Run the command; never returns."""
    code = 70
    try:
        os.chdir(folder)
        for stream, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600), stream)
        sys.stdin = io.StringIO()
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in _HANGS:
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, timeout)
        signal.alarm(_PATIENCE * timeout)
        faulthandler.dump_traceback_later(_PATIENCE * timeout - 5, file=sys.stderr)
        valid = _survived(Path("m.onnx")) if wanted.line[0] == "compress" else {}
        code = _command(wanted.line)
        faulthandler.cancel_dump_traceback_later()
        made = Path(wanted.line[wanted.line.index("-o") + 1]) if valid else None
        if made is not None and code == 0:
            said.write_text(json.dumps({"before": valid, "after": _valid(made)}))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _endless(model: Path) -> bool:
    """Whether ONNX Runtime itself does not come to an end with the model: damage may make a loop of years."""
    child = os.fork()
    if not child:
        for number in _HANGS:
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, _LONG_S)
        signal.alarm(_PATIENCE * _LONG_S)
        with contextlib.suppress(BaseException), _quiet():
            _command(("verify", str(model), str(model)))
        os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in _HANGS


def _command(line: tuple[str, ...]) -> int:
    from onnxdecomp.cli.main import main

    try:
        main(list(line))
    except SystemExit as done:
        return int(done.code or 0)


def _survived(model: Path) -> dict[str, bool]:
    """What `_valid` says, from a process of its own: neither takes a model that ends them."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps(_valid(model)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return json.loads(said.read() or "{}") or dict.fromkeys(("checker", "runtime"), False)


def _valid(model: Path) -> dict[str, bool]:
    """Whether onnx's checker and ONNX Runtime take a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    found = {}
    with _quiet():
        try:
            onnx.checker.check_model(str(model))
            found["checker"] = True
        except Exception:
            found["checker"] = False
        try:
            ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            found["runtime"] = True
        except Exception:
            found["runtime"] = False
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What checkers print is not the command's."""
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def _wrong_words(wanted: Case, code: int, err: str) -> Iterator[str]:
    """What is wrong with the exit code, and with what was said."""
    if -code in _HANGS:
        yield "hang"
    elif code < 0:
        yield f"killed by signal {-code}"
    elif code not in _CODES[wanted.line[0]]:
        yield f"exit code {code}"
    if "Traceback" in err:
        yield "traceback"
    if "a bug" in err:
        yield "it says that it is a bug"
    lines = err.splitlines()
    if any(not line.startswith(("note: ", "onnxdecomp: error: ")) for line in lines):
        yield "noise on stderr"
    errors = [line for line in lines if line.startswith("onnxdecomp: error: ")]
    if code > 0 and (len(errors) != 1 or lines[-1:] != errors):
        yield "no single line that says what is wrong"
    if any(len(line) > 1500 for line in errors):
        yield "a long line"


def _wrong_files(
    wanted: Case,
    code: int,
    err: str,
    before: dict[str, bytes],
    after: dict[str, bytes],
    said: dict[str, dict[str, bool]],
) -> Iterator[str]:
    """What is wrong with the files that are there afterwards."""
    named = wanted.line[wanted.line.index("-o") + 1] if wanted.line[0] == "compress" else ""
    outputs = {named, f"{named}.data"} if named and code == 0 else set()
    if code == 0 and named and named not in after:
        yield "no output"
    if extra := sorted(set(after) - set(before) - outputs):
        yield f"left behind: {', '.join(extra)}"
    if any(after.get(name) != content for name, content in before.items() if name not in outputs):
        yield "an input was changed"
    for who in ("checker", "runtime"):
        told = who == "checker" and "checker objects" in err  # a note says so
        if said and said["before"][who] and not said["after"][who] and not told:
            yield f"{who} takes the input, not the output"


def keep(wanted: Case, outcome: Outcome, folder: Path) -> None:
    """Write a case down, to be looked at."""
    shutil.rmtree(folder, ignore_errors=True)
    _write(wanted, folder)
    text = "\n".join((wanted.name, "onnxdecomp " + " ".join(wanted.line), *outcome.wrong, outcome.err))
    (folder / "find.txt").write_text(text, encoding="utf-8")
