"""`onnxdecomp compress --batch models.toml`: many models, and a table at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnxdecomp.workflow.fleet import MemberResult


class BatchType(click.ParamType[Any]):
    """A number of rows, or a TOML file that names models."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A whole number, or the path of the file."""
        if str(value).endswith(".toml"):
            from pathlib import Path

            return Path(str(value))
        return click.IntRange(min=1).convert(value, param, ctx)


def compress_all(file: Path, said: Mapping[str, Any], json_target: str | None) -> None:
    """Compress the models that a file names.

    Raises:
        UsageError: As `read_fleet`.
        click.exceptions.Exit: A model failed; with its exit code.
    """
    from onnxdecomp.cli import console
    from onnxdecomp.runtime import jsonio
    from onnxdecomp.workflow.fleet import compress_fleet, read_fleet

    executor = str(said.get("executor", "serial"))
    options = {name: value for name, value in said.items() if name not in ("batch", "executor")}
    if executor != "serial":
        options["executor"] = executor  # what it needs is checked with the rest
    members = read_fleet(file, options)
    done: list[MemberResult] = []
    with console.progress("load") as advance:
        for result in compress_fleet(members, executor, advance):
            done.append(result)
            name = result.member.model.name
            console.note(
                f"{name}: {result.error or f'done in {result.seconds:.0f} s'} ({len(done)} of {len(members)})"
            )
    if json_target:
        jsonio.dump({"kind": "batch", "models": [_recorded(one) for one in done]}, json_target)
    if json_target != "-":
        console.show(_table(done))
    failed = next((one.code for one in done if one.code), 0)
    if failed:
        raise click.exceptions.Exit(failed)


def _table(done: Sequence[MemberResult]) -> Any:
    from onnxdecomp.cli import console

    columns = ("model", "layers", "MACs", "file", "speed", "error", "seconds", "result")
    return console.table(None, columns, [_row(one) for one in done])


def _row(one: MemberResult) -> tuple[object, ...]:
    name, seconds = one.member.model.name, f"{one.seconds:.0f}"
    if one.result is None:
        return (name, "-", "-", "-", "-", "-", seconds, one.error)
    record = one.result.record
    totals, latency, verified = record["totals"], record["latency"], record["verify"]
    speed = None if latency is None else latency["speedup"]
    worst = None if verified is None else verified["worst"]
    return (
        name,
        f"{totals['layers']['decomposed'] + totals['layers']['cut']}/{totals['layers']['all']}",
        _ratio(totals, "macs"),
        _ratio(totals, "bytes"),
        "-" if speed is None else f"{speed['value']:.2f}x",
        "-" if worst is None else f"{worst:.2g}",
        seconds,
        str(one.member.output.name) if one.result.changed else "a copy: nothing was decomposed",
    )


def _ratio(totals: Mapping[str, Any], what: str) -> str:
    ratio = totals.get(what, {}).get("ratio")
    return "-" if ratio is None else f"{ratio:.2f}x"


def _recorded(one: MemberResult) -> dict[str, object]:
    return {
        "model": str(one.member.model),
        "output": None if one.result is None else str(one.member.output),
        "seconds": one.seconds,
        "error": one.error or None,
        "exit_code": one.code,
        "record": None if one.result is None else one.result.record,
    }
