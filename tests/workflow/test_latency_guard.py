"""Never slower: layers that do not pay are put back, and what is left was measured to be faster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import pytest

import onnxdecomp
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.evaluate.benchmark import BenchResult, ModelTiming, SettingTimings
from onnxdecomp.evaluate.timing_verdict import Finding
from onnxdecomp.latency.meter import LatencyMeter
from onnxdecomp.pipeline.pipeline import PipelineResult
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.timing import Ratio, Summary
from onnxdecomp.search.plan import Choice, Cost, Cut, Plan
from onnxdecomp.search.search_record import (
    CandidateRecord,
    ChannelLevels,
    Expected,
    LayerCandidates,
    LevelRecord,
    Measured,
    SearchRecord,
)
from onnxdecomp.workflow import compress, latency_guard
from tests.builders.commands import command, files
from tests.builders.models import network

SLOWER = Ratio(1.2, 1.1, 1.3, 0.95)
FASTER = Ratio(0.5, 0.4, 0.6, 0.95)
UNSURE = Ratio(0.99, 0.97, 1.01, 0.95)
"""Perhaps faster, but by next to nothing."""
NOISY = Ratio(0.86, 0.72, 1.08, 0.95)
"""Faster in the middle of a wide interval."""
NOTHING = Ratio(0.996, 0.991, 1.002, 0.95)
"""As good as no gain, for certain."""


def result(ratio: Ratio | None) -> BenchResult:
    """Two models, the second taking `ratio` of the first one's time."""
    summary = Summary("ms", 5, 1, 1, 0, 1, 1, 1, 1)
    models = tuple(ModelTiming("m", 1, {}, summary, 1.0, r, {}, None) for r in (None, ratio))
    return BenchResult((SettingTimings("cpu", 1, 1, False, True, 5, models),), "random")


@dataclass(frozen=True, eq=False)
class Fake(LatencyMeter):
    """Gives ratios in turn, then the last one for ever."""

    ratios: tuple[Ratio | None, ...] = ()
    looks: list[ir.Model] = field(default_factory=list)

    def time_model(self, model: ir.Model) -> BenchResult:
        self.looks.append(model)
        return result(self.ratios[min(len(self.looks), len(self.ratios)) - 1])


def watch(*ratios: Ratio | None) -> Fake:
    return Fake(Path("original.onnx"), Setting(), 2.0, 0, lambda: Feeds((), "none"), ratios=ratios)


def plan_of(saved: Iterable[int]) -> Plan:
    """Layers "0", "1", …, each saving so many MACs."""
    costs = [(Cost(1, 1000), Cost(1, 1000 - macs)) for macs in saved]
    choices = [
        Choice(str(k), "", "Conv", "svd", ranks=(2,), before=before, after=after)
        for k, (before, after) in enumerate(costs)
    ]
    return Plan((*choices, Choice("last", "", "Conv", reason="too small")))


@dataclass(frozen=True, eq=False)
class Runs:
    """Stands in for the pipeline: every layer of the plan is rewritten."""

    search: SearchRecord | None = None
    plans: list[Plan] = field(default_factory=list)

    def __call__(self, plan: Plan | None, quantized: bool = False) -> PipelineResult:
        assert plan is not None
        self.plans.append(plan)
        model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=8)
        done = cast(Any, plan.decomposed)
        return PipelineResult(model, rewritten=done, plan=plan, search=self.search)

    def guarded(self, plan: Plan, timer: Fake, *, enabled: bool = True) -> latency_guard.TimedResult:
        return latency_guard.guard_latency(self(plan), self, timer, enabled=enabled)

    @property
    def left(self) -> list[list[str]]:
        """The layers that each run decomposed."""
        return [[choice.layer for choice in plan.decomposed] for plan in self.plans]


def test_a_faster_result_is_kept() -> None:
    runs, timer, plan = Runs(), watch(FASTER), plan_of([5, 4, 3])
    settled = runs.guarded(plan, timer)
    assert (settled.plan, settled.notes) == (plan, ())
    assert runs.plans == [plan]
    assert timer.looks == [settled.ran.model]
    assert settled.timed is not None
    assert settled.timed.settings[0].models[1].ratio == FASTER


@pytest.mark.parametrize("ratio", [SLOWER, UNSURE, NOTHING, None])
def test_layers_are_put_back_half_by_half_until_all_are(ratio: Ratio | None) -> None:
    runs, timer = Runs(), watch(ratio)
    settled = runs.guarded(plan_of([10, 80, 30, 40, 50, 60, 70, 20]), timer)
    assert runs.left == [list("01234567"), list("1456"), list("16"), list("1"), []]
    assert len(timer.looks) == 4
    assert settled.ran.rewritten == ()
    assert settled.timed is None
    assert settled.plan == runs.plans[-1]
    assert len(settled.notes) == 4
    assert settled.notes[0].endswith("0, 7, 2, 3")
    for choice in settled.plan.choices[:-1]:
        assert (choice.method, choice.ranks, choice.after) == (None, (), None)
        assert choice.reason.startswith(
            "not shown to pay on cpu" if ratio is UNSURE else "does not pay on cpu"
        )
    assert settled.plan.choices[-1].reason == "too small"


def test_after_some_rounds_all_are_put_back_at_once() -> None:
    runs, timer = Runs(), watch(SLOWER)
    settled = runs.guarded(plan_of(range(100, 164)), timer)
    assert [len(names) for names in runs.left] == [64, 32, 16, 8, 0]
    assert settled.ran.rewritten == ()


def test_it_ends_as_soon_as_the_rest_pays() -> None:
    runs, timer = Runs(), watch(SLOWER, UNSURE, FASTER)
    settled = runs.guarded(plan_of([1, 2, 3, 4, 5, 6, 7, 8]), timer)
    assert runs.left == [list("01234567"), list("4567"), list("67")]
    assert settled.ran.model is timer.looks[-1]
    assert settled.timed is not None
    assert "takes 1.20x the original's time" in settled.notes[0]
    assert "undecided within 30 s: the difference is too small (0.97 to 1.01 times" in settled.notes[1]
    assert "1.20x" in settled.plan.choices[0].reason
    assert [look.outcome for look in settled.looks] == ["no faster", "undecided", "faster"]
    assert [look.decomposed for look in settled.looks] == [8, 4, 2]


def test_a_gain_that_a_noisy_machine_leaves_open_is_kept_and_said_to_be_open() -> None:
    runs, timer = Runs(), watch(NOISY)
    settled = runs.guarded(plan_of([5, 4, 3]), timer)
    assert runs.left == [["0", "1", "2"]]
    assert settled.timed is not None
    (note,) = settled.notes
    assert "undecided within 30 s: the machine is too noisy (0.72 to 1.08 times the original's time)" in note
    assert "kept, for the middle, 0.86, is a gain" in note
    (look,) = settled.looks
    assert look.ratio is not None
    assert (look.outcome, look.pays, look.ratio.high) == ("undecided", True, 1.08)


@pytest.mark.parametrize(
    ("ratio", "outcome", "pays", "why"),
    [
        (FASTER, "faster", True, ""),
        (SLOWER, "no faster", False, "takes 1.20x the original's time"),
        (NOTHING, "no faster", False, "gains less than 1% (0.991 to 1.002 times the original's time)"),
        (NOISY, "undecided", True, "undecided within 30 s: the machine is too noisy (0.72 to 1.08 times"),
        (UNSURE, "undecided", False, "undecided within 30 s: the difference is too small (0.97 to 1.01"),
        (Ratio(1.1, 0.8, 1.3, 0.95), "undecided", False, "the machine is too noisy (0.80 to 1.30 times"),
        (None, "no faster", False, "takes no less than the original's time"),
    ],
)
def test_what_a_timing_says_is_true_of_its_interval(
    ratio: Ratio | None, outcome: str, pays: bool, why: str
) -> None:
    found = Finding(ratio, "the original's time", 30.0)
    assert (found.outcome, found.pays) == (outcome, pays)
    assert why in found.why


def test_the_gain_of_what_was_chosen_decides_and_neither_the_macs_nor_the_fastest() -> None:
    def weighed(name: str, part: float | None, **parts: float | None) -> LayerCandidates:
        candidates = tuple(
            CandidateRecord("svd", {}, (int(rank[1:]),), 1, 1, 0.1, 0.1, part) for rank, part in parts.items()
        )
        return LayerCandidates(name, "", 1000, part, (), candidates)

    # "0" saves more MACs, and would gain most if it were given the fastest of its candidates.
    layers = (weighed("0", 0.5, r2=0.45, r1=0.01), weighed("1", 0.4, r2=0.3, r1=0.2))
    expected, measured = Expected(0.2, 0.2, 0.0, 0.75), Measured(None)
    runs = Runs(SearchRecord(expected, measured, 1.0, 4, (), (), layers))
    runs.guarded(plan_of([900, 100]), watch(SLOWER, FASTER))
    assert runs.left == [["0", "1"], ["1"]]


def test_channels_are_put_back_by_what_they_were_expected_to_gain() -> None:
    """And layers behind cuts, whose ranks are those of what is left, by the candidate that comes to them."""

    def levels(name: str, gain: float) -> ChannelLevels:
        found = [LevelRecord(kept, 1, 1, 0.1, 0.1, 0.5 - gain * (kept < 8)) for kept in (8, 4)]
        return ChannelLevels(name, 8, (), tuple(found))

    candidate = CandidateRecord("svd", {}, (6,), 1, 1, 0.1, 0.1, 0.2)
    layers = (LayerCandidates("0", "", 1000, 0.4, (), (candidate,)),)
    channels = (levels("little", 0.02), levels("much", 0.3), levels("some", 0.1))
    search = SearchRecord(Expected(0.2, 0.2, 0.0, 0.75), Measured(None), 1.0, 4, (), (), layers, channels)
    chain = replace(plan_of([1]).choices[0], ranks=(4,), left=(4, 4))
    cuts = tuple(
        Cut(one.channel, "width", 8, 4, before=Cost(1, 1000), after=Cost(1, macs))
        for one, macs in zip(channels, (1, 900, 500), strict=True)  # what is saved says the contrary
    )
    runs = Runs(search)
    settled = runs.guarded(Plan((chain,), channels=cuts), watch(SLOWER, FASTER))
    assert [cut.channel for cut in settled.plan.cuts] == ["much"]
    assert runs.left == [["0"], ["0"]]
    assert all(cut.reason.startswith("does not pay on cpu") for cut in settled.plan.channels[::2])
    assert [look.decomposed for look in settled.looks] == [4, 2]


@pytest.mark.parametrize("known", [FASTER, SLOWER, None])
def test_quantization_alone_is_not_timed_where_the_choice_of_its_kind_has_done_it(
    known: Ratio | None,
) -> None:
    plan, timer = plan_of([5, 4]), watch(FASTER)
    runs = Runs()

    def again(wanted: Plan | None, quantized: bool) -> PipelineResult:
        ran = runs(plan if wanted is None else wanted)
        return replace(ran, precisions={"quantize": "int8-dynamic"} if quantized else {})

    settled = latency_guard.guard_latency(again(plan, True), again, timer, enabled=True, alone_took=known)
    assert len(timer.looks) == (2 if known is None else 1)
    assert [(look.what, look.outcome) for look in settled.looks] == [
        ("quantization", "no faster" if known is SLOWER else "faster"),
        ("layers", "faster"),
    ]
    assert bool(settled.ran.precision) == (known is not SLOWER)


def test_nothing_is_timed_where_it_is_not_wanted_or_nothing_was_done() -> None:
    plan, empty, timer = plan_of([1]), plan_of([]), watch(SLOWER)
    assert Runs().guarded(plan, timer, enabled=False).plan == plan
    assert Runs().guarded(empty, timer).plan == empty
    assert timer.looks == []


def timed_as(monkeypatch: pytest.MonkeyPatch, *ratios: Ratio) -> None:
    """Every timing of compress gives these ratios."""

    def made(*given: Any, **options: Any) -> Fake:
        return replace(Fake(*given, **options), ratios=ratios)

    monkeypatch.setattr(compress, "LatencyMeter", made)


LINE = ("--simplify", "none", "--method", "svd", "--rank", "4", "--never-slower")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return network(tmp_path / "net.onnx")


def test_where_nothing_pays_the_answer_is_the_original(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed_as(monkeypatch, SLOWER)
    done = command(capsys, "compress", model, *LINE, "-o", "out.onnx")
    assert done.code == 0
    assert "a copy of the original" in done.out
    assert "does not pay on cpu" in done.out
    assert "latency" not in done.out
    notes = [line.split(": ") for line in done.err.splitlines()]
    assert [(note[0], note[2]) for note in notes] == [("note", "c1"), ("note", "c2")]
    assert Path("out.onnx").read_bytes() == model.read_bytes()
    assert files() == ["net.onnx", "out.onnx"]


def test_where_nothing_pays_it_can_fail(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed_as(monkeypatch, SLOWER)
    outcome = command(capsys, "compress", model, *LINE, "-o", "out.onnx", "--fail-if-unchanged")
    assert outcome.code == 5
    assert "nothing was decomposed: does not pay on cpu" in outcome.err
    assert files() == ["net.onnx"]


def test_part_of_the_layers_may_pay(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed_as(monkeypatch, SLOWER, FASTER)
    done = onnxdecomp.compress(model, simplify="none", method="svd", rank="4", allow_slower=False)
    # "c1" saves fewer MACs than "c2".
    assert [layer.name for layer in done.layers if layer.method] == ["c2"]
    assert done.latency is not None
    assert [note.startswith("put back") and note.endswith(": c1") for note in done.notes] == [True]


@pytest.mark.parametrize("allow_slower", [None, True])
def test_ranks_that_were_asked_for_stay(
    allow_slower: bool | None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, SLOWER)
    monkeypatch.setattr(Fake, "time", lambda self, new, decide: result(SLOWER))
    done = onnxdecomp.compress(model, simplify="none", rank="4", method="svd", allow_slower=allow_slower)
    assert len(done.plan.decomposed) == 2
    assert done.notes == ()
    assert done.latency is not None
    assert done.record["latency"]["speedup"]["value"] == pytest.approx(1 / 1.2)


def test_what_the_search_said_stays_said_after_layers_were_put_back(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed_as(monkeypatch, SLOWER)
    done = onnxdecomp.compress(
        model, simplify="none", method="svd", target="macs=1.2x", allow_slower=False, threads=1
    )
    assert not done.changed
    assert sum("no calibration inputs" in note for note in done.notes) == 1
    assert done.record["search"] is not None
    assert [look["outcome"] for look in done.record["looks"]] == ["no faster"] * len(done.record["looks"])
    assert len(done.record["looks"]) >= 1
    reasons = [layer.reason for layer in done.layers]
    assert all("does not pay on cpu" in reason or "left out of the plan" in reason for reason in reasons)
