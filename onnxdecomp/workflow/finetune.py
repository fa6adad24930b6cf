"""finetune: train a model's initializers against its original, and check what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdecomp.data.culprit import blaming
from onnxdecomp.errors import ModelError
from onnxdecomp.evaluate import preflight
from onnxdecomp.evaluate.verify import verify
from onnxdecomp.graph.load import content_hash, load
from onnxdecomp.graph.output_file import claim, on_disk, staged
from onnxdecomp.graph.save import check_target
from onnxdecomp.record.build import (
    Origin,
    describe_data,
    describe_environment,
    describe_model,
    describe_output,
    describe_tool,
    verification,
)
from onnxdecomp.record.schema.reading import recorded
from onnxdecomp.record.schema.records import FinetuneRecord
from onnxdecomp.record.schema.training import Training, TrainingVerdict
from onnxdecomp.runtime import environment, jsonio
from onnxdecomp.runtime.jsonio import Document
from onnxdecomp.runtime.output_path import check_folder
from onnxdecomp.training.settings import Settings, parse_settings, require_torch

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.read import Data
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.graph.output_file import ModelSource

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What `finetune` did.

    Attributes:
        model: The trained model; only numbers of initializers differ from what came in.
        path: The file written, or None.
        training: The record's `training`: settings, every epoch, and which one was kept.
        verification: The comparison with the teacher, or None where there is none.
        record: The JSON record of the run.
    """

    model: ir.Model
    path: Path | None
    training: Document
    verification: Verification | None
    record: Document


def finetune(
    model: ModelSource,
    output: str | Path | None = None,
    *,
    data: Data,
    teacher: ModelSource | None = None,
    settings: Settings | Mapping[str, object] | str = "",
    evaluation: Data | None = None,
    samples: int | None = None,
    from_scratch: bool = False,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Finetuned:
    """Train a decomposed model, so that it does again what the original did.

    Args:
        model: The model to train, in general what `compress` wrote.
        output: The file to write; None writes none.
        data: Inputs, with or without labels (see onnxdecomp.data.read). They are held in memory.
        teacher: The original; without it the data need labels.
        settings: As onnxdecomp.training.settings has them: "epochs=2,rate=1e-3", or a mapping.
        evaluation: Other inputs that the result is compared with the teacher on; None: `data`.
        samples: At most so many samples of the data are trained on.
        from_scratch: Begin from random numbers.
        checkpoint: A file that is written after every epoch, and gone on from where it exists.
        device: Where torch computes: "auto", "cpu", "cuda".
        threads: Of torch; None is one per core.
        overwrite: Whether the output may replace a file.
        progress: Called as the work goes on.

    Raises:
        UsageError, ModelError, GateError: See onnxdecomp.errors. Whatever is raised, the output is either
            complete or as it was before.
    """
    report = progress or _silent
    started = time.time()
    wanted = parse_settings(settings)
    environment.check_threads(threads)
    require_torch()
    file = None if output is None else Path(output)
    sources = {"teacher": teacher, "data": data, "evaluation": evaluation, "checkpoint": checkpoint}
    claim(file, sources, overwrite=overwrite)
    if checkpoint is not None:
        check_folder(checkpoint)
    with on_disk(model) as path, on_disk(teacher) if teacher is not None else nullcontext() as original:
        report("load", 0, 0)
        working = load(path)
        if file is not None:
            check_target(file, model=working, overwrite=overwrite)
        before = describe_model(working, path, named=isinstance(model, str | Path))
        taught = None
        if original is not None:
            taught = describe_model(load(original), original, named=isinstance(teacher, str | Path))
        feeds = preflight.read(path, data, samples=samples)
        preflight.check(path, provider="cpu")
        with blaming(path, feeds):
            training = trained(
                working, path, original, feeds, wanted, report, from_scratch, checkpoint, device, threads
            )
        with staged(working, file, original=None) as written:
            found = None
            if original is not None:
                report("verify", 0, 0)
                compared = feeds if evaluation is None else evaluation
                found = verify(
                    *(original, written),
                    data=compared,
                    max_error=None,
                    threads=threads or 0,
                    mask=wanted.mask,
                )
                if found.interface:
                    difference = found.interface[0]
                    raise ModelError(
                        f"the interface is not the teacher's ({difference}): nothing was written"
                    )
            after = describe_output(written, file)
    origin = Origin(started, 0.0, wanted.seed, {"from_scratch": from_scratch}, {"data": describe_data(feeds)})
    record = FinetuneRecord(
        tool=describe_tool(),
        environment=describe_environment("cpu", threads, ran=True),
        run=origin.ended(None if evaluation is None else describe_data(evaluation)).run(),
        model=before,
        teacher=taught,
        output=after,
        training=training,
        verdict=_verdict(training),
        verify=None if found is None else verification(found, taught.path if taught else None, after.path),
    )
    return Finetuned(working, file, jsonio.plain(training), found, record.to_json())


def trained(
    working: ir.Model,
    path: Path,
    original: Path | None,
    feeds: Feeds,
    settings: Settings,
    report: Report,
    from_scratch: bool = False,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Training:
    """Train a model in place: `path` is its file, `original` the teacher's. The record's `training`."""
    from onnxdecomp.training.train import File, train

    teacher = None if original is None else File(load(original), original, content_hash(original))
    made = train(
        File(working, path, content_hash(path)),
        teacher,
        feeds,
        settings,
        report=report,
        device=device,
        threads=threads,
        from_scratch=from_scratch,
        path=None if checkpoint is None else Path(checkpoint),
    )
    return recorded(Training, made)


def _verdict(training: Training) -> TrainingVerdict:
    """What the training won, as a sentence."""
    epochs, best = training.epochs, training.best
    first, kept = epochs[0], epochs[best]
    if not best:
        text = "no epoch was better on the held-out samples: the weights are those that came in"
        rate = training.settings["rate"]
        return TrainingVerdict(worth=False, text=text, because=(f"a lower rate than {rate:g} may do it",))
    moved = "fell" if kept.held_out < first.held_out else "rose"
    text = f"the loss on held-out samples {moved} from {first.held_out:.3g} to {kept.held_out:.3g}"
    if kept.accuracy is not None and first.accuracy is not None:
        text += f", their accuracy went from {first.accuracy:.2%} to {kept.accuracy:.2%}"
    last = best == len(epochs) - 1
    because = ("the last epoch was the best: more of them may win more",) if last else ()
    return TrainingVerdict(worth=True, text=f"{text} (epoch {best} of {len(epochs) - 1})", because=because)


def _silent(what: str, done: int, total: int) -> None:
    return
