"""The frontier's definitions: the realised share, ranks off the quantum, and the same MACs in other ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.frontier_job import Job
from bench.frontier_tables import frontier_table, loss, ranks_table
from bench.intervals import answers_changed
from bench.rank_controls import evbmf, unaligned
from bench.realised import Dense, realised_share
from onnxdecomp.graph.load import load
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.providers import quantum
from onnxdecomp.search.fixed_ranks import Request, plan_uniform
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.rules import Defaults, make_rule
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def dense() -> Dense:
    """The digits network at one image."""
    model = load(ROOT / "models" / "digits.onnx")
    infer_shapes(model)
    value = model.graph.inputs[0]
    shape = [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]
    return Dense(model, {str(value.name): np.zeros(shape, np.float32)})


def aligned(dense: Dense, method: str = "tucker") -> Plan:
    """Half of the ranks in every layer, in whole blocks."""
    rule = make_rule(method, Defaults("0.5"))
    return plan_uniform(dense.matched, (), Request((rule,), multiple=quantum("cpu")))


def test_realised_share_is_what_was_saved_over_what_could_be() -> None:
    assert realised_share(0.6, 0.5) == pytest.approx(0.8)
    assert realised_share(1.1, 0.5) == pytest.approx(-0.2)
    assert realised_share(0.6, None) is None
    assert realised_share(0.6, 1.0) is None


def test_proportional_counts_rewritten_layers_alone(dense: Dense) -> None:
    plan = aligned(dense)
    parts = dict.fromkeys(dense.layers, 0.1)
    fractions = [dense.macs(c) / dense.dense_macs(c) for c in plan.decomposed]
    assert 0 < len(fractions) < len(dense.layers)
    assert dense.proportional(plan, parts) == pytest.approx(1 - 0.1 * sum(1 - f for f in fractions))


def test_proportional_is_unknown_where_a_rewritten_layer_was_not_timed(dense: Dense) -> None:
    plan = aligned(dense)
    first = plan.decomposed[0]
    parts = dict.fromkeys(dense.layers, 0.1) | {(first.graph, first.layer): 0.0}
    assert dense.proportional(plan, parts) is None
    assert dense.proportional(Plan(()), parts) is None


def test_total_macs_of_no_plan_are_those_of_all_layers(dense: Dense) -> None:
    assert dense.total_macs(Plan(())) == sum(dense.dense_macs(c) for c in aligned(dense).choices)


@pytest.mark.parametrize("method", ["tucker", "spatial", "svd"])
def test_unaligned_ranks_are_off_the_quantum_at_the_same_macs(dense: Dense, method: str) -> None:
    plan = aligned(dense, method)
    moved = unaligned(plan, dense)
    pairs = [
        pair
        for before, after in zip(plan.decomposed, moved.decomposed, strict=True)
        for pair in zip(before.ranks, after.ranks, strict=True)
    ]
    assert all(before % quantum("cpu") == 0 and after % quantum("cpu") for before, after in pairs)
    assert all(abs(before - after) < quantum("cpu") / 2 for before, after in pairs)
    assert dense.total_macs(moved) == pytest.approx(dense.total_macs(plan), rel=0.03)


def test_evbmf_spends_no_more_macs_on_the_same_layers(dense: Dense) -> None:
    plan = aligned(dense)
    other = evbmf(plan, dense)
    assert {c.layer for c in other.decomposed} <= {c.layer for c in plan.decomposed}
    assert 0.9 * dense.total_macs(plan) < dense.total_macs(other) <= dense.total_macs(plan)


def test_a_job_reads_the_file_of_another_way() -> None:
    job = Job("c", "w", "vdsr", "latency=2x", "evbmf")
    assert job.file(".onnx").name == "latency=2x.evbmf.onnx"
    assert job.file(".json", "auto").name == "latency=2x.auto.json"


def row(way: str, **more: Any) -> dict[str, Any]:
    evaluation = {"original": {"psnr": 30.0}, "metric": {"psnr": 29.9}, "rel_l2": 0.01}
    ratio = {"value": 1.5, "low": 1.4, "high": 1.6, "confidence": 0.95}
    at = {"batch": 1, "threads": 1, "speedup": ratio, "against_dense": 1.4, "proportional": 1.6}
    made = {"model": "m", "goal": "latency=1.5x", "way": way, "status": "done", "evaluation": evaluation}
    cost = {"seconds": 12.0, "peak_bytes": 3e8, "macs": {"before": 300, "after": 150}}
    return {**made, **cost, "latency": [{**at, "realised": 0.76}], **more}


def test_tables_show_what_was_measured_and_leave_the_rest_open() -> None:
    missed = row("auto", goal="latency=3x", status="out of reach")
    text, said = frontier_table([row("auto"), row("evbmf"), missed]).split("\n\n")
    assert "No interval was measured of the output error" in said
    table = text.splitlines()
    assert table[2].startswith(
        "| m | latency=1.5x | test samples | -0.10 dB (interval not measured) | 1.00% | 2.00x fewer | 1.50x "
    )
    assert table[2].endswith(" |  |  |  | 0.76 | 12 s | 300 MB |")
    assert table[3].startswith("| m | latency=3x | test samples | out of reach |")
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 4
    other = ranks_table([row("auto"), row("evbmf"), missed]).split("\n\n")[0].splitlines()
    assert [line.split(" | ")[1] for line in other[2:]] == ["auto", "evbmf"]
    assert other[2].endswith("| 1.40x | 1.60x | 0.76 | -0.10 dB (interval not measured) | 1.00% |")


def test_loss_has_the_unit_of_the_task() -> None:
    scores = {"original": {"top1": 0.9}, "metric": {"top1": 0.875}, "rel_l2": 0.1}
    assert loss(scores) == "-2.50 points (interval not measured)"
    change = answers_changed(1000, 30, 5)
    assert loss({**scores, "change": change.to_json()}) == change.text(100, unit=" points")
    assert loss({"original": {"rms": 1.0}, "metric": {"rms": 1.0}, "rel_l2": 0.012}) == ""
