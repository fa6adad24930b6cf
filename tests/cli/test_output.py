"""What the commands print: results and nothing else on stdout, readable text, a complete record."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxdecomp.cli import show
from onnxdecomp.decompositions.registry import names
from onnxdecomp.record.text import count
from tests.builders import graphs
from tests.builders.commands import QUICK, arguments, command, environment, files, process
from tests.builders.feeds import samples
from tests.builders.models import network
from tests.builders.vit import vit
from tests.conftest import ROOT

Capsys = pytest.CaptureFixture[str]


def test_compress_says_what_it_did(model: Path, capsys: Capsys) -> None:
    data = samples(model.with_name("data.npz"))
    done = command(capsys, "compress", model, *QUICK, "--eval", data)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert any(re.match(r" c2 +Conv +tucker 4,4 +2\.3k -> \d+", line) for line in lines), done.out
    assert any(line.startswith("verify") and "3 samples" in line for line in lines)
    assert lines[-2].split() == ["wrote", "net.tucker.onnx"]
    assert lines[-1].split()[:4] == ["next", "onnxdecomp", "compress", str(model)]
    assert all(line == line.rstrip() for line in lines)
    assert files() == ["data.npz", "net.onnx", "net.tucker.onnx"]


def test_where_no_layer_is_looked_at_nothing_is_said_of_layers(model: Path, capsys: Capsys) -> None:
    """There are two convolutions; fewer bits alone are asked for, and they have no kernels for these."""
    done = command(capsys, "compress", model, "--method", "none", "--quantize", "int8-dynamic", "--no-bench")
    assert done.code == 0, done.err
    assert not re.search("^(no layer|layers)", done.out, re.M)
    assert "parameters 0" not in done.out
    assert "file" in done.out


def test_the_name_of_the_output_follows_the_method(model: Path, capsys: Capsys) -> None:
    elsewhere = model.with_name("elsewhere")
    elsewhere.mkdir()
    network(elsewhere / "other.onnx")
    config = model.with_name("pipeline.toml")
    config.write_text('[decompose]\nmethod = "svd"\nrank = "2"\n')
    for given, name in (
        (("--method", "tt", "--rank", "2,2"), "other.tt.onnx"),
        (("--config", config), "other.svd.onnx"),
        (("--method", "cp,svd", "--rank", "3"), "other.cp-svd.onnx"),
    ):
        line = (
            "compress",
            elsewhere / "other.onnx",
            "--simplify",
            "none",
            "--no-bench",
            "--no-verify",
            *given,
        )
        assert command(capsys, *line).code == 0
        assert Path(name).is_file()
    assert files(elsewhere) == ["other.onnx"]


def test_what_is_given_wins_over_the_configuration_and_defaults_do_not(model: Path, capsys: Capsys) -> None:
    config = model.with_name("pipeline.toml")
    config.write_text('pipeline = ["decompose"]\n[decompose]\nmethod = "svd"\nrank = "2"\nseed = 7\n')
    line = ("compress", model, "--config", config, "--dry-run", "--json", "-")
    layers = json.loads(command(capsys, *line).out)["layers"]
    assert [(layer["method"], layer["ranks"]) for layer in layers] == [("svd", [2])] * 2
    layers = json.loads(command(capsys, *line, "--rank", "3").out)["layers"]
    assert [(layer["method"], layer["ranks"]) for layer in layers] == [("svd", [3])] * 2


def test_rules_for_layers(model: Path, capsys: Capsys) -> None:
    rules = ("--layer", "c1=keep", "--layer", "c*=svd:rank=3")
    layers = json.loads(command(capsys, "inspect", model, *rules, "--json", "-").out)["layers"]
    assert [(layer["method"], layer["ranks"]) for layer in layers] == [(None, []), ("svd", [3])]


def test_dry_run_and_inspect_write_nothing(model: Path, capsys: Capsys) -> None:
    for line in (("compress", model, *QUICK, "--dry-run"), ("inspect", model, "--rank", "4")):
        done = command(capsys, *line)
        assert (done.code, done.err) == (0, "")
        assert "16x16x3x3" in done.out
        assert "2 of 2 would be decomposed" in done.out
        assert files() == ["net.onnx"]


def test_why_layers_are_kept(model: Path, capsys: Capsys) -> None:
    done = command(capsys, "inspect", model, "--rank", "1.0")
    assert "0 of 2 decomposed" in done.out
    assert sum(line.startswith("kept ") for line in done.out.splitlines()) == 2
    assert "c1: tucker at ranks 16, 8" in done.out


def test_repeated_blocks_have_a_row_together(tmp_path: Path, capsys: Capsys) -> None:
    onnx.save(vit(), tmp_path / "vit.onnx")
    line = ("inspect", tmp_path / "vit.onnx", "--method", "width,svd", "--rank", "0.5")
    lines = command(capsys, *line).out.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) < 200
    rows = [row.split() for row in lines]
    assert ["/MatMul_*", "MatMul", "12", "64x32", "?x17x32"] in [row[:5] for row in rows]
    assert sum(int(row[2]) for row in rows if row[1:2] in (["MatMul"], ["Gemm"], ["Conv"])) == 98
    assert sum("kept" in row[:1] for row in rows) <= 2
    assert "24 of /MatMul_*: no operand is constant" in "\n".join(lines)
    every = command(capsys, *line, "--all-layers").out.splitlines()
    assert sum(row.startswith((" /MatMul_", " /Conv", " /Gemm")) for row in every) == 98 + 48


def test_many_layers_that_all_stay_are_not_listed(
    model: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a copy the reasons say it."""
    monkeypatch.setattr(show, "_FEW", 1)
    line = ("compress", model, "--rank", "1.0", "--no-bench", "--overwrite")
    for every in (False, True):
        lines = command(capsys, *line, *(("--all-layers",) if every else ())).out.splitlines()
        assert any(line.startswith("layers") and "0 of 2" in line for line in lines)
        assert sum(line.startswith((" c1 ", " c2 ")) for line in lines) == 2 * every
        assert any("--all-layers lists them" in line for line in lines) != every
        assert any(line.startswith("kept ") for line in lines)


RECORD = {
    "schema_version": 1,
    "kind": None,
    "tool": {"name", "version"},
    "environment": {
        *("onnxruntime", "provider_requested", "provider_used", "device", "threads", "platform", "versions"),
    },
    "run": {"command", "started", "seconds", "seed", "request", "data"},
    "model": {"path", "sha256", "bytes", "opset", "ir_version"},
    "output": {"path", "sha256", "bytes"},
    "plan": {"version", "repair", "choices"},
    "search": None,
    "layers": None,
    "totals": {"params", "macs", "bytes", "layers"},
    "training": None,
    "verify": None,
    "latency": {
        *("provider", "threads", "batch", "shapes", "inputs", "original", "compressed", "speedup"),
    },
    "demand": None,
    "looks": None,
    "settings": None,
    "profile": {"unit", "before", "after"},
    "notes": None,
    "passes": None,
    "verdict": {
        *(
            "worth",
            "text",
            "because",
            "speedup",
            "smaller",
            "fewer_params",
            "fewer_macs",
            "accuracy",
            "error",
        ),
    },
}
"""The record's keys, and theirs."""


def test_the_record(model: Path, capsys: Capsys) -> None:
    import hashlib

    line = ("compress", model, "-o", "out.onnx", "--simplify", "none", "--rank", "4", "--threads", "1")
    done = command(capsys, *line, "--json", "run.json")
    assert done.code == 0
    record = json.loads(Path("run.json").read_text(encoding="utf-8"))
    assert set(record) == set(RECORD)
    for key, inner in RECORD.items():
        if isinstance(inner, set):
            assert set(record[key]) == inner, key
    assert record["schema_version"] == RECORD["schema_version"]
    assert (record["environment"]["provider_requested"], record["environment"]["provider_used"]) == (
        "cpu",
    ) * 2
    assert re.match(r"\d+\.\d+", record["environment"]["onnxruntime"])
    for part, path in (("model", model), ("output", Path("out.onnx"))):
        content = path.read_bytes()
        assert record[part]["path"] == str(path)
        assert record[part]["sha256"] == hashlib.sha256(content).hexdigest()
        assert record[part]["bytes"] == len(content)
    first = record["layers"][0]
    details = {"latency_ms": None, "spectra": None, "nodes": None}
    assert [entry["name"] for entry in first["spectra"]] == ["out", "in"]
    assert first["nodes"]["after"][-1]["name"] == "c1"
    assert record["run"]["command"] == shlex.join(("onnxdecomp", *map(str, line), "--json", "run.json"))
    assert first | {"rel_error": 0, "lowering": 0} | details == {
        **details,
        "loss": None,
        "repaired": False,
        "name": "c1",
        "graph": "",
        "op": "Conv",
        "status": "decomposed",
        "reason": "",
        "method": "tucker",
        "options": first["options"],
        "ranks": [4, 4],
        "rel_error": 0,
        "lowering": 0,
        "params": {"before": 16 * 8 * 9, "after": 8 * 4 + 4 * 4 * 9 + 4 * 16},
        "macs": {"before": 64 * 16 * 8 * 9, "after": 64 * (8 * 4 + 4 * 4 * 9 + 4 * 16)},
        "weight": [16, 8, 3, 3],
        "input": ["N", 8, 8, 8],
    }
    assert 0 < first["rel_error"] < 1
    assert record["totals"]["params"]["after"] < record["totals"]["params"]["before"] == 16 * 24 * 9
    assert record["verify"]["status"] == "passed"
    assert (record["verify"]["original"], record["verify"]["new"]) == (str(model), "out.onnx")
    latency = record["latency"]
    for who in ("original", "compressed"):
        assert latency[who]["unit"] == "ms"
        assert set(latency[who]) >= {"count", "mean", "stdev", "p50", "p90", "p95", "p99"}
        assert latency[who]["p50"] <= latency[who]["p99"]
    assert latency["speedup"]["low"] <= latency["speedup"]["value"] <= latency["speedup"]["high"]
    documented = (ROOT / "docs" / "reference" / "record.md").read_text(encoding="utf-8")
    keys = {*RECORD, *(key for inner in RECORD.values() if isinstance(inner, set) for key in inner), *first}
    assert [key for key in sorted(keys) if f"`{key}`" not in documented] == []


def test_json_alone_on_stdout(model: Path) -> None:
    # With the simplifiers, the runtime's messages and the bench: all that could print.
    for line in (("compress", model, "--rank", "4"), ("doctor",)):
        done = process(*line, "--json", "-", cwd=model.parent)
        assert done.code == 0, done
        assert isinstance(json.loads(done.out), dict)
        assert done.err == ""


def test_what_libraries_print_does_not_reach_stdout() -> None:
    program = """
import ctypes, logging, os, sys, warnings
from onnxdecomp.cli import console
from onnxdecomp.cli import process
with process.quiet(enabled=True), console.progress("working"):
    print("from Python")
    os.write(1, b"from a descriptor\\n")
    ctypes.CDLL(None).puts(b"from C")
    warnings.warn("a warning")
    logging.getLogger("onnx_ir").warning("a log line")
print("result")
"""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    assert sorted(done.stderr.splitlines()) == ["from C", "from Python", "from a descriptor"]


def test_an_unfinished_json_file_is_not_left(model: Path, capsys: Capsys, monkeypatch: Any) -> None:
    Path("run.json").write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    command(capsys, "inspect", model, "--json", "run.json").is_error(2, "run.json", "No space left")
    assert files() == ["net.onnx", "run.json"]
    assert Path("run.json").read_text() == "before"


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        (("inspect", "net.onnx"), {"model", "plan", "layers", "totals"}),
        (("verify", "net.onnx", "net.onnx"), {"status", "outputs", "rel_l2"}),
        (("bench", "net.onnx", "--iterations", "5", "--no-memory"), {"settings", "inputs"}),
        (("passes",), {"default", "passes"}),
    ],
)
def test_json_of_the_other_commands(
    line: tuple[str, ...], keys: set[str], model: Path, capsys: Capsys
) -> None:
    plain = command(capsys, *line)
    assert plain.code == 0
    done = command(capsys, *line, "--json", "-")
    assert (done.code, done.err) == (0, "")
    assert set(json.loads(done.out)) >= keys
    both = command(capsys, *line, "--json", "out.json")
    assert both.out.split()[:3] == plain.out.split()[:3]
    assert set(json.loads(Path("out.json").read_text(encoding="utf-8"))) >= keys


def test_verify_says_failed(model: Path, capsys: Capsys) -> None:
    assert command(capsys, "compress", model, *QUICK, "-o", "out.onnx").code == 0
    done = command(capsys, "verify", model, "out.onnx", "--max-error", "1e-3")
    assert done.code == 1
    assert "FAILED" in done.out
    assert done.err.startswith("onnxdecomp: error: verification failed: the error ")
    done = command(capsys, "verify", model, model)
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("PASSED")


def test_methods_lists_every_method(capsys: Capsys) -> None:
    done = command(capsys, "methods")
    every = [*names(), "width", "attention"]
    assert [line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")] == every
    assert [entry["name"] for entry in json.loads(command(capsys, "methods", "--json", "-").out)] == every


def test_passes_lists_the_default_pipeline(capsys: Capsys) -> None:
    done = command(capsys, "passes")
    assert (
        done.out.splitlines()[-1]
        == "default pipeline: simplify, normalise, decompose, refine, merge, quantize, annotate, check"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal(width: int, model: Path) -> None:
    import fcntl
    import struct
    import termios

    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    line = arguments("compress", model, *QUICK)
    env = {**environment(), "TERM": "xterm-256color"}
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        env.pop(name, None)
    with subprocess.Popen(line, cwd=model.parent, env=env, stdout=terminal, stderr=terminal) as running:
        os.close(terminal)
        seen = bytearray()
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux' way of saying that the other side was closed
                break
            if not part:
                break
            seen += part
    os.close(master)
    assert running.returncode == 0
    raw = seen.decode()
    assert "\x1b[" in raw  # the progress bar and the table's style
    bar, _, result = raw.rpartition("\x1b[?25h")  # the bar ends where the cursor is shown again
    assert "decompose" in bar
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result).replace("\r", "")
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for word in ("c1", "c2", "tucker", "4,4", "parameters", "MACs", "weight error", "net.tucker.onnx"):
        assert word in text
    if width == 120:
        assert re.search(r"^ c2 +Conv +tucker 4,4 +2\.3k -> 272 ", text, re.MULTILINE)


def test_counts() -> None:
    assert [count(n) for n in (0, 999, 1000, 1234, 99_960, 999_600, 1.5e9)] == [
        *("0", "999", "1k", "1.23k", "100k", "1M", "1.5G"),
    ]
    assert count(2_150_000, "B") == "2.15 MB"
    assert count(12, "B") == "12 B"


def test_of_several_outputs_the_worst_is_told(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large output that stays hides in the error of all together what a small one loses."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((16, 16)).astype(np.float32), "ten": np.full(1, 100, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["mask"], name="layer"),
        helper.make_node("Mul", ["x", "ten"], ["state"], name="state"),
    ]
    onnx.save(graphs.model(nodes, {"x": [1, 16]}, ["mask", "state"], weights), "net.onnx")
    line = ("compress", "net.onnx", "-o", "out.onnx", "--simplify", "none", "--no-bench")
    told = " ".join(command(capsys, *line, "--method", "svd", "--rank", "4").out.split())
    found = re.search(r"relative L2 error ([\d.]+), of mask ([\d.]+), over", told)
    assert found is not None, told
    assert 10 * float(found[1]) < float(found[2])
