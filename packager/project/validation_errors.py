"""Turn pydantic's errors into problems that a user can act on.

Each problem has the file's line and field, the invalid value, and the closest valid name. All problems of a file are
reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from packager.checkpoint.remote.urls import redact_text
from packager.errors import Problem, did_you_mean
from packager.project.yaml_source import YamlDocument

_TORCH_DTYPE_ALIASES = {
    "half": "float16", "float": "float32", "double": "float64",
    "byte": "uint8", "char": "int8", "short": "int16", "int": "int32", "long": "int64", "boolean": "bool",
}  # fmt: skip
"""torch's names for dtypes that do not state their size. torch.float has 32 bits, numpy's float has 64."""


def format_location(path: Path, document: YamlDocument, field: Sequence[str | int]) -> str:
    """Return the location of a field, such as `package.yaml:12: inputs.image`."""
    dotted = ".".join(str(part) for part in field)
    return f"{path}:{document.line_of(tuple(field))}" + (f": {dotted}" if dotted else "")


def describe_validation_error(
    error: ValidationError, path: Path, document: YamlDocument, root: type[BaseModel], hints: Mapping[str, str]
) -> list[Problem]:
    """Return the problems of a file, in the order of its lines.

    `root` is the model that was validated, and `hints` maps the regular expressions of its fields to hints.
    """
    problems: dict[tuple[str | int, ...], Problem] = {}
    details = [(_strip_union_arms(detail["loc"], document.data, detail["type"]), detail) for detail in error.errors()]
    outer = {field[:length] for field, _ in details for length in range(len(field))}
    for field, detail in details:
        if detail["type"] in ("literal_error", "string_type") and field in outer:
            continue  # a union of a string and a mapping, and the user wrote a mapping: its own problems are reported
        message, hint = _describe_error(detail, field, root, hints)
        # pydantic reports an error for each arm of a union: keep the first.
        problems.setdefault(field, Problem(message, format_location(path, document, field), hint))
    order = sorted(problems, key=lambda field: (document.line_of(field), len(field)))
    return [problems[field] for field in order]


def _strip_union_arms(location: Sequence[str | int], data: Any, kind: str) -> tuple[str | int, ...]:
    """Return pydantic's location as a path in the file, without the names of union arms, which the file lacks."""
    field: list[str | int] = []
    for position, part in enumerate(location):
        if part == "[key]":
            break
        in_mapping = isinstance(data, Mapping) and part in data
        if in_mapping or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif not (kind == "missing" and position == len(location) - 1):
            continue
        field.append(part)
    return tuple(field)


def _describe_error(
    detail: Any, field: tuple[str | int, ...], root: type[BaseModel], hints: Mapping[str, str]
) -> tuple[str, str | None]:
    """Return the message and the hint for one of pydantic's errors."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if isinstance(value, str):
        value = redact_text(value)
    if kind == "extra_forbidden":
        return f"unknown field {field[-1]!r}", did_you_mean(str(field[-1]), _field_names_at(field[:-1], root))
    if kind == "missing":
        return f"missing field {field[-1]!r}", None
    if kind == "literal_error":
        return _describe_choice(value, str(context["expected"]), _field_names_at(field, root))
    if kind == "value_error":
        return str(context["error"]), None
    if kind == "string_pattern_mismatch":
        return f"invalid value {value!r}: it must match {context['pattern']}", hints.get(context["pattern"])
    if field[-2:-1] == ("shape",) and isinstance(field[-1], int):
        return f"invalid dim {value!r}", "use a size, such as 28, or a name, such as batch"
    if kind == "string_type" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"expected text, found the number {value!r}", "put it in quotes"
    if kind in ("model_type", "dict_type"):
        return f"expected a mapping of fields, found {value!r}", None
    message = detail["msg"].replace("Input should be ", "it must be ")
    return f"invalid value {value!r}: {message[0].lower()}{message[1:]}", None


def _describe_choice(value: Any, expected: str, field_names: Sequence[str]) -> tuple[str, str | None]:
    """Describe a value that is not one of the choices, nor the mapping of `field_names` that is allowed beside them."""
    if field_names and not isinstance(value, str):
        example = ", ".join(f"{name}: {value}" for name in field_names)
        message = f"invalid value {value!r}: expected {expected} or a mapping of {', '.join(field_names)}"
        return message, f"write a mapping such as {{{example}}}"
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    intended = _TORCH_DTYPE_ALIASES.get(str(value).removeprefix("torch."), str(value))
    return f"invalid value {value!r}: expected {expected}", did_you_mean(intended, choices)


def _field_names_at(field: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """Return the field names of the model at a field, or an empty list if there is no model."""
    annotation: Any = root
    for part in field:
        if get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
        elif (model := _find_model(annotation)) is not None:
            by_name = {info.alias or name: info for name, info in model.model_fields.items()}
            annotation = by_name[str(part)].annotation if part in by_name else None
    model = _find_model(annotation)
    return [info.alias or name for name, info in model.model_fields.items()] if model else []


def _find_model(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation: the annotation itself, or an arm of its union."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
