"""The report of a run: a page that is sent around, or Markdown for a pull request, from the record alone.

Templates, charts and the schema's validation are other libraries' work, of the extra `report`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxdecomp.errors import UsageError
from onnxdecomp.record.schema.json_schema import definition
from onnxdecomp.record.schema.reading import MalformedError
from onnxdecomp.record.schema.records import RECORDS, FinetuneRecord, TrainingsRecord
from onnxdecomp.runtime import jsonio

NEEDED = ("jinja2", "matplotlib", "jsonschema")
"""What the extra `report` brings."""

SCHEMA = Path(__file__).with_name("record-1.schema.json")
"""The JSON Schema (2020-12) of records: docs/record_schema.py makes it of onnxdecomp.record.schema."""


def check_installed() -> None:
    """Check that the extra is there.

    Raises:
        UsageError: It is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"reports need {', '.join(missing)}: install the extra with pip install 'onnxdecomp[report]'"
        )


def schema_text() -> str:
    """The JSON Schema of records, as it is shipped."""
    return SCHEMA.read_text(encoding="utf-8")


def read_record(source: str | Path) -> dict[str, Any]:
    """The record in a file ("-": on stdin), checked against the schema.

    Raises:
        UsageError: The file cannot be read, or holds no record that this release reads.
    """
    value = jsonio.read(source)
    validate(value, str(source))
    record: dict[str, Any] = value
    return record


def validate(value: object, source: str = "the record") -> None:
    """Check a value against the schema.

    Raises:
        UsageError: It is no record; the line names the first place where it is not.
    """
    import json

    import jsonschema

    if not isinstance(value, Mapping) or "schema_version" not in value:
        raise UsageError(
            f"{source} is no record of onnxdecomp: --json of compress, inspect, bench or finetune writes one"
        )
    if value["schema_version"] != 1:
        raise UsageError(
            f"{source} is a record of version {value['schema_version']!r}; this release reads version 1"
        )
    kind = RECORDS.get(str(value.get("kind")))
    if kind is None:
        raise UsageError(f"{source} is a record of the unknown kind {value.get('kind')!r}")
    schema = json.loads(schema_text())
    # Not the whole schema: of an alternative that fails, only "is not valid under any" would be told.
    chosen = {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{definition(kind)}"}
    error = next(iter(jsonschema.Draft202012Validator(chosen).iter_errors(value)), None)
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "top level"
        raise UsageError(f"{source} is no record of version 1: {place}: {error.message[:200]}")


def together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record of several trainings, whose page draws their curves side by side.

    Args:
        records: Two or more, as `finetune` made them, or `read_record` read them.

    Raises:
        UsageError: One of them is of something else, or damaged.
    """
    others = sorted({str(record.get("kind")) for record in records} - {"finetune"})
    if others or len(records) < 2:
        raise UsageError(
            f"only records of finetune are shown on one page, not of {', '.join(others)}"
            if others
            else "records of two or more trainings are needed"
        )
    try:
        trainings = tuple(FinetuneRecord.from_json(record) for record in records)
    except MalformedError as error:
        raise UsageError(f"a record of finetune is damaged: {error}") from error
    return TrainingsRecord(tool=trainings[0].tool, trainings=trainings).to_json()


def html(record: Mapping[str, Any]) -> str:
    """The page: needs no network and no other file.

    Args:
        record: As `compress`, `inspect`, `compare`, `finetune` or `together` made it, or `read_record`
            read it.
    """
    from onnxdecomp.report.page import render_html

    return render_html(record)


def markdown(record: Mapping[str, Any], *, all_layers: bool = False) -> str:
    """The same in Markdown as GitHub and GitLab show it, without figures.

    Args:
        record: As of `html`.
        all_layers: A row for every layer, also where those of repeated blocks would have one together.
    """
    from onnxdecomp.report.page import render_markdown

    return render_markdown(record, all_layers=all_layers)
