"""The latency meter: models timed against the original, on one input from the search to the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.random_inputs import random_feeds, trial_of
from onnxdecomp.errors import ModelError
from onnxdecomp.evaluate import benchmark
from onnxdecomp.evaluate.benchmark import BenchResult
from onnxdecomp.graph.save import save
from onnxdecomp.runtime import session, temporary_files
from onnxdecomp.runtime.timing import Ratio


def timed_input(
    model: Path,
    *given: Feeds | None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Feeds:
    """The one input that everything is timed on: the first that the user gave, else a random one.

    Args:
        model: The original.
        given: Inputs of the user, the most fitting first; None where there are none.
        shapes, seed: Of a random input.

    Raises:
        ModelError: The model runs on no random input.
        UsageError: The shapes do not fit the model.
    """
    for feeds in given:
        if feeds is not None:
            return Feeds((feeds[0],), feeds.source)
    opened = session.open_session(model, low_memory=True)
    trial = trial_of(lambda feed: session.run(opened, feed))
    made = random_feeds(session.inputs_of(opened), trial, seed=seed, shapes=shapes, per_binding=1, count=1)
    if isinstance(made, str):
        raise ModelError(f"{model}: {made}; give its shapes with --input-shape or inputs with --calib")
    return made


@dataclass(frozen=True, eq=False)
class LatencyMeter:
    """How models are timed against the original.

    Attributes:
        original: The file that came in.
        provider, threads, seconds, seed: For benchmark.bench.
        inputs: Gives the input, see `timed_input`: it is made when the first model is timed.
        patience: So many times `seconds` are taken at most to decide whether a model is faster.
    """

    original: Path
    provider: str
    threads: int
    seconds: float
    seed: int
    inputs: Callable[[], Feeds]
    patience: float = 15.0

    @property
    def limit(self) -> float:
        """Seconds within which it is to be decided whether a model is faster."""
        return self.patience * self.seconds

    def time(
        self, new: Path, *, threads: int | None = None, batch: int = 1, decide: bool = False
    ) -> BenchResult:
        """The two, interleaved; with other threads, or the input at another batch size, where asked.

        Args:
            new: The file to compare with the original.
            threads, batch: In place of the meter's threads and the input's own rows.
            decide: Go on up to the limit until it is known whether the new one is faster.
        """
        return benchmark.bench(
            [self.original, new],
            providers=(self.provider,),
            threads=(threads or self.threads,),
            batch_sizes=(batch,),
            data=self.inputs(),
            duration=self.seconds,
            seed=self.seed,
            memory=False,
            limit=self.limit if decide else 0.0,
        )

    def time_all(self, models: Sequence[Path]) -> list[Ratio]:
        """The times of several models over the original's, in turns, until it is decided which are faster."""
        timed = benchmark.bench(
            [self.original, *models],
            providers=(self.provider,),
            threads=(self.threads,),
            data=self.inputs(),
            duration=self.seconds,
            seed=self.seed,
            memory=False,
            limit=self.limit,
        )
        found = [model.ratio for model in timed.settings[0].models[1:]]
        return [ratio for ratio in found if ratio is not None]

    def time_model(self, model: ir.Model) -> BenchResult:
        """The same for a model in memory, until it is decided whether it is faster."""
        with temporary_files.folder() as folder:
            new = folder / "model.onnx"
            save(model, new)
            return self.time(new, decide=True)

    def against(self, original: Path) -> LatencyMeter:
        """The same with another model to compare with."""
        return replace(self, original=original)
