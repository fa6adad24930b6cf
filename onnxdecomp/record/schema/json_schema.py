"""The JSON Schema (draft 2020-12) of records, from their dataclasses; docs/record_schema.py writes it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Union, get_args, get_origin

from onnxdecomp.core.json_values import Json
from onnxdecomp.record.schema.markers import OPTIONAL, Between, Known, Length
from onnxdecomp.record.schema.reading import hints
from onnxdecomp.record.schema.records import RECORDS
from onnxdecomp.runtime.jsonio import LEFT_OUT

_WHAT = (
    "What --json of compress, inspect, bench and finetune writes; see docs/reference/record.md. "
    "New keys may come at any time, so readers ignore keys that they do not know."
)

_SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def json_schema() -> dict[str, Json]:
    """The schema of all records; each has its own definition, see `definition`."""
    records = list(dict.fromkeys(RECORDS.values()))
    made: dict[str, Json] = {}
    for record in records:
        define(record, made)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:onnxdecomp:record:1",
        "title": "Record of onnxdecomp, version 1",
        "description": _WHAT,
        "oneOf": [_reference(record) for record in records],
        "$defs": made,
    }


def definition(kind: type) -> str:
    """The name of a dataclass among the schema's definitions: run_record."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def _reference(kind: type) -> dict[str, Json]:
    return {"$ref": f"#/$defs/{definition(kind)}"}


def define(kind: type, made: dict[str, Json]) -> None:
    """Add the definition of a dataclass, and of those that its fields hold."""
    if definition(kind) in made:
        return
    made[definition(kind)] = None  # its place: those below come after it
    said = descriptions(kind)
    properties: dict[str, Json] = {}
    fields = dataclasses.fields(kind)
    for field in fields:
        hint = hints(kind)[field.name]
        found = dict(_schema(_there(hint) if field.metadata.get(LEFT_OUT) else hint, made))
        properties[field.name] = found | ({"description": said[field.name]} if field.name in said else {})
    required = [field.name for field in fields if not field.metadata.get(OPTIONAL)]
    made[definition(kind)] = {
        "type": "object",
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "properties": properties,
        **({"required": required} if required else {}),
    }


def _there(hint: object) -> object:
    """What is there where a key is not left out: of numbers null too, which stands for one not finite."""
    parts = get_args(hint)
    return hint if float in parts else parts[0]


def _schema(hint: object, made: dict[str, Json]) -> Mapping[str, Json]:
    if hint is object:
        return {}
    if isinstance(hint, type) and hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        define(hint, made)
        return _reference(hint)
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return {"const": parts[0]} if len(parts) == 1 else {"enum": list(parts)}
    if kind is Annotated:
        return {**_schema(parts[0], made), **_bounds(parts[1], made)}
    if kind is tuple:
        return {"type": "array", "items": _schema(parts[0], made)}
    if kind in (Union, types.UnionType):
        some = [_schema(part, made) for part in parts]
        simple = all(list(one) == ["type"] for one in some)
        return {"type": [one["type"] for one in some]} if simple else {"anyOf": some}
    if isinstance(kind, type) and issubclass(kind, Mapping):
        held = _schema(parts[1], made)
        return {"type": "object", "additionalProperties": held or True}
    raise TypeError(f"{hint} has no JSON Schema")


def _bounds(marker: object, made: dict[str, Json]) -> Mapping[str, Json]:
    match marker:
        case Between(low, high):
            return {"minimum": low, "maximum": high}
        case Length(least, None):
            return {"minItems": least}
        case Length(least, most):
            return {"minItems": least, "maxItems": most}
        case Known(keys, required):
            known = {key: _schema(kind, made) for key, kind in keys.items()}
            return {"properties": known} | ({"required": list(required)} if required else {})
    raise TypeError(f"{marker} has no JSON Schema")


def descriptions(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say of each field."""
    return {name: text for base in reversed(kind.__mro__) for name, text in _described(base)}


def _described(kind: type) -> Iterator[tuple[str, str]]:
    """Of the section "Attributes:", where several names may share a text."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")[2]
    for entry in re.split(r"\n(?=    \S)", section):
        names, colon, text = entry.partition(": ")
        if colon:
            for name in names.split(","):
                yield name.strip(), " ".join(text.split())
