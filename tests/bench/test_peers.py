"""The ways that bench/peers compares are right ones, and its table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bench import peer_ways, peers, spatial_greedy
from bench.peer_ways import WAYS, NotForThisError
from onnxdecomp.runtime.session import open_session, run
from tests.builders.cases import Case
from tests.builders.exported import KINDS

QUICK = [name for name in WAYS if not name.startswith("onnxdecomp")]


def saved(kind: Case, folder: Path) -> tuple[Path, Path]:
    """The model and its calibration inputs as files."""
    onnx.save(kind.model, folder / "model.onnx")
    np.savez(folder / "calib.npz", **kind.feeds)  # type: ignore[arg-type]
    return folder / "model.onnx", folder / "calib.npz"


def error(before: Path, after: Path, kind: Case) -> float:
    (a,), (b,) = (run(open_session(path), kind.feeds) for path in (before, after))
    return float(np.linalg.norm(b - a) / np.linalg.norm(a))


@pytest.mark.parametrize("way", QUICK)
def test_every_way_makes_a_model_that_runs(way: str, tmp_path: Path) -> None:
    kind, target = KINDS["plain"](), tmp_path / "new.onnx"
    source, calib = saved(kind, tmp_path)
    WAYS[way](source, target, calib)
    # Random weights have flat spectra: little rank loses much, rounding little.
    assert error(source, target, kind) < (0.05 if "Runtime" in way else 1.0)


def test_a_third_of_the_channels(tmp_path: Path) -> None:
    kind, target = KINDS["plain"](), tmp_path / "new.onnx"
    source, calib = saved(kind, tmp_path)
    peer_ways.tucker_third(source, target, calib)
    shapes = {tuple(tensor.dims) for tensor in onnx.load(target).graph.initializer if len(tensor.dims) == 4}
    # 32 outputs and 16 inputs, then 32 and 32.
    assert {(5, 16, 1, 1), (11, 5, 3, 3), (32, 11, 1, 1), (11, 11, 3, 3)} <= shapes


def test_spatial_svd_reaches_its_ratio(tmp_path: Path) -> None:
    kind = KINDS["plain"]()
    model = peer_ways._simplified(saved(kind, tmp_path)[0])
    made, facts = spatial_greedy.compress(model, [kind.feeds], ratio=0.5)
    assert made is not None
    assert facts["decomposed"] > 0
    onnx.save(made, tmp_path / "new.onnx")
    before, after = peers._macs(tmp_path / "model.onnx"), peers._macs(tmp_path / "new.onnx")
    assert before is not None
    assert after is not None
    # The Gemm, which it does not take, is a thousandth of both.
    assert after <= 0.501 * before


def test_spatial_svd_at_full_rank_is_the_model(tmp_path: Path) -> None:
    kind = KINDS["plain"]()
    model = peer_ways._simplified(saved(kind, tmp_path)[0])
    splits = spatial_greedy._splits(model, kind.feeds)
    assert len(splits) == 2
    onnx.save(spatial_greedy._replaced(model, splits, dict.fromkeys(splits, 9.0)), tmp_path / "full.onnx")
    assert error(tmp_path / "model.onnx", tmp_path / "full.onnx", kind) < 1e-5


def test_each_layer_gets_the_smallest_ratio_that_keeps_the_score() -> None:
    node, empty = onnx.NodeProto(), np.zeros((100, 100), np.float32)
    splits = {name: spatial_greedy.Split(node, empty, empty, (1, 1, 3, 3), 1000, 10) for name in "ab"}
    scores = {"a": {0.1: 0.9, 0.5: 0.95}, "b": {0.1: 0.2, 0.5: 0.8}}
    assert spatial_greedy._greedy(splits, scores, 0.6) == {"a": 0.1, "b": 1.0}
    assert spatial_greedy._greedy(splits, scores, 0.4) == {"a": 0.1, "b": 0.5}


def test_a_model_without_convolutions_is_not_for_spatial_svd(tmp_path: Path) -> None:
    source, calib = saved(KINDS["attention"](), tmp_path)
    with pytest.raises(NotForThisError):
        peer_ways.spatial_svd(source, tmp_path / "new.onnx", calib)


def test_a_way_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    source, _ = saved(KINDS["plain"](), tmp_path)
    facts = peers.compress("ONNX Runtime fp16", source, tmp_path)
    assert facts["failed"] is None
    assert facts["bytes"] == (tmp_path / "ONNX Runtime fp16.onnx").stat().st_size
    assert facts["peak_bytes"] > 1 << 20
    assert facts["seconds"] > 0
    source.write_bytes(b"no model")
    assert peers.compress("ONNX Runtime fp16", source, tmp_path)["failed"]
    assert not (tmp_path / "ONNX Runtime fp16.onnx").exists()


def timing(threads: int, batch: int, speed_up: float | None, ran: int | None = None) -> dict[str, Any]:
    interval = None if speed_up is None else [speed_up - 0.1, speed_up + 0.1]
    common = {"threads": threads, "batch": batch, "ran_batch": ran or batch, "p50_ms": 2.5}
    return {**common, "speed_up": speed_up, "interval": interval}


def test_the_table_says_what_was_measured() -> None:
    task = {"metric": {"top1": 0.8}, "rel_l2": 0.1}
    common = {"model": "m", "bytes": 2_000_000, "macs": 5_000_000, "seconds": 61.4, "peak_bytes": 3e8}
    change = {"mean": -0.01, "low": -0.0175, "high": -0.0025, "n": 2000, "lost": 30, "won": 10}
    fast = {**common, "way": "fast", "macs": None, "latency_cpu": [timing(1, 1, 2.0), timing(1, 16, 2.0, 1)]}
    rows: list[dict[str, Any]] = [
        {
            **common,
            "way": "original",
            "task": task,
            "latency_cpu": [timing(1, 1, None), timing(1, 16, None, 1)],
        },
        {**fast, "task": {"metric": {"top1": 0.79}, "change": change}},
        {**fast, "way": "old", "task": {"metric": {"top1": 0.79}}},
        {"model": "m", "way": "broken", "failed": "no | way"},
    ]

    def said(way: str) -> str:
        return f"| {way} | 2.00 MB | as before | 2.00x (1.90 to 2.10) |"

    assert peers.tables(rows).splitlines() == [
        "**m**",
        "",
        "| way | file | MACs | 1 thread, batch 1 | top-1 | to compress | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| original | 2.00 MB | 5M | 2.5 ms | 80.00 % |  |  |",
        f"{said('fast')} 79.00 %, -1.00 (-1.75 to -0.25) | 61 s | 300 MB |",
        f"{said('old')} 79.00 %, -1.00 (interval not measured) | 61 s | 300 MB |",
        "| broken | fails: no / way |  |  |  |  |  |",
    ]


def test_latencies_stay_with_files_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    row = {"model": "mlperf_ad01", "way": "original", "date": "then", "bytes": 7, "latency_cpu": [1]}
    (tmp_path / "peers.json").write_text(json.dumps({"rows": [row]}))
    new = {"model": "mlperf_ad01", "way": "original", "date": "now", "bytes": 7}
    assert peers._merged([new]) == [{**new, "latency_cpu": [1], "timed": "then"}]
    assert peers._merged([{**new, "bytes": 8}]) == [{**new, "bytes": 8}]
    assert peers._merged([{**new, "latency_cpu": [2]}]) == [{**new, "latency_cpu": [2]}]


def test_rows_of_earlier_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    first, second = "vgg16_half_cifar10", "mlperf_ad01"
    earlier = [{"model": second, "way": "original", "x": 1}, {"model": first, "way": "original", "x": 1}]
    (tmp_path / "peers.json").write_text(json.dumps({"rows": earlier}))
    rows = peers._merged(
        [{"model": second, "way": "original", "x": 2}, {"model": second, "way": "onnxdecomp"}]
    )
    assert [(row["model"], row["way"], row.get("x")) for row in rows] == [
        (first, "original", 1),
        (second, "original", 2),
        (second, "onnxdecomp", None),
    ]
