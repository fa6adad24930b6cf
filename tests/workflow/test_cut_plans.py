"""Plans that cut channels: shown, written down, edited by hand, refused, carried out again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxdecomp
from onnxdecomp.search.plan import Plan
from tests.builders.commands import command, files
from tests.builders.graphs import saved
from tests.builders.models import thin_middle
from tests.channels.transformers import attention

Capsys = pytest.CaptureFixture[str]
Json = dict[str, Any]

LINE = ("compress", "net.onnx", "-o", "out.onnx", "--no-bench", "--simplify", "none", "--overwrite")
CUT = ("--method", "width", "--rank", "0.5")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """one, 16 units, into two, 24 units, into fc, which makes the output."""
    monkeypatch.chdir(tmp_path)
    return saved(thin_middle(), tmp_path / "net.onnx")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Of a plan that cuts both channels to half their units."""
    net = saved(thin_middle(), tmp_path_factory.mktemp("cut") / "net.onnx")
    found: Json = json.loads(json.dumps(onnxdecomp.inspect(net, method="width", rank="0.5").record))
    return found


def weights(file: str | Path) -> dict[str, Any]:
    """The initializers of a file by name."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}


def spaced(text: str) -> list[str]:
    """The lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_what_is_shown(model: Path, capsys: Capsys) -> None:
    done = command(capsys, "inspect", model, *CUT)
    assert done.code == 0, done.err
    assert {
        "two Conv 24x16x3x3 Nx16x6x6 cut to 12x8x3x3 3.46k -> 864 124k -> 31.1k",
        "channel read by result units",
        "one two width 16 -> 8",
        "layers 0 of 3 would be decomposed, 3 would be smaller behind cuts",
        "channels 2 of 2 would be cut",
        "whole fc: it is the output y",
    } <= set(spaced(done.out))
    assert "kept" not in done.out
    done = command(capsys, *LINE, "--method", "width", "--rank", "0.5", "--layer", "two=svd:rank=4")
    assert done.code == 0, done.err
    assert {
        "layers 1 of 3 decomposed, 2 smaller behind cuts",
        "channels 1 of 2 cut",
        "two fc whole 24",
        "whole two: no method that is named cuts it",
        "kept fc: width takes channels, and no layer by itself",
    } <= set(spaced(done.out))
    assert any(line.startswith("cuts 1 checked against the model without") for line in spaced(done.out))
    assert any(line.startswith("two Conv svd 4, cut to 24x8x3x3 3.46k -> 896 ") for line in spaced(done.out))


def test_only_channels_are_cut(model: Path) -> None:
    done = onnxdecomp.compress(model, "out.onnx", method="width", rank="0.5", bench=False, simplify="none")
    assert done.changed
    assert [(c.name, c.status, c.width, c.kept) for c in done.channels] == [
        ("one", "cut", 16, 8),
        ("two", "cut", 24, 12),
        ("fc", "kept", 1, 1),
    ]
    assert [(layer.status, layer.left) for layer in done.layers] == [
        ("cut", (8, 8, 3, 3)),
        ("cut", (12, 8, 3, 3)),
        ("cut", (20, 12)),
    ]
    totals, verdict = done.record["totals"], done.record["verdict"]
    assert totals["layers"] == {"all": 3, "decomposed": 0, "cut": 3}
    assert totals["channels"] == {"all": 2, "cut": 2}
    stored = weights("out.onnx").values()
    assert totals["params"]["after"] == sum(one.size for one in stored if one.dtype == np.float32)
    assert "smaller" in verdict["text"]
    assert verdict["text"].startswith("2.")
    planned = onnxdecomp.inspect(model, method="width", rank="0.5").record["verdict"]
    assert planned["text"].startswith("A plan, not carried out: 2 of 2 channels, 3.03x fewer parameters")


def test_a_plan_is_carried_out_as_it_was_written(model: Path, capsys: Capsys) -> None:
    rng = np.random.default_rng(0)
    np.savez("calib.npz", x=rng.standard_normal((12, 8, 6, 6), dtype=np.float32))
    given = ("--calib", "calib.npz", "--seed", 3)
    assert command(capsys, *LINE, *CUT, *given, "--json", "run.json").code == 0
    first = Path("out.onnx").read_bytes()
    done = command(capsys, *LINE, "--plan", "run.json", *given, "--json", "again.json")
    assert done.code == 0, done.err
    assert Path("out.onnx").read_bytes() == first
    run, again = (json.loads(Path(name).read_text()) for name in ("run.json", "again.json"))
    assert run["plan"] == again["plan"]
    assert run["channels"] == again["channels"]
    assert all(one["loss"] > 0 and one["check"] < 1e-5 for one in run["channels"][:2])


Change = Callable[[Json], object]


def written(record: Json, change: Change) -> None:
    """The file plan.json of the record's plan with a change."""
    plan = copy.deepcopy(record["plan"])
    change(plan)
    Path("plan.json").write_text(json.dumps(plan))


def of_channel(**values: Any) -> Change:
    """Other values for the first channel."""
    return lambda plan: plan["channels"][0].update(values)


def test_a_width_is_changed_by_hand(model: Path, capsys: Capsys, record: Json) -> None:
    written(record, of_channel(kept=5))
    done = command(capsys, *LINE, "--plan", "plan.json", "--json", "run.json")
    assert done.code == 0, done.err
    assert "one two width 16 -> 5" in spaced(done.out)
    run = json.loads(Path("run.json").read_text())
    # What it costs is counted anew.
    assert [layer["left"] for layer in run["layers"]] == [[5, 8, 3, 3], [12, 5, 3, 3], [20, 12]]
    floats = [one for one in weights("out.onnx").values() if one.dtype == np.float32]
    assert run["totals"]["params"]["after"] == sum(one.size for one in floats)
    written(record, of_channel(method=None, kept=16))
    done = command(capsys, *LINE, "--plan", "plan.json")
    assert done.code == 0, done.err
    assert "one Conv kept 1.15k 41.5k" in spaced(done.out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_channel(channel="nobody"), "there is no channel 'nobody' here"),
        (of_channel(width=20), "the channel 'one' has 16 units, not 20"),
        (of_channel(kept=0), "0 of 16 units cannot be kept"),
        (of_channel(kept=17), "17 of 16 units cannot be kept"),
        (of_channel(kept=7.5), "7.5 of 16 units cannot be kept"),
        (of_channel(kept="8"), "the plan is damaged: '8' is no number"),
        (of_channel(method="svd"), "'svd' cuts no channels"),
        (of_channel(method="attention"), "attention does not cut it (it takes width)"),
        (of_channel(method=3), "3 is no name of a method"),
        (of_channel(readers=["fc"]), "the channel 'one' is not read by 'fc'"),
        (of_channel(producers=["one", "fc"]), "the channel 'one' is not made by 'fc'"),
        (lambda plan: plan["channels"].append(plan["channels"][0]), "decides twice about the channel 'one'"),
        (lambda plan: plan["channels"][0].pop("width"), "a choice lacks 'width'"),
        (lambda plan: plan.update(channels="all"), "'all' is no list"),
        (lambda plan: plan.update(channels=[3]), "3 is no table"),
    ],
)
def test_what_a_channel_cannot_be_given(
    change: Change, said: str, model: Path, capsys: Capsys, record: Json
) -> None:
    written(record, change)
    command(capsys, *LINE, "--plan", "plan.json").is_error(2, said)
    assert files() == ["net.onnx", "plan.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": 7}, "'q' must keep equally many units in each of 2 blocks: 7 is no multiple of that"),
        ({"method": "width"}, "'q': width does not cut it (it takes attention)"),
    ],
)
def test_what_heads_cannot_be_given(change: Json, said: str, tmp_path: Path, capsys: Capsys) -> None:
    net, file = saved(attention("plain", free=False), tmp_path / "net.onnx"), tmp_path / "plan.json"
    done = command(
        capsys, "inspect", net, "--layer", "q=attention:rank=0.5", "--layer", "*=keep", "--json", file
    )
    assert done.code == 0, done.err
    assert "whole q, q:blocks: k is kept as asked" in spaced(done.out)
    done = command(capsys, "inspect", net, "--method", "width,attention", "--rank", "0.5", "--json", file)
    assert done.code == 0, done.err
    assert {"q k a product attention 12 -> 6", "v o attention 12 -> 6"} <= set(spaced(done.out))
    plan = json.loads(file.read_text())
    assert plan["plan"]["channels"][0]["channel"] == "q"
    plan["plan"]["channels"][0] |= change
    file.write_text(json.dumps(plan))
    command(capsys, "compress", net, "--plan", file, "--dry-run", "--simplify", "none").is_error(2, said)


def test_what_is_asked_to_stay_stays_bit_for_bit(model: Path, capsys: Capsys) -> None:
    """Whether as a producer or a reader, and also where its readers or producers are cut elsewhere."""
    x = np.random.default_rng(0).standard_normal((12, 8, 6, 6), dtype=np.float32)
    np.savez("calib.npz", x=x)
    before = weights(model)
    for asked in (("--layer", "one=keep"), ("--exclude", "one"), ("--include", "two", "--include", "fc")):
        done = command(capsys, *LINE, *CUT, *asked, "--calib", "calib.npz")
        assert done.code == 0, done.err
        after = weights("out.onnx")
        assert [name for name, one in after.items() if one.tobytes() == before["w1"].tobytes()] == ["w1"]
        assert {"one two whole 16", "channels 1 of 2 cut"} <= set(spaced(done.out)), done.out
    done = command(capsys, *LINE, *CUT, "--exclude", "two", "--fail-if-unchanged")
    done.is_error(5, "two is excluded by name")


def test_a_rule_for_one_layer(model: Path, capsys: Capsys) -> None:
    done = command(
        capsys, "inspect", model, "--method", "svd", "--rank", "4", "--layer", "one=width:rank=0.25"
    )
    assert done.code == 0, done.err
    assert {"one two width 16 -> 4", "channels 1 of 2 would be cut"} <= set(spaced(done.out))
    done = command(capsys, "inspect", model, "--layer", "one=width:rank=energy=0.9")
    assert "whole one: how many units stay is said by one number or a fraction, not by energy=0.9" in spaced(
        done.out
    )


def test_plans_without_channels_stay_what_they_were(model: Path) -> None:
    plan = onnxdecomp.inspect(model, method="svd", rank="4").plan.to_json()
    assert plan["version"] == 1
    assert "channels" not in plan
    choices = plan["choices"]
    assert isinstance(choices, list)
    assert all("left" not in choice and "group" not in choice for choice in choices)
    assert Plan.from_json(plan).to_json() == plan


def test_chains_behind_cuts_save_something_of_what_is_left(model: Path) -> None:
    """Their ranks are a share of those that the layer has by then."""
    plan = onnxdecomp.inspect(model, method="width,svd", rank="0.5").plan
    ranks = {choice.layer: choice.ranks for choice in plan.decomposed}
    assert ranks == {"one": (4,), "two": (4,), "fc": (6,)}
    assert [choice.weight for choice in plan.choices] == [(16, 8, 3, 3), (24, 16, 3, 3), (20, 24)]
    alone = onnxdecomp.inspect(model, method="width", rank="0.5").plan
    for choice, cut in zip(plan.choices, alone.choices, strict=True):
        assert choice.before == cut.before
        assert choice.after is not None
        assert cut.after is not None
        assert choice.after.macs < cut.after.macs
