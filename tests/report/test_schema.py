"""The schema describes the records that are written, all of them and whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from onnxdecomp.errors import UsageError
from onnxdecomp.record.schema.records import RECORDS, Version
from onnxdecomp.report import SCHEMA, read_record, schema_text, together, validate
from tests.conftest import ROOT
from tests.report.conftest import Record, through_json


def test_it_is_a_schema() -> None:
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert SCHEMA.name == f"record-{get_args(Version)[0]}.schema.json"


def test_records_are_valid(record: Record) -> None:
    jsonschema.Draft202012Validator(json.loads(schema_text())).validate(record)
    validate(record)


def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert through_json(RECORDS[record["kind"]].from_json(record).to_json()) == record


def closed(schema: Any) -> Any:
    """The schema that allows no key that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def test_no_key_is_missing_in_the_schema(record: Record) -> None:
    jsonschema.Draft202012Validator(closed(json.loads(schema_text()))).validate(record)


def test_every_key_at_the_top_is_documented(
    ranks_record: Record, bench_record: Record, training_record: Record, trainings_record: Record
) -> None:
    documented = (ROOT / "docs" / "reference" / "record.md").read_text(encoding="utf-8")
    keys = {
        *ranks_record,
        *bench_record,
        *training_record,
        *trainings_record,
        *training_record["training"],
        *ranks_record["layers"][0],
        *ranks_record["run"],
    }
    assert [key for key in sorted(keys) if f"`{key}`" not in documented] == []


def test_new_keys_do_not_make_a_record_invalid(ranks_record: Record) -> None:
    later = copy.deepcopy(ranks_record)
    later["new"] = later["verdict"]["new"] = 1
    validate(later)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "version 2; this release reads version 1"),
        ({"kind": "party"}, "unknown kind 'party'"),
        ({"notes": [5]}, "notes/0: 5 is not of type 'string'"),
        ({"layers": None}, "layers: None is not of type 'array'"),
    ],
)
def test_what_is_no_record(ranks_record: Record, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        validate({**ranks_record, **change})


def test_a_file_that_holds_none(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for content, said in (("[]", "is no record"), ("{", "is no JSON"), ('{"a": 1}', "is no record")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UsageError, match=said):
            read_record(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_record(tmp_path / "missing.json")


def test_records_that_do_not_go_on_one_page(training_record: Record, bench_record: Record) -> None:
    damaged = {**training_record, "training": None}
    for records, said in (
        ([training_record], "two or more"),
        ([training_record, bench_record], "not of bench"),
        ([training_record, damaged], "damaged: /training"),
    ):
        with pytest.raises(UsageError, match=said):
            together(records)
