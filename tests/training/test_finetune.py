"""finetune as a user calls it: what changes, what does not, what is kept, and going on after a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxdecomp import finetune
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.graph.load import load
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.training import loop, teaching
from onnxdecomp.training.settings import Settings
from tests.training.conftest import Case

QUICK = {"epochs": 2, "batch": 40, "rate": 1e-2}


def test_it_comes_nearer_to_the_original(digits: Case, tmp_path: Path) -> None:
    target = tmp_path / "trained.onnx"
    done = finetune(digits.compressed, target, teacher=digits.original, data=digits.images, settings=QUICK)
    first, *_, last = done.training["epochs"]
    assert last["held_out"] < 0.5 * first["held_out"]
    assert done.training["best"] > 0
    assert done.training["agreement"] < 1e-4
    before = finetune(
        digits.compressed, teacher=digits.original, data=digits.images, settings={"epochs": 1, "rate": 1e-9}
    )
    assert done.verification is not None
    assert before.verification is not None
    assert done.verification.worst is not None
    assert done.verification.worst < 0.7 * (before.verification.worst or 0)


def test_only_numbers_of_initializers_change(digits: Case, tmp_path: Path) -> None:
    target = tmp_path / "trained.onnx"
    finetune(digits.compressed, target, teacher=digits.original, data=digits.images, settings=QUICK)
    old, new = onnx.load(digits.compressed), onnx.load(target)
    onnx.checker.check_model(new, full_check=True)
    weights = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (old, new)]
    assert list(weights[0]) == list(weights[1])
    factors = {name for node in load(target).graph if LAYER in node.metadata_props for name in _weights(node)}
    for name, array in weights[0].items():
        assert array.dtype == weights[1][name].dtype
        assert array.shape == weights[1][name].shape
        assert (name in factors) == bool((array != weights[1][name]).any())
    for model in (old, new):
        del model.graph.initializer[:]
    assert old == new


def _weights(node: Any) -> list[str]:
    return [value.name for value in node.inputs[1:2] if value is not None and value.is_initializer()]


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("auto", "kl to the teacher at temperature 4 and cross-entropy of the labels"),
        ("distill", "kl to the teacher at temperature 4"),
        ("labels", "cross-entropy of the labels"),
    ],
)
def test_objectives(digits: Case, objective: str, words: str) -> None:
    done = finetune(
        digits.compressed,
        teacher=digits.original,
        data=digits.labelled,
        settings=QUICK | {"objective": objective},
    )
    assert done.training["objective"] == words
    first, *_, last = done.training["epochs"]
    assert last["held_out"] < first["held_out"]
    assert done.training["epochs"][done.training["best"]]["accuracy"] >= first["accuracy"]


def test_an_objective_of_the_users(digits: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def loss(student, teacher, labels):\n"
        "    return (student['scores'] - teacher['scores']).abs().mean()\n"
        "def wrong(student, teacher, labels):\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    how: dict[str, Any] = {"teacher": digits.original, "data": digits.images}
    done = finetune(digits.compressed, settings=QUICK | {"objective": "mine.py:loss"}, **how)
    assert done.training["objective"] == "mine.py:loss"
    with pytest.raises(UsageError, match="must give a tensor with one number"):
        finetune(digits.compressed, settings=QUICK | {"objective": "mine.py:wrong"}, **how)
    with pytest.raises(UsageError, match="nothing of that name"):
        finetune(digits.compressed, settings=QUICK | {"objective": "mine.py:absent"}, **how)


@pytest.mark.parametrize(
    "more",
    [
        {"train": "factors,biases", "hints": 0.5, "loss": "relative"},
        {"augment": "flip,crop"},
        {"augment": "crop,mix,cut", "views": 0},
        {"decay": 1e-3},
        {"train": "all", "warmup": 0},
        {"optimizer": "adam"},
        {"precision": "mixed"},
    ],
    ids="-".join,
)
def test_settings_that_work_together(digits: Case, more: dict[str, Any]) -> None:
    done = finetune(digits.compressed, teacher=digits.original, data=digits.images, settings=QUICK | more)
    first, *_, last = done.training["epochs"]
    assert last["held_out"] < first["held_out"]


@pytest.mark.parametrize(("views", "passes"), [(2, 2), (0, 4)])
def test_the_teacher_sees_a_view_once(
    digits: Case, monkeypatch: pytest.MonkeyPatch, views: int, passes: int
) -> None:
    seen: list[int] = []
    keep = teaching.Teaching._keep

    def counts(self: teaching.Teaching, view: int, rows: tuple[int, ...], values: Any) -> None:
        seen.extend([view] * len(rows))
        keep(self, view, rows, values)

    monkeypatch.setattr(teaching.Teaching, "_keep", counts)
    settings = {"epochs": 4, "batch": 40, "augment": "flip,crop", "views": views}
    done = finetune(digits.compressed, teacher=digits.original, data=digits.images, settings=settings)
    count = done.training["samples"]["train"]
    assert len([view for view in seen if view != teaching.HELD_OUT]) == passes * count
    assert len(set(seen)) == passes + 1


def test_more_is_trained_with_all(digits: Case) -> None:
    counts = []
    for kinds in ("factors", "biases", "all"):
        done = finetune(
            digits.compressed,
            teacher=digits.original,
            data=digits.images,
            samples=40,
            settings={"epochs": 1, "train": kinds},
        )
        counts.append(done.training["parameters"])
    factors, biases, everything = counts
    assert 0 < biases < factors < everything


def test_a_rate_that_harms_is_no_harm(digits: Case, tmp_path: Path) -> None:
    """What came in is kept where no epoch is better on the held-out samples."""
    target = tmp_path / "same.onnx"
    done = finetune(
        digits.compressed,
        target,
        teacher=digits.original,
        data=digits.images,
        settings=QUICK | {"rate": 30.0},
    )
    assert done.training["best"] == 0
    assert done.record["verdict"]["because"] == ["a lower rate than 30 may do it"]
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (digits.compressed, target)
    )
    assert all((old[name] == new[name]).all() for name in old)


def test_blended_images_have_no_labels(digits: Case) -> None:
    how: dict[str, Any] = {"teacher": digits.original, "data": digits.labelled}
    with pytest.raises(UsageError, match="objective distill"):
        finetune(digits.compressed, settings=QUICK | {"augment": "mix"}, **how)
    done = finetune(digits.compressed, settings=QUICK | {"augment": "mix", "objective": "distill"}, **how)
    assert done.training["epochs"][-1]["train_accuracy"] is None
    assert done.training["epochs"][-1]["accuracy"] is not None


@pytest.mark.parametrize(
    ("labels", "objective", "loss", "accuracy", "better"),
    [
        (True, "both", 0.4, 0.95, True),  # surer, and right more often
        (True, "both", 0.1, 0.89, False),
        (True, "mine.py:loss", 0.4, 0.95, False),
        (False, "distill", 0.4, 0.95, False),
        (False, "distill", 0.1, 0.89, False),
        (False, "distill", 0.1, 0.9, True),
        (True, "both", float("nan"), 0.95, False),
    ],
)
def test_what_counts_as_better(
    labels: bool, objective: str, loss: float, accuracy: float, better: bool
) -> None:
    run = object.__new__(loop._Run)
    course: Any = SimpleNamespace(
        objective=SimpleNamespace(labels=labels), settings=Settings(objective=objective)
    )
    run.course, run.best = course, 0
    run.history = [loop.Epoch(0, None, 0.2, 0.9, None, 0.0), loop.Epoch(1, 0.1, loss, accuracy, None, 0.0)]
    assert run.better() is better


class Killed(BaseException):
    """Stands for what ends a process."""


def test_going_on_after_a_kill_gives_the_same(
    digits: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 4, "batch": 40, "rate": 1e-2, "augment": "crop"}
    how: dict[str, Any] = {"teacher": digits.original, "data": digits.images, "settings": settings}
    whole = finetune(digits.compressed, threads=1, **how)
    state = tmp_path / "state.pt"
    judge = loop._Run.judge

    def dies(run: loop._Run, number: int) -> loop.Epoch:
        if number == 3:
            raise Killed
        return judge(run, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "judge", dies)
        with pytest.raises(Killed):
            finetune(digits.compressed, threads=1, checkpoint=state, **how)
    rest = finetune(digits.compressed, threads=1, checkpoint=state, **how)
    for ours, theirs in zip(rest.training["epochs"], whole.training["epochs"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    with pytest.raises(UsageError, match="another model, data or settings"):
        finetune(digits.compressed, checkpoint=state, **{**how, "settings": settings | {"seed": 1}})
    state.write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="is no checkpoint"):
        finetune(digits.compressed, checkpoint=state, **how)


def test_from_scratch_it_learns(digits: Case) -> None:
    done = finetune(
        digits.compressed,
        data=digits.labelled,
        from_scratch=True,
        settings={"epochs": 8, "batch": 8, "rate": 1e-2},
    )
    first, *_, last = done.training["epochs"]
    assert first["accuracy"] < 0.4
    assert last["train_accuracy"] > 0.6
    assert done.verification is None


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"settings": "epochs=0"}, "epochs must be at least 1"),
        ({"settings": "epoch=1"}, "no setting 'epoch'.*epochs"),
        ({"settings": "rate=fast"}, "rate must be a number, not 'fast'"),
        ({"settings": "epochs"}, "'epochs' is not NAME=VALUE"),
        ({"settings": "train=none"}, "train is of factors, biases, all"),
        ({"settings": "augment=spin"}, "augment is of flip, crop"),
        ({"settings": "objective=labels"}, "needs data with labels"),
        ({"teacher": None}, "data with labels"),
        ({"teacher": None, "settings": "objective=distill"}, "needs the original"),
        ({"samples": 1}, "at least two samples"),
        ({"device": "cuda:7"}, "finds no CUDA"),
    ],
)
def test_requests_that_make_no_sense(
    digits: Case, tmp_path: Path, problem: dict[str, Any], words: str
) -> None:
    if "device" in problem and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    target = tmp_path / "never.onnx"
    how: dict[str, Any] = {"teacher": digits.original, "data": digits.images, **problem}
    with pytest.raises(UsageError, match=words):
        finetune(digits.compressed, target, **how)
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_not_decomposed_has_no_factors(digits: Case) -> None:
    with pytest.raises(UsageError, match=r"not decomposed by onnxdecomp.*try all"):
        finetune(digits.original, teacher=digits.original, data=digits.images)


def test_weights_that_are_not_finite(digits: Case, tmp_path: Path) -> None:
    model = onnx.load(digits.compressed)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("core.weight"):
            array = numpy_helper.to_array(tensor).copy()
            array.flat[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            break
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ModelError):
        finetune(tmp_path / "nan.onnx", teacher=digits.original, data=digits.images)


def test_a_checkpoint_is_of_one_run(digits: Case, tmp_path: Path) -> None:
    """Other inputs, labels, weights or beginnings with the same settings do not go on from it."""
    state = tmp_path / "state"
    few: dict[str, Any] = {name: array[:60] for name, array in digits.labelled.items()}
    how: dict[str, Any] = {"settings": {"epochs": 1, "batch": 20, "objective": "labels"}, "checkpoint": state}
    finetune(digits.compressed, data=few, **how)
    written = state.read_bytes()
    changed = few["image"].copy()
    changed[7, 0] += 1
    model = onnx.load(digits.compressed)
    weights: dict[str, Any] = {"save_as_external_data": True, "location": "weights", "size_threshold": 1024}
    onnx.save(model, tmp_path / "m.onnx", **weights)
    others: list[dict[str, Any]] = [
        {"data": {**few, "image": changed}},
        {"data": {**few, "labels": (few["labels"] + 1) % 10}},
        {"data": {name: array[::-1].copy() for name, array in few.items()}},
        {"data": {name: array[:40] for name, array in few.items()}},
        {"data": few, "from_scratch": True},
    ]
    for other in others:
        with pytest.raises(UsageError, match="of a run with another model, data or settings"):
            finetune(digits.compressed, **how, **other)
    assert state.read_bytes() == written
    state.unlink()
    finetune(tmp_path / "m.onnx", data=few, **how)
    content = bytearray((tmp_path / "weights").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UsageError, match="of a run with another model, data or settings"):
        finetune(tmp_path / "m.onnx", data=few, **how)


def test_a_checkpoint_behind_a_link(digits: Case, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("state")
    few: dict[str, Any] = {name: array[:60] for name, array in digits.images.items()}
    settings = {"epochs": 1, "batch": 20}
    finetune(digits.compressed, teacher=digits.original, data=few, settings=settings, checkpoint=link)
    assert link.is_symlink()
    assert (tmp_path / "state").is_file()
    with pytest.raises(UsageError, match="no regular file"):
        finetune(
            digits.compressed, teacher=digits.original, data=few, settings=settings, checkpoint="/dev/null"
        )
