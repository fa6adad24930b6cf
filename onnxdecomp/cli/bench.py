"""`onnxdecomp bench`: time models against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxdecomp.cli.inputs import data_options, metric_option
from onnxdecomp.cli.options import configured
from onnxdecomp.cli.output import check_files, json_option, report_options, write_record
from onnxdecomp.cli.shapes import parse_pairs, parse_shapes

if TYPE_CHECKING:
    from onnxdecomp.evaluate.benchmark import SettingTimings


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@data_options
@metric_option
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
@configured("runtime", ("precision", "profile", "provider_options"))
@click.option("--duration", type=float, default=2.0, show_default=True, help="Seconds per setting.")
@click.option("--iterations", type=click.IntRange(min=1), help="Runs of each model, in place of --duration.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Untimed runs before."
)
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure the peak memory too.")
@click.option(
    "--gate",
    metavar="CONDITION",
    help="Exit with 1 and the reason unless every other model keeps this in every setting, such as "
    "'latency<=1.0 and rel_l2<=0.05'; docs/guides/ci.md lists the names.",
)
@report_options
@json_option("the run's record")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    models: tuple[str, ...],
    data: str | None,
    input_shape: tuple[str, ...],
    mask: str,
    metric: str | None,
    seed: int,
    provider: tuple[str, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    precision: str | None,
    profile: str,
    provider_options: tuple[str, ...],
    duration: float,
    iterations: int | None,
    warmup: int,
    memory: bool,
    gate: str | None,
    report_target: str | None,
    markdown_target: str | None,
    json_target: str | None,
) -> None:
    """Time each MODEL, the runs interleaved, and compare the others with the first.

    The ratio is that of the median latencies, with its 95 % bootstrap interval. Peak memory is what the
    resident set of a fresh process grew by that loaded and ran the model.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.errors import GateError
    from onnxdecomp.evaluate.benchmark import describe
    from onnxdecomp.workflow.compare import compare, gate_failure

    check_files(context, {**{f"MODEL {model}": model for model in models}, "--data": data})
    with console.progress("timing", len(provider) * len(batch) * len(threads)) as advance:
        result, record = compare(
            models,
            gate=gate,
            verify=True if report_target or markdown_target else None,
            providers=provider,
            batch_sizes=batch,
            threads=threads,
            precision=precision or "",
            profile=profile,
            options=parse_pairs(provider_options),
            duration=duration,
            iterations=iterations,
            warmup=warmup,
            data=data,
            shapes=parse_shapes(input_shape),
            mask=mask,
            metric=metric,
            seed=seed,
            memory=memory,
            advance=advance,
        )
    for setting in result.settings:
        for remark in describe(setting):
            console.note(f"note: {remark}")
    write_record(context, record, json_target, report_target, markdown_target)
    if "-" not in (json_target, markdown_target):
        for setting in result.settings:
            _show(setting)
    if reason := gate_failure(record):
        raise GateError(reason)


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f}"


def _show(setting: SettingTimings) -> None:
    from onnxdecomp.cli import console

    further = (setting.precision, setting.profile if setting.profile != "default" else "")
    title = f"{setting.provider}, threads {setting.threads or 'default'}, batch {setting.batch}"
    title = ", ".join(filter(None, (title, *further, "CUDA graph" if setting.graph else "", "ms")))
    on_card = ("card MiB",) if any(each.device_bytes is not None for each in setting.models) else ()
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
        *on_card,
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
                *(_mebibytes(timing.device_bytes) for _ in on_card),
                "1" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            )
        )
    console.show(console.table(title, columns, rows))
