"""The latency meter: models timed against the original, on one input from the search to the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxdecomp.data.batches import rebatched, rows_of
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.random_inputs import Trial, random_feeds, trial_of
from onnxdecomp.data.read import describe
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate import benchmark
from onnxdecomp.evaluate.benchmark import BenchResult, ModelTiming, SettingTimings
from onnxdecomp.graph.load import content_hash
from onnxdecomp.graph.save import save
from onnxdecomp.latency.as_run import as_run
from onnxdecomp.runtime import device as devices
from onnxdecomp.runtime import session, temporary_files
from onnxdecomp.runtime.deadline import Deadline
from onnxdecomp.runtime.providers import provider_of
from onnxdecomp.runtime.session import Feed, TensorSpec
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.runtime.timing import Ratio, Summary
from onnxdecomp.tasks.course import Course
from onnxdecomp.tasks.values import Codec


def timed_input(
    model: Path,
    *given: Feeds | None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    batch: int | None = None,
    setting: Setting | None = None,
) -> Feeds:
    """The one input that everything is timed on: the first that the user gave, else a random one.

    Args:
        model: The original.
        given: Inputs of the user, the most fitting first; None where there are none.
        shapes: That it has, by the inputs' names; given ones of other shapes are passed over.
        seed: Of a random input.
        batch: Rows that it gets, its own again and again; None leaves it as it is.
        setting: Where it is tried whether the model runs on so many rows; None: on the processor.

    Raises:
        ModelError: The model runs on no random input, or not on so many rows.
        UsageError: The shapes do not fit the model, or it takes another number of rows at a time.
    """
    fitting = (feeds for feeds in given if feeds is not None and _has(feeds[0], shapes or {}))
    own = next((Feeds((feeds[0],), feeds.source) for feeds in fitting), None)
    if own is not None and batch is None:
        return own
    opened = session.open_session(model, low_memory=True)
    specs, trial = session.inputs_of(opened), trial_of(lambda feed: session.run(opened, feed))
    if setting is not None and not provider_of(setting.provider).synchronous:
        under = replace(setting, precision="").quick.without_graph
        on_device = trial_of(lambda feed: devices.device_of(under).load(model, under, feed))
    else:
        on_device = trial
    if own is None:
        made = random_feeds(specs, trial, seed=seed, shapes=shapes, per_binding=1, count=1)
        if isinstance(made, str):
            raise ModelError(f"{model}: {made}; give its shapes with --input-shape or inputs with --calib")
        own = made
    return own if batch is None else Feeds((_of_rows(own[0], specs, batch, model, on_device),), own.source)


def _has(feed: Feed, shapes: Mapping[str, Sequence[int]]) -> bool:
    return all(feed[name].shape == tuple(shape) for name, shape in shapes.items() if name in feed)


def _of_rows(feed: Feed, specs: Sequence[TensorSpec], batch: int, model: Path, trial: Trial) -> Feed:
    """The feed with so many rows, on which the model runs; else an error that says why not."""
    made = rebatched(feed, specs, batch)
    if (rows := rows_of(made, specs)) != batch:
        raise UsageError(f"--batch {batch} does not apply: {model} takes {rows} at a time")
    if reason := trial(made):
        raise ModelError(f"{model} does not run at batch {batch}: {reason}")
    return made


_CODEC = Codec((BenchResult, SettingTimings, ModelTiming, Summary, Ratio))

_SHARE = 0.3
"""Of the time that is left, what one decision may take."""


@dataclass(frozen=True, eq=False)
class LatencyMeter:
    """How models are timed against the original.

    Attributes:
        original: The file that came in.
        setting: Where they are timed; its batch is the rows that the input has, where it is given.
        seconds, seed: For benchmark.bench.
        inputs: Gives the input, see `timed_input`: it is made when the first model is timed.
        patience: So many times `seconds` are taken at most to decide whether a model is faster.
        deadline: When the run is to end: then less is taken, but `seconds` always.
        course: Keeps what was timed; None where nothing is kept.
    """

    original: Path
    setting: Setting
    seconds: float
    seed: int
    inputs: Callable[[], Feeds]
    patience: float = 15.0
    deadline: Deadline | None = None
    course: Course | None = None

    @property
    def provider(self) -> str:
        return self.setting.provider

    @property
    def threads(self) -> int:
        return self.setting.threads

    @property
    def batch(self) -> int | None:
        return self.setting.batch

    @property
    def limit(self) -> float:
        """Seconds within which it is to be decided whether a model is faster."""
        most = self.patience * self.seconds
        return most if self.deadline is None else max(self.seconds, min(most, _SHARE * self.deadline.left()))

    def time(
        self, new: Path, *, threads: int | None = None, batch: int | None = None, decide: bool = False
    ) -> BenchResult:
        """The two, interleaved; with other threads, or the input at another batch size, where asked.

        Args:
            new: The file to compare with the original.
            threads, batch: In place of the meter's threads and the input's own rows; the input is as it is
                at a batch of 1, where nobody has asked for another.
            decide: Go on up to the limit until it is known whether the new one is faster.
        """
        under = replace(self.setting, threads=threads or self.threads, batch=batch or self.batch)
        return self._bench([new], under, self._inputs(batch), decide=decide)

    def time_all(self, models: Sequence[Path]) -> list[Ratio]:
        """The times of several models over the original's, in turns, until it is decided which are faster."""
        timed = self._bench(models, self.setting, self.inputs(), decide=True)
        found = [model.ratio for model in timed.settings[0].models[1:]]
        return [ratio for ratio in found if ratio is not None]

    def time_model(self, model: ir.Model) -> BenchResult:
        """The same for a model in memory, until it is decided whether it is faster."""
        with temporary_files.folder() as folder:
            new = folder / "model.onnx"
            save(model, new)
            return self.time(new, decide=True)

    def _bench(self, models: Sequence[Path], under: Setting, inputs: Feeds, *, decide: bool) -> BenchResult:
        def run() -> BenchResult:
            timed = benchmark.bench_under(
                [self.original, *models],
                under,
                data=inputs,
                duration=self.seconds,
                seed=self.seed,
                memory=False,
                limit=self.limit if decide else 0.0,
                convert=as_run,
            )
            return BenchResult((timed,), describe(inputs))

        if self.course is None:
            return run()
        files = [content_hash(path) for path in (self.original, *models)]
        settings = (repr(under), self.seconds, self.seed, decide)
        return self.course.under("bench", files, settings).kept(_CODEC, run, BenchResult)

    def _inputs(self, batch: int | None) -> Feeds:
        """The input, of one row where another batch than the meter's is asked for: it is made of that."""
        own = self.inputs()
        if batch is None or self.batch is None or batch == self.batch:
            return own
        specs = session.inputs_of(session.open_session(self.original, low_memory=True))
        return Feeds((rebatched(own[0], specs, 1),), own.source)

    def against(self, original: Path) -> LatencyMeter:
        """The same with another model to compare with."""
        return replace(self, original=original)
