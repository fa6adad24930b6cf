"""A fleet: many models compressed one after the other, with one executor and one table at the end.

[defaults]                # options of all models, by their names in docs/reference/options.md
target = "macs=2x"

[[model]]
file = "encoder.onnx"     # as all paths, from the folder of this file on
output = "small.onnx"     # by default beside this file, "encoder.METHOD.onnx"
calib = "sentences.npz"   # and every other option
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.core.options import described, option_fields, suggest
from onnxdecomp.errors import OnnxDecompError, UsageError
from onnxdecomp.runtime.toml_file import read_toml
from onnxdecomp.tasks.executors import opened, parse_executor
from onnxdecomp.workflow.compress import compress_by, default_output
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.config_checks import checked

if TYPE_CHECKING:
    from onnxdecomp.pipeline.base import Progress
    from onnxdecomp.workflow.result import Result

_OWN = ("file", "output")


@dataclass(frozen=True)
class Member:
    """A model of a fleet, and what is asked of it."""

    model: Path
    output: Path
    config: CompressConfig


@dataclass(frozen=True, eq=False)
class MemberResult:
    """What became of a model.

    Attributes:
        member: The model.
        result: What was made; None where it failed.
        error, code: Why it failed, and the exit code that it would have had; "" and 0 where it did not.
        seconds: That it took.
    """

    member: Member
    result: Result | None
    error: str
    code: int
    seconds: float


def read_fleet(file: Path, said: Mapping[str, object]) -> tuple[Member, ...]:
    """The models that a file names, all of whose options are checked.

    Args:
        file: TOML, as the module's docstring shows it.
        said: Options that win over the file's, by name.

    Raises:
        UsageError: The file cannot be read, or holds what is no option; or two outputs are one file.
    """
    held = read_toml(file, "a list of models", str(file))
    defaults, tables = held.get("defaults", {}), held.get("model", [])
    if unknown := sorted(held.keys() - {"defaults", "model"}):
        raise UsageError(f"{file}: what is {unknown[0]!r}? There are [defaults] and [[model]]")
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{file} names no model: begin each with [[model]]")
    members = []
    for number, table in enumerate((defaults, *tables)):
        where = f"{file}, model {number}" if number else f"{file}, [defaults]"
        if not isinstance(table, Mapping):
            raise UsageError(f"{where}: is no table")
        _check(table, where, own=number > 0)
        if number and isinstance(defaults, Mapping):
            members.append(_member({**defaults, **table}, said, file, where))
    seen: dict[Path, Path] = {}
    for member in members:
        other = seen.setdefault(member.output.absolute(), member.model)
        if other is not member.model:
            raise UsageError(f"{file}: {other} and {member.model} would both go to {member.output}")
    return tuple(members)


def compress_fleet(
    members: Sequence[Member], executor: str = "serial", progress: Progress | None = None
) -> Iterator[MemberResult]:
    """Compress the models one after the other; one that fails is passed over, with its error."""
    with opened(parse_executor(executor)) as pool:
        for member in members:
            yield _compressed(member, pool, progress)


def _compressed(member: Member, pool: Executor | None, progress: Progress | None) -> MemberResult:
    start = time.monotonic()
    try:
        result = compress_by(pool, member.model, member.output, member.config, progress=progress)
    except OnnxDecompError as error:
        return MemberResult(member, None, str(error), error.exit_code, time.monotonic() - start)
    return MemberResult(member, result, "", 0, time.monotonic() - start)


def _check(table: Mapping[str, object], where: str, *, own: bool) -> None:
    known = [field.name for field in option_fields(CompressConfig)]
    for name in table:
        if name == "executor":
            raise UsageError(f"{where}: one executor serves all models: name it with --executor")
        if name not in known and not (own and name in _OWN):
            raise UsageError(f"{where}: there is no option {name!r}{suggest(name, known)}")


def _member(table: Mapping[str, object], said: Mapping[str, object], file: Path, where: str) -> Member:
    if not isinstance(model := table.get("file"), str):
        raise UsageError(f"{where}: 'file' names the model")
    folder = file.parent
    paths = {field.name for field in option_fields(CompressConfig) if described(field).metavar in _PATHS}
    options = {
        name: _from(folder, value) if name in paths and isinstance(value, str) else value
        for name, value in table.items()
        if name not in _OWN
    }
    try:
        config = checked(CompressConfig.of(None, {**options, **said}))
        output = table.get("output", str(default_output(model, config)))
        return Member(folder / model, folder / str(output), replace(config, executor="serial"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


_PATHS = ("DATA", "FILE", "FOLDER")


def _from(folder: Path, value: str) -> str:
    """A path from the folder of the file on; what names a callable stays."""
    return value if ":" in value else str(folder / value)
