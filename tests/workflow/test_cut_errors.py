"""An error of ours in a cut costs that channel, which stays whole and says why, and not the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxdecomp.apply import apply_plan, cut_channels
from onnxdecomp.apply.cut_channels import select
from onnxdecomp.channels.channel import Channel
from onnxdecomp.layers.lowering_check import Check
from onnxdecomp.layers.replace import Rewriter
from onnxdecomp.search.plan import Cut
from onnxdecomp.workflow.compress import compress
from onnxdecomp.workflow.result import Result
from tests.builders.graphs import saved
from tests.builders.models import thin_middle

BAD = "two"
"""The channel from the layer two into fc; before it stands the channel from one into two."""


def of_bad(arguments: Any) -> bool:
    """Whether a call is about that channel."""
    return any(
        (isinstance(given, Cut) and given.channel == BAD)
        or (
            getattr(getattr(given, "channel", given), "name", "") == BAD
            and isinstance(getattr(given, "channel", given), Channel)
        )
        for given in arguments
    )


def failing(real: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        if of_bad(arguments):
            raise np.linalg.LinAlgError("no convergence")
        return real(*arguments, **named)

    return called


def differing(real: Callable[..., Check]) -> Callable[..., Check]:
    def called(*arguments: Any) -> Check:
        return Check(rel_error=0.5, tolerance=1e-4) if of_bad(arguments) else real(*arguments)

    return called


def wrong(real: Callable[..., Any]) -> Callable[..., Any]:
    """Other numbers in the nodes of the channel's reader than its refit says."""

    def called(self: Rewriter, match: Any, chain: Any, *more: Any, **named: Any) -> Any:
        done = real(self, match, chain, *more, **named)
        if match.layer.name == "fc":
            weight = next(v for v in done.nodes[0].inputs[1:] if v is not None)
            weight.const_value = ir.tensor(weight.const_value.numpy() * 2)
        return done

    return called


PLACES: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "units are chosen": (apply_plan, "select", failing, "LinAlgError: no convergence"),
    "it is cut": (apply_plan, "put_in", failing, "LinAlgError while it is cut: no convergence"),
    "the cut is checked": (cut_channels, "check_cut", differing, "cut, it differs by 0.5"),
    "its reader is checked": (Rewriter, "replace", wrong, "differ from their own weight"),
}


def ran(tmp_path: Path, **options: Any) -> Result:
    x = np.random.default_rng(0).standard_normal((24, 8, 6, 6), dtype=np.float32)
    net = saved(thin_middle(), tmp_path / "net.onnx")
    how: dict[str, Any] = {
        "simplify": "none",
        "bench": False,
        "method": "width",
        "calib": {"x": x},
        **options,
    }
    return compress(net, tmp_path / "out.onnx", overwrite=True, **how)


@pytest.mark.parametrize("place", PLACES)
def test_with_widths_given(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, spoiled, said = PLACES[place]
    monkeypatch.setattr(owner, name, spoiled(getattr(owner, name)))
    done = ran(tmp_path, rank="0.5", repair=False)
    one, two = done.channels[:2]
    assert (one.name, one.status, one.kept, one.reason) == ("one", "cut", 8, "")
    assert (two.name, two.status, two.kept) == (BAD, "kept", 24)
    assert said in two.reason
    assert any(f"{BAD}: kept for an error of onnxdecomp" in note for note in done.notes)
    # What is counted is what is there.
    assert [layer.left for layer in done.layers] == [(8, 8, 3, 3), (24, 8, 3, 3), None]
    stored = [t for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.dims]
    floats = [int(np.prod(t.dims)) for t in stored if t.data_type == onnx.TensorProto.FLOAT]
    assert done.record["totals"]["params"]["after"] == sum(floats)
    before = {one.name: one for one in onnx.load(tmp_path / "net.onnx").graph.initializer}["w3"]
    assert before.raw_data in {one.raw_data for one in stored}


def test_in_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_plan, "select", failing(select))
    done = ran(tmp_path, target="error=0.9")
    status = {channel.name: channel.status for channel in done.channels}
    assert status[BAD] == "kept"
    assert status["one"] == "cut"
