"""Every pair of `compress`'s keywords ends as documented, and what the record says is true of the file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from allpairspy import AllPairs  # type: ignore[import-untyped]
from onnx import TensorProto, helper

import onnxdecomp
from onnxdecomp.core.options import option_fields
from onnxdecomp.errors import GateError, OnnxDecompError, UnchangedError, UsageError
from onnxdecomp.runtime.session import inputs_of, open_session, outputs_of
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.result import Result
from tests.builders import graphs
from tests.builders.commands import files
from tests.builders.training import refine_briefly

SEARCHES = ("error=0.4", "params=1.1x", "drop=0.9")
WAYS: dict[str, dict[str, Any]] = {
    "max_error": {},
    "rank": {"rank": "0.25"},
    "energy": {"rank": "energy=0.8"},
    "rules": {"layers": ("c1=keep", "*=svd:rank=2")},
    **{target: {"target": target} for target in SEARCHES},
    "plan": {"plan": "plan.json"},
    "configuration": {"config": {"decompose": {"rank": "0.25", "seed": 5}}},
}
"""How far to go, said in one of these ways; with none of them `max_error` or its default is used up."""

KEYWORDS: dict[str, tuple[Any, ...]] = {
    "way": tuple(WAYS),
    "method": (None, "svd", "tucker,svd"),
    "quantize": (None, "int8-static", "int8-dynamic", "fp16"),
    "max_error": (None, 0.9, 1e-9),
    "allow_slower": (None, True, False),
    "bench": (False, True),
    "verify": (True, False),
    "calib": (None, "calib.npz"),
    "data": (None, "labelled.npz"),
    "finetune": (None, "epochs=1"),
    "refine": (False, True),
    "dry_run": (False, True),
    "fail_if_unchanged": (False, True),
    "time_limit": (None, "1h"),
    "overwrite": (False, True),
    "include": (None, ("c*", "fc")),
    "exclude": (None, ("fc",)),
    "rank_multiple": (None, "2"),
    "must_save": (None, "none"),
    "skip_below": (None, 0.0),
    "options": (None, {"svd": {"order": "kernel-first"}}),
    "repair": (None, False),
    "requantize": (None, True),
    "freeze_initializers": (None, True),
    "mask": (None, "none"),
    "input_shapes": (None, {"x": (2, 8, 8, 8)}),
    "samples": (None, 3),
    "bench_batches": ((1,), (1, 2)),
    "bench_threads": ((), (1,)),
    "batch": (None, 2),
    "details": (False, True),
    "seed": (None, 3),
    "threads": (None, 1),
    "progress": (None, lambda what, done, total: None),
}


@dataclass(frozen=True)
class Contradiction:
    """Two keywords with values that exclude each other, and what the line that says so names."""

    one: tuple[str, Callable[[Any], bool]]
    other: tuple[str, Callable[[Any], bool]]
    named: tuple[str, ...]

    def holds(self, row: dict[str, Any]) -> bool:
        return all(name in row and wrong(row[name]) for name, wrong in (self.one, self.other))


def given(value: Any) -> bool:
    return value is not None


def absent(value: Any) -> bool:
    return value is None


def no(value: Any) -> bool:
    return value is False


def is_plan(way: str) -> bool:
    return way == "plan"


def searches(way: str) -> bool:
    return way in (*SEARCHES, "max_error")


CONTRADICTIONS = (
    *(
        Contradiction(("way", is_plan), (name, given), ("--plan",))
        for name in ("method", "include", "exclude", "rank_multiple", "must_save", "skip_below", "options")
    ),
    Contradiction(("way", searches), ("must_save", given), ("--must-save", "target")),
    Contradiction(("max_error", given), ("verify", no), ("--max-error", "--no-verify")),
    Contradiction(("allow_slower", no), ("bench", no), ("--never-slower", "--no-bench")),
    Contradiction(("bench_batches", lambda v: len(v) > 1), ("bench", no), ("--bench-batch", "--no-bench")),
    Contradiction(("batch", given), ("bench", no), ("--batch", "--no-bench")),
    Contradiction(("bench_threads", bool), ("bench", no), ("--bench-threads", "--no-bench")),
    Contradiction(("quantize", lambda v: v == "int8-static"), ("calib", absent), ("int8", "--calib")),
    Contradiction(("finetune", given), ("calib", absent), ("finetune", "--calib")),
    Contradiction(("refine", bool), ("calib", absent), ("--refine", "--calib")),
    Contradiction(("finetune", given), ("quantize", given), ("finetune", "quantiz")),
    Contradiction(("way", lambda v: v.startswith("drop")), ("data", absent), ("drop", "--eval")),
    Contradiction(("options", given), ("method", absent), ("options", "svd")),
)


def agree(row: dict[str, Any]) -> bool:
    """Whether values go together; searches over all methods are slow and have tests of their own."""
    slow = searches(row.get("way", "rank")) and row.get("method", "svd") is None
    return not slow and not any(contradiction.holds(row) for contradiction in CONTRADICTIONS)


Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(values: dict[str, tuple[Any, ...]]) -> list[Pair]:
    """All pairs of values of different keywords that can go together."""
    return [
        ((one, first), (other, second))
        for one, other in combinations(values, 2)
        for first in values[one]
        for second in values[other]
        if agree({one: first, other: second})
    ]


def table() -> Iterator[dict[str, Any]]:
    """Rows of which every pair of values that can go together is in one.

    AllPairs ends early where what it has chosen rules the rest out: pairs that are left are put together into
    further rows. Every keyword has a value that goes with whatever agrees without it.
    """

    def begun(values: Sequence[Any]) -> bool:
        return agree(dict(zip(KEYWORDS, values, strict=False)))

    left = pairs_of(KEYWORDS)
    for values in AllPairs(list(KEYWORDS.values()), filter_func=begun):
        row = dict(zip(KEYWORDS, values, strict=True))
        left = [pair for pair in left if not holds(row, pair)]
        yield row
    while left:
        row = {}
        for pair in left:
            new = row | dict(pair)
            if all(row.get(name, value) == value for name, value in pair) and agree(new):
                row = new
        for name, values in KEYWORDS.items():
            row = row if name in row else next(r for v in values if agree(r := {**row, name: v}))
        left = [pair for pair in left if not holds(row, pair)]
        yield {name: row[name] for name in KEYWORDS}


def holds(row: dict[str, Any], pair: Pair) -> bool:
    return all(row[name] == value for name, value in pair)


ROWS = tuple(table())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, inputs with labels and without, and a plan."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)

    def low(*shape: int) -> np.ndarray[Any, Any]:
        """A weight of about rank 2."""
        size = int(np.prod(shape[1:]))
        weight = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, size)) / np.sqrt(2 * size)
        noise = rng.standard_normal((shape[0], size)) / np.sqrt(size)
        made: np.ndarray[Any, Any] = (weight + 0.05 * noise).astype(np.float32)
        return made

    weights = {
        "w1": low(16, 8, 3, 3).reshape(16, 8, 3, 3),
        "w2": low(16, 16, 3, 3).reshape(16, 16, 3, 3),
        "w3": low(16, 16),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="c2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3"], ["y"], name="fc"),
    ]
    made = graphs.model(nodes, {"x": ["N", 8, 8, 8]}, {"y": ["N", 16]}, weights)
    model = graphs.saved(made, folder / "net.onnx")
    x = rng.standard_normal((8, 8, 8, 8), dtype=np.float32)
    np.savez(folder / "calib.npz", x=x)
    scores = open_session(model).run(None, {"x": x})[0]
    np.savez(folder / "labelled.npz", x=x, labels=scores.argmax(1))
    found = onnxdecomp.inspect(model, method="svd", rank="2")
    onnxdecomp.runtime.jsonio.dump(found.record, folder / "plan.json")
    return folder


def arguments(row: dict[str, Any]) -> dict[str, Any]:
    """The row as keywords of compress."""
    values = {name: value for name, value in row.items() if value is not None and name != "way"}
    return {"simplify": "none", "bench_seconds": 0.02, **WAYS[row["way"]], **values}


def ident(row: dict[str, Any]) -> str:
    said = {name: value for name, value in row.items() if value not in (None, False) and name != "progress"}
    return "-".join(f"{name}={value}" if value is not True else name for name, value in said.items())


@pytest.mark.parametrize("row", ROWS, ids=map(str, range(len(ROWS))))
def test_what_goes_together(row: dict[str, Any], made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    before = files()
    out = Path("out.onnx")
    if row["refine"]:
        refine_briefly(monkeypatch, steps=5)
    if row["overwrite"]:
        out.write_bytes(b"old")
    try:
        result = onnxdecomp.compress("net.onnx", out, **arguments(row))
        assert not row["dry_run"] or result.path is None
        assert out.exists() == (row["overwrite"] or not row["dry_run"])
        true_of_the_request(result, row)
        if not row["dry_run"]:
            true_of_the_file(result, row, out)
    except OnnxDecompError as error:
        documented(error, row)
        assert out.exists() == row["overwrite"]
        assert not row["overwrite"] or out.read_bytes() == b"old"
    finally:
        out.unlink(missing_ok=True)
    assert files() == before


def documented(error: OnnxDecompError, row: dict[str, Any]) -> None:
    """An error that nothing can keep, or nothing decomposed where that is a failure: no other reason."""
    assert len(str(error).splitlines()) == 1
    if isinstance(error, UnchangedError):
        assert row["fail_if_unchanged"], error
        return
    assert row["max_error"] == 1e-9, error
    if row["way"] == "max_error":  # not even what was only quantized keeps it
        assert isinstance(error, UsageError), error
        assert "--max-error 1e-09 is out of reach" in str(error)
        assert row["quantize"] is not None, error
    else:
        assert isinstance(error, GateError), error


def true_of_the_request(result: Result, row: dict[str, Any]) -> None:
    run = result.record["run"]
    wanted, options = run["request"], arguments(row)
    seed = 5 if row["way"] == "configuration" else 0
    assert run["seed"] == (seed if row["seed"] is None else row["seed"])
    assert wanted["max_error"] == row["max_error"]
    assert wanted["plan"] is (row["way"] == "plan")
    assert wanted["rank"] == (options.get("rank") or ("0.25" if row["way"] == "configuration" else None))
    if row["way"] in SEARCHES:
        assert wanted["target"] == row["way"]
    assert wanted["rules"] == list(options.get("layers", ()))
    given_calib = run["data"]["calib"]
    assert (given_calib is None) == (row["calib"] is None)
    if given_calib is not None:
        assert given_calib["sha256"] == digest(Path(row["calib"]))
    excluded = {choice.layer for choice in result.plan.choices if choice.reason == "excluded by name"}
    assert excluded == ({"fc"} if row["exclude"] else set())
    if row["way"] == "rules" and not row["dry_run"]:
        assert "c1" not in {choice.layer for choice in result.plan.decomposed}


def true_of_the_file(result: Result, row: dict[str, Any], out: Path) -> None:
    record, model = result.record, onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    session, original = open_session(out), open_session("net.onnx")
    assert (inputs_of(session), outputs_of(session)) == (inputs_of(original), outputs_of(original))
    assert record["output"] == {"path": "out.onnx", "sha256": digest(out), "bytes": out.stat().st_size}
    assert record["totals"]["bytes"]["after"] == out.stat().st_size
    # The network has no biases; one that a fit brings counts, as its layers' numbers do.
    stored = [
        t for t in model.graph.initializer if len(t.dims) > 1 or re.search(r"/bias(_quantized)?$", t.name)
    ]
    assert record["totals"]["params"]["after"] == sum(int(np.prod(tensor.dims)) for tensor in stored)
    chains = {
        property.value
        for node in model.graph.node
        for property in node.metadata_props
        if property.key == "pkg.onnxdecomp.method" and property.value
        for property in node.metadata_props
        if property.key == "pkg.onnxdecomp.layer"
    }
    assert chains == {layer.name for layer in result.layers if layer.status == "decomposed"}
    assert result.changed == (out.read_bytes() != Path("net.onnx").read_bytes())
    _precision(model, result, row)
    checked = record["verify"]
    assert (checked is None) == (not row["verify"])
    if checked is not None:
        # Half of the samples with labels judges a drop; there are too few to divide where only some are used.
        judged = row["way"].startswith("drop") and row["samples"] is None
        again = onnxdecomp.verify(
            "net.onnx",
            out,
            data=_second_half(row["data"]) if judged else row["data"] or row["calib"],
            shapes=row["input_shapes"],
            samples=row["samples"],
            seed=record["run"]["seed"],
            max_error=row["max_error"],
        )
        assert again.passed, again
        assert result.verification is not None
        assert again.samples == result.verification.samples
        assert result.verification.worst == pytest.approx(again.worst, rel=0.05, abs=1e-5)
    timed = record["latency"]
    assert (timed is None) or row["bench"]


def _second_half(file: str) -> dict[str, Any]:
    with np.load(file) as held:
        arrays = dict(held)
    kept = [place for place in range(len(arrays["labels"])) if place // 2 % 2]
    return {name: array[kept] for name, array in arrays.items()}


def _precision(model: onnx.ModelProto, result: Result, row: dict[str, Any]) -> None:
    """The file is of the precision asked for, or a note says why it is not."""
    integers = any("QuantizeLinear" in node.op_type for node in model.graph.node)
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    if row["quantize"] is None:
        assert not integers
        assert not halves
        return
    found = halves if row["quantize"] == "fp16" else integers
    assert found or any("quantized" in note or "fp16" in note for note in result.notes), result.notes


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pairs() -> Iterator[tuple[Contradiction, dict[str, Any]]]:
    """Each contradiction alone: the two keywords, and what either needs to make sense otherwise."""
    for contradiction in CONTRADICTIONS:
        (one, _), (other, _) = contradiction.one, contradiction.other
        rest = {name: values[0] for name, values in KEYWORDS.items()}
        rest |= {"way": "rank", "bench": False, "calib": "calib.npz", "data": "labelled.npz"}
        for first in KEYWORDS[one]:
            for second in KEYWORDS[other]:
                row = {**rest, one: first, other: second}
                if contradiction.holds(row):
                    yield contradiction, row


@pytest.mark.parametrize(("contradiction", "row"), list(pairs()))
def test_what_does_not(
    contradiction: Contradiction, row: dict[str, Any], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    before = files()
    with pytest.raises(UsageError) as caught:
        onnxdecomp.compress("net.onnx", "out.onnx", **arguments(row))
    assert len(str(caught.value).splitlines()) == 1
    assert all(name in str(caught.value) for name in contradiction.named), caught.value
    assert files() == before


def test_the_table_has_every_pair() -> None:
    assert all(agree(row) for row in ROWS)
    assert all(any(holds(row, pair) for row in ROWS) for pair in pairs_of(KEYWORDS))
    assert len(pairs_of(KEYWORDS)) > 2000


def test_the_table_has_every_keyword() -> None:
    """But what is of the machine (provider, …), other programs (simplify), a detail, or the subject."""
    ways = {name for way in WAYS.values() for name in way}
    options = {field.name for field in option_fields(CompressConfig)} | {"config", "progress"}
    apart = {
        "provider",
        "precision",
        "profile",
        "provider_options",
        "simplify",
        "bench_seconds",
        "block_size",
        "table_bits",
        "metric",
        "objective",  # with few targets only, as test_config_checks has it
        "workdir",  # what is kept: its tests compare bytes with and without it
        "executor",
    }
    assert options - apart == (set(KEYWORDS) - {"way"}) | ways
