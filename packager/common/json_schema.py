"""Check parsed JSON against a JSON Schema, as far as pydantic's schemas go, without importing pydantic.

The schemas of schemas/ are generated from the models that define the files. A service that loads a bundle checks
config.json against its schema: importing pydantic would take as long as loading a small model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def find_schema_problem(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return the first difference of a value from a schema, as `field.name: what is wrong`; None if it fits."""
    return next(_iter_problems(value, schema, "", schema.get("$defs", {})), None)


def _iter_problems(value: Any, schema: Mapping[str, Any], field: str, definitions: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        problems = []
        for variant in schema["anyOf"]:
            problem = next(_iter_problems(value, variant, field, definitions), None)
            if problem is None:
                return
            problems.append(problem)
        yield max(problems, key=lambda problem: problem.count("."))  # of the variant that goes furthest
        return
    name = field or "it"
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{name}: expected {kind}, got {type(value).__name__}"
        return
    if value != schema.get("const", value) or value not in schema.get("enum", [value]):
        yield f"{name}: {value!r:.100} is not allowed"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{name}: {value!r:.100} does not match {schema['pattern']}"
    if isinstance(value, list) and not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{name}: {len(value)} items are not allowed"
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _iter_problems(item, schema["items"], _join(field, index), definitions)
    if isinstance(value, dict):
        yield from _iter_object_problems(value, schema, field, definitions)


def _iter_object_problems(
    value: dict[str, Any], schema: Mapping[str, Any], field: str, definitions: Mapping[str, Any]
) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    yield from (f"{_join(field, name)} is missing" for name in schema.get("required", ()) if name not in value)
    for name, item in value.items():
        if name in fields:
            yield from _iter_problems(item, fields[name], _join(field, name), definitions)
        elif others is False:
            yield f"{_join(field, name)!r:.100} is unknown"
        elif isinstance(others, dict):
            yield from _iter_problems(item, others, _join(field, name), definitions)
        if "propertyNames" in schema:
            yield from _iter_problems(name, schema["propertyNames"], _join(field, name), definitions)


def _join(field: str, name: str | int) -> str:
    return f"{field}.{name}" if field else str(name)
