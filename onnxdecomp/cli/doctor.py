"""`onnxdecomp doctor`: what is installed, which providers really start, and what to type if not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxdecomp.cli.output import json_option

if TYPE_CHECKING:
    from onnxdecomp.cli.diagnose import Diagnosis


@click.command()
@click.option(
    "--provider",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Exit with 4 unless this provider starts.",
)
@json_option("the diagnosis")
def command(wanted: tuple[str, ...], json_target: str | None) -> None:
    """Say what is installed, which providers really start, and what to type if not.

    Exit code 0 where the CPU provider, or each --provider, starts a session; 4 otherwise.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.cli.diagnose import diagnose
    from onnxdecomp.errors import ProviderError
    from onnxdecomp.runtime import jsonio
    from onnxdecomp.runtime.providers import ort_name, short_name

    with console.progress("examining"):
        diagnosis = diagnose(wanted)
    if json_target:
        jsonio.dump(diagnosis, json_target)
    if json_target != "-":
        _show(diagnosis)
    names = [short_name(ort_name(name)) for name in wanted] or ["cpu"]
    for name in names:
        if not diagnosis.started(name):
            reasons = [problem for problem in diagnosis.problems if problem.what.startswith(name)]
            problem = next(iter(reasons or diagnosis.problems))
            remedy = f"; {problem.remedy}" if problem.remedy else ""
            raise ProviderError(f"{problem.what}{remedy}")


def _show(diagnosis: Diagnosis) -> None:
    from onnxdecomp.cli import console

    cpu = diagnosis.cpu
    versions = {**diagnosis.packages, **diagnosis.runtimes}
    rows = [(name, version or "missing") for name, version in versions.items()]
    starts = [
        (start.provider, "yes" if start.started else "no", start.reason or "")
        for start in diagnosis.providers
    ]
    results: list[Any] = [
        f"onnxdecomp {diagnosis.version}, Python {diagnosis.python}, {diagnosis.system}",
        f"CPU: {cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['features']) or 'features unknown'}",
        "",
        console.table("Packages", ("package", "version"), rows),
        console.table("Providers", ("provider", "starts", "why not"), starts),
    ]
    if diagnosis.cuda:
        found = ", ".join(name for name, there in diagnosis.cuda.items() if there) or "none"
        missing = ", ".join(name for name, there in diagnosis.cuda.items() if not there) or "none"
        results.append(f"CUDA libraries found: {found}; missing: {missing}")
    for problem in diagnosis.problems:
        results.append(f"! {problem.what}")
        if problem.remedy:
            results.append(f"  {problem.remedy}")
    console.show(*results, *(() if diagnosis.problems else ("No problem found.",)))
