"""An error of ours costs a layer, which is kept and says why, and not the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxdecomp.apply import apply_plan, storable
from onnxdecomp.core.layer import Layer
from onnxdecomp.decompositions.tucker import Tucker
from onnxdecomp.errors import ModelError
from onnxdecomp.layers import find
from onnxdecomp.layers.lowering_check import check as lowering
from onnxdecomp.layers.replace import Rewriter
from onnxdecomp.search import fixed_ranks, layer_effect, layer_outlines
from onnxdecomp.workflow import compress
from onnxdecomp.workflow.result import Result
from tests.builders.commands import command
from tests.builders.feeds import samples
from tests.builders.models import network

BAD = "c2"


def failing(real: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The same, but for the layer c2."""

    def called(*arguments: Any, **named: Any) -> Any:
        for given in (*arguments, *named.values()):
            layer = getattr(getattr(given, "match", given), "layer", given)
            name = layer.name if isinstance(layer, Layer) else getattr(given, "name", "")
            if name == BAD:
                raise error
        return real(*arguments, **named)

    return called


def spoil(patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
    patch.setattr(owner, name, failing(getattr(owner, name), error))


PLACES: dict[str, tuple[Any, str]] = {
    "fit to the weight": (Tucker, "fit"),
    "fit to inputs": (apply_plan, "fitted"),
    "assemble": (Tucker, "assemble"),
    "choose ranks": (fixed_ranks, "choose"),
    "find": (find, "_match"),
    "the error of the weight": (storable, "_storable"),
    "rewrite": (Rewriter, "replace"),
    "check": (lowering, "_check"),
}

ERRORS = [
    np.linalg.LinAlgError("SVD did not converge"),
    MemoryError(),
    ZeroDivisionError("a\nb"),
    KeyError("x"),
]


def ran(tmp_path: Path, **options: Any) -> Result:
    """Both convolutions as chains, where nothing goes wrong."""
    model = network(tmp_path / "net.onnx")
    options = {"simplify": "none", "bench": False, "method": "tucker", **options}
    result = compress.compress(model, tmp_path / "out.onnx", overwrite=True, **options)
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    return result


@pytest.mark.parametrize("place", PLACES)
def test_with_ranks_given(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ERRORS[list(PLACES).index(place) % len(ERRORS)]
    spoil(monkeypatch, *PLACES[place], error)
    result = ran(tmp_path, rank="4", details=True)
    one, two = sorted(result.layers, key=lambda layer: layer.name)
    assert (one.name, one.status, one.reason) == ("c1", "decomposed", "")
    assert (two.name, two.status, two.repaired) == ("c2", "kept", False)
    assert type(error).__name__ in two.reason
    assert "\n" not in two.reason
    if place != "find":  # what cannot be read is listed as other operators are
        assert any("c2" in note and "an error of onnxdecomp" in note for note in result.notes)
    assert result.record["verify"]["status"] == "passed"
    kept = {i.name: i for i in onnx.load(tmp_path / "out.onnx").graph.initializer}["w2"]
    before = {i.name: i for i in onnx.load(tmp_path / "net.onnx").graph.initializer}["w2"]
    assert kept.raw_data == before.raw_data


@pytest.mark.parametrize(
    "place",
    [(layer_outlines, "outlines"), (Tucker, "fit"), (layer_effect, "replaced"), (Rewriter, "replace")],
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_in_a_search(
    place: tuple[Any, str], calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, *place, np.linalg.LinAlgError("no convergence"))
    more = {"calib": samples(tmp_path / "data.npz", 8)} if calibrated else {}
    result = ran(tmp_path, target="error=0.9", **more)
    status = {layer.name: layer.status for layer in result.layers}
    assert status == {"c1": "decomposed", "c2": "kept"}
    assert result.record["search"]["layers"]


def test_when_kept_layers_are_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_plan, "mended", failing(storable.mended, MemoryError()))
    result = ran(tmp_path, rank="2", calib=samples(tmp_path / "data.npz", 30), layers=["c1=svd:rank=2"])
    assert {layer.name: layer.status for layer in result.layers}["c1"] == "decomposed"


def test_a_wrong_lowering_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes compute something else than the chain says, in one layer."""
    real = Rewriter.replace

    def wrong(self: Rewriter, match: Any, chain: Any, *more: Any, **named: Any) -> Any:
        done = real(self, match, chain, *more, **named)
        if match.layer.name == BAD:
            weight = next(v for v in done.nodes[0].inputs[1:] if v is not None)
            weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 2)  # type: ignore
        return done

    monkeypatch.setattr(Rewriter, "replace", wrong)
    result = ran(tmp_path, rank="4")
    assert {layer.name: layer.status for layer in result.layers} == {"c1": "decomposed", "c2": "kept"}
    assert "differ from their own weight" in result.layers[1].reason
    assert [check.layer for check in result.lowering] == ["c1"]


def test_an_invalid_result_is_put_right_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage after the decomposition objects to one layer, without naming it."""
    from onnxdecomp_passes import check

    real = check.Check.run

    def objecting(self: Any, model: Any, context: Any) -> Any:
        if any(n.metadata_props.get("pkg.onnxdecomp.layer") == BAD for n in model.graph):
            raise check._bug("two nodes have one name")
        return real(self, model, context)

    monkeypatch.setattr(check.Check, "run", objecting)
    result = ran(tmp_path, rank="4")
    assert {layer.name: layer.status for layer in result.layers} == {"c1": "decomposed", "c2": "kept"}
    assert any("c2" in note and "not valid: two nodes" in note for note in result.notes)
    assert not any("is a bug" in note for note in result.notes)


def test_what_keeping_layers_does_not_mend_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdecomp_passes import annotate

    def defect(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(annotate.Annotate, "run", defect)
    with pytest.raises(ModelError, match="annotate"):
        ran(tmp_path, rank="4")
    assert not (tmp_path / "out.onnx").exists()


def test_debug_shows_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = network(tmp_path / "net.onnx")
    spoil(monkeypatch, Tucker, "fit", np.linalg.LinAlgError("no convergence"))
    quick = ("--simplify", "none", "--no-bench", "--method", "tucker", "--rank", "4", "-o", "out.onnx")
    done = command(capsys, "compress", model, *quick)
    assert done.code == 0
    assert "Traceback" not in done.err
    assert "c2: kept for an error of onnxdecomp: LinAlgError: no convergence" in done.err
    done = command(capsys, "--debug", "compress", model, *quick, "--overwrite")
    assert done.code == 0
    assert "Traceback" in done.err
    assert "LinAlgError: no convergence" in done.err
