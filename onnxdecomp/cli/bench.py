"""`onnxdecomp bench`: time models against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxdecomp.cli.inputs import data_options, parse_shapes
from onnxdecomp.cli.output import json_option

if TYPE_CHECKING:
    from onnxdecomp.benchmark import Setting


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@data_options
@click.option("--provider", multiple=True, default=("cpu",), show_default=True, help="Repeatable.")
@click.option(
    "--batch",
    multiple=True,
    type=click.IntRange(min=1),
    default=(1,),
    show_default=True,
    help="Repeatable.",
)
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(min=0),
    default=(1,),
    show_default=True,
    help="Threads within an operator; 0: one per core. Repeatable.",
)
@click.option("--duration", type=float, default=2.0, show_default=True, help="Seconds per setting.")
@click.option("--iterations", type=click.IntRange(min=1), help="Runs of each model, in place of --duration.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Untimed runs before."
)
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure the peak memory too.")
@json_option("the timings")
def command(
    *,
    models: tuple[str, ...],
    data: str | None,
    input_shape: tuple[str, ...],
    seed: int,
    provider: tuple[str, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    duration: float,
    iterations: int | None,
    warmup: int,
    memory: bool,
    json_target: str | None,
) -> None:
    """Time each MODEL, the runs interleaved, and compare the others with the first.

    The ratio is that of the median latencies, with its 95 % bootstrap interval. Peak memory is what the
    resident set of a fresh process grew by that loaded and ran the model.
    """
    from onnxdecomp import console, jsonio
    from onnxdecomp.benchmark import bench, describe

    with console.progress("timing", len(provider) * len(batch) * len(threads)) as advance:
        result = bench(
            models,
            providers=provider,
            batch_sizes=batch,
            threads=threads,
            duration=duration,
            iterations=iterations,
            warmup=warmup,
            data=data,
            shapes=parse_shapes(input_shape),
            seed=seed,
            memory=memory,
            advance=advance,
        )
    for setting in result.settings:
        for remark in describe(setting):
            console.note(f"note: {remark}")
    if json_target:
        jsonio.dump(result.to_json(), json_target)
    if json_target != "-":
        for setting in result.settings:
            _show(setting)


def _show(setting: Setting) -> None:
    from onnxdecomp import console

    title = f"{setting.provider}, threads {setting.threads or 'default'}, batch {setting.batch}, ms"
    columns = (
        "model",
        "min",
        "mean",
        "stdev",
        "p50",
        "p90",
        "p95",
        "p99",
        "rows/s",
        "peak MiB",
        "ratio of p50",
    )
    rows = []
    for timing in setting.models:
        s = timing.latency
        ratio = timing.ratio
        rows.append(
            (
                timing.model,
                *(f"{value:.3f}" for value in (s.min, s.mean, s.stdev, s.p50, s.p90, s.p95, s.p99)),
                f"{timing.throughput:.1f}",
                "-" if timing.peak_rss is None else f"{timing.peak_rss / 2**20:.1f}",
                "1" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            )
        )
    console.show(console.table(title, columns, rows))
