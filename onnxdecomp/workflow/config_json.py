"""The JSON form of a CompressConfig: its options by group, those that are not their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.core.options import described, is_default, option_fields, suggest
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.configuration import PipelineConfig, PipelineSource, read
from onnxdecomp.runtime import jsonio
from onnxdecomp.workflow.config import GROUPS, CompressConfig

if TYPE_CHECKING:
    from onnxdecomp.core.json_values import Json

VERSION = 1


def to_json(config: CompressConfig) -> dict[str, Json]:
    """The configuration, to be written down: {"version": 1, "goal": {"target": "macs=2x"}, …}.

    What stands in the pipeline's file is in `pipeline`, in the same form as there.

    Raises:
        UsageError: An option has a value that JSON does not hold, such as data in memory.
    """
    groups: dict[str, dict[str, Json]] = {group: {} for group in GROUPS}
    for field in option_fields(CompressConfig):
        value = getattr(config, field.name)
        if config.origins.get(field.name) != "file" and (
            config.origins.get(field.name) == "caller" or not is_default(field, value)
        ):
            groups[described(field).group][field.name] = _plain(value, field.name)
    passes, options = config.pipeline.passes, config.pipeline.options
    pipeline: dict[str, Json] = {} if passes == PipelineConfig().passes else {"pipeline": list(passes)}
    pipeline |= {name: _plain(table, f"[{name}]") for name, table in options.items()}
    found: dict[str, Json] = {name: group for name, group in groups.items() if group}
    return {"version": VERSION, **found, **({"pipeline": pipeline} if pipeline else {})}


def from_json(value: Mapping[str, object]) -> CompressConfig:
    """The configuration that `to_json` has written.

    Raises:
        UsageError: It is of another version, or holds what is no option.
    """
    if "version" not in value:
        raise UsageError(f'a configuration says "version": {VERSION}; this one names no version')
    if value["version"] != VERSION:
        raise UsageError(f"a configuration of version {value['version']!r}, not {VERSION}")
    known = {field.name: described(field).group for field in option_fields(CompressConfig)}
    options: dict[str, object] = {}
    for group, table in value.items():
        if group in ("version", "pipeline"):
            continue
        names = [name for name, own in known.items() if own == group]
        if not names or not isinstance(table, Mapping):
            raise UsageError(f"a configuration has no group {group!r}{suggest(group, GROUPS)}")
        for name, option in table.items():
            if name not in names:
                raise UsageError(f"{group!r} has no option {name!r}{suggest(str(name), names)}")
            options[name] = option
    pipeline = value.get("pipeline", {})
    if not isinstance(pipeline, Mapping):
        raise UsageError("'pipeline' must be a table, as a pipeline's file holds it")
    return CompressConfig.of(read(pipeline), options)


def source_of(config: CompressConfig | PipelineSource) -> CompressConfig | PipelineSource:
    """What was given as a configuration, where it is the JSON form or a file of it (*.json) read.

    Raises:
        UsageError: The file cannot be read, or as `from_json`.
    """
    if isinstance(config, str | Path) and Path(config).suffix == ".json":
        held = jsonio.read(config)
        if not isinstance(held, Mapping):
            raise UsageError(f"{config} holds no configuration")
        try:
            return from_json(held)
        except UsageError as error:
            raise UsageError(f"{config}: {error}") from None
    return from_json(config) if isinstance(config, Mapping) and "version" in config else config


def _plain(value: object, name: str) -> Json:
    """A value as JSON holds it."""
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.training.settings import Settings

    if isinstance(value, Plan):
        return _plain(value.to_json(), name)
    if isinstance(value, Settings):
        return _plain(vars(value), name)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one, name) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    raise UsageError(f"{name} is a {type(value).__name__}, which cannot be written down: give a file")
