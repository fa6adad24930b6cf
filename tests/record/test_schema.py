"""The dataclasses of records: the JSON Schema and the values that are made of them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jsonschema
import pytest

from onnxdecomp.core.json_values import Json
from onnxdecomp.record import schema
from onnxdecomp.record.schema.json_schema import define, definition
from onnxdecomp.record.schema.markers import ABSENT, LATER, Between, Known, Length
from onnxdecomp.record.schema.reading import MalformedError, read, recorded
from onnxdecomp.record.schema.records import RECORDS, RunRecord
from onnxdecomp.runtime.jsonio import plain
from tests.conftest import ROOT


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        share, rest: Of the whole,
            in two numbers.
    """

    share: Annotated[float, Between(0, 1)]
    rest: float | None


@dataclass(frozen=True, kw_only=True)
class Example(Part):
    """One of everything."""

    kind: Literal["a", "b"]
    version: Literal[1] = 1
    parts: Annotated[tuple[Part, ...], Length(1, 2)]
    one: Part | None
    sizes: Mapping[str, tuple[int | str | None, ...]]
    anything: Annotated[Mapping[str, Json], Known({"part": Part, "name": str}, ("part",))]
    later: bool = field(default=False, metadata=LATER)
    absent: Part | None = field(default=None, metadata=ABSENT)
    number: float | None = field(default=None, metadata=ABSENT)


EXAMPLE: Mapping[str, Json] = {
    "share": 0.5,
    "rest": None,
    "kind": "a",
    "version": 1,
    "parts": [{"share": 1, "rest": 2.5}],
    "one": None,
    "sizes": {"x": [1, "N", None]},
    "anything": {"part": {"share": 0, "rest": 1}, "other": [[], {"deep": None}]},
    "later": True,
}


def example_schema() -> dict[str, Json]:
    made: dict[str, Json] = {}
    define(Example, made)
    return {"$defs": made, "$ref": f"#/$defs/{definition(Example)}"}


def test_a_value_is_what_its_json_was() -> None:
    value = read(Example, EXAMPLE)
    assert value.parts == (Part(1, 2.5),)
    assert value.sizes == {"x": (1, "N", None)}
    assert plain(value) == EXAMPLE
    assert read(Example, plain(value)) == value


def test_what_is_not_finite_ends_no_run() -> None:
    """It becomes None where that may be, and stays elsewhere; JSON has null for both."""
    value = recorded(Part, {"share": float("nan"), "rest": float("inf"), "more": 1})
    assert math.isnan(value.share)
    assert value.rest is None
    assert plain(value) == {"share": None, "rest": None}


def test_keys_may_lack_and_others_may_come() -> None:
    earlier = {key: item for key, item in EXAMPLE.items() if key != "later"}
    value = read(Example, {**earlier, "news": 1})
    assert not value.later
    assert plain(value) == {**earlier, "later": False}


WRONG: dict[str, tuple[dict[str, Json], str]] = {
    "type": ({"rest": "much"}, "/rest: 'much'"),
    "boolean": ({"share": True}, "/share: 'True'"),
    "null": ({"later": None}, "/later: 'None'"),
    "choice": ({"kind": "c"}, "/kind: 'c'"),
    "list": ({"parts": {}}, "/parts: '{}'"),
    "item": ({"parts": [{"share": 1, "rest": 2.5}, {"share": 1}]}, "/parts/1: 'rest' is missing"),
    "object": ({"one": 5}, "/one: '5'"),
    "deep": ({"sizes": {"x": [1.5]}}, "/sizes/x/0: '1.5'"),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named_by_its_place(change: dict[str, Json], said: str) -> None:
    value = {**EXAMPLE, **change}
    with pytest.raises(MalformedError, match=said.replace("{", "\\{")):
        read(Example, value)
    assert list(jsonschema.Draft202012Validator(example_schema()).iter_errors(value))


OUTSIDE: dict[str, dict[str, Json]] = {
    "bound": {"share": 1.5},
    "length": {"parts": []},
    "known": {"anything": {"part": {"share": "?"}}},
    "required": {"anything": {}},
    "absent": {"absent": None},
}


def test_the_schema_takes_what_is_written() -> None:
    checker = jsonschema.Draft202012Validator(example_schema())
    checker.validate(EXAMPLE)
    # Of a number null stands for one that is not finite.
    checker.validate(plain(dataclasses.replace(read(Example, EXAMPLE), number=float("nan"))))


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE)
def test_the_schema_knows_what_types_cannot_say(change: dict[str, Json]) -> None:
    assert list(jsonschema.Draft202012Validator(example_schema()).iter_errors({**EXAMPLE, **change}))


def test_docstrings_are_the_descriptions() -> None:
    made: dict[str, Json] = {}
    define(Example, made)
    found = json.loads(json.dumps(made))["example"]
    assert found["description"] == "One of everything."
    assert found["properties"]["rest"]["description"] == "Of the whole, in two numbers."


def test_no_two_parts_have_one_name() -> None:
    """The name is that of the definition in the schema."""
    names = [name for _, name, _ in pkgutil.iter_modules(schema.__path__, f"{schema.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    parts = {
        one
        for module in modules
        for one in vars(module).values()
        if dataclasses.is_dataclass(one) and isinstance(one, type)
    }
    assert len(parts) > 40
    assert len({definition(part) for part in parts}) == len(parts)


def test_the_schema_in_the_package_is_that_of_the_dataclasses() -> None:
    found = subprocess.run([sys.executable, "docs/record_schema.py", "--check"], cwd=ROOT, check=False)
    assert found.returncode == 0, "the schema is out of date: python docs/record_schema.py"


def test_every_kind_of_record_can_be_read() -> None:
    assert set(RECORDS) == {"compress", "plan", "bench", "finetune", "trainings"}
    with pytest.raises(MalformedError, match="top level: 'kind' is missing"):
        RunRecord.from_json({})
