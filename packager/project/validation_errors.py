"""What pydantic finds wrong with a manifest, in our words, with its place in the file.

A finding names the file's line and field, the value found, and the nearest name that would have
been right; all findings of a file are reported at once.
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
"""What torch calls its dtypes beside their names with a size: torch.float is 32 bits wide, and numpy's float 64."""


def format_location(path: Path, document: YamlDocument, field: Sequence[str | int]) -> str:
    """`package.yaml:12: inputs.image`."""
    dotted = ".".join(str(part) for part in field)
    return f"{path}:{document.line_of(tuple(field))}" + (f": {dotted}" if dotted else "")


def describe_validation_error(
    error: ValidationError, path: Path, document: YamlDocument, root: type[BaseModel], hints: Mapping[str, str]
) -> list[Problem]:
    """Pydantic's findings about a `root`, in the order of the file; `hints` say in words what a pattern wants."""
    found: dict[tuple[str | int, ...], list[Problem]] = {}
    details = [(_strip_union_arms(detail["loc"], document.data, detail["type"]), detail) for detail in error.errors()]
    for field, detail in details:
        inside = any(other[: len(field)] == field and other != field for other, _ in details)
        if detail["type"] in ("literal_error", "string_type") and inside:
            continue  # the arm of a union that was not meant: the mapping's own problems follow
        message, hint = _describe_error(detail, field, root, hints)
        place = format_location(path, document, field)
        # A union complains once for each of its arms: the first complaint about a field stands.
        found.setdefault(field, [Problem(message, place, hint)])
    ordered = sorted(found.items(), key=lambda item: (document.line_of(item[0]), len(item[0])))
    return [problem for _, problems in ordered for problem in problems]


def _strip_union_arms(location: Sequence[str | int], data: Any, kind: str) -> tuple[str | int, ...]:
    """The user's field: pydantic's location without the arms of unions, which the file does not have."""
    field: list[str | int] = []
    for position, part in enumerate(location):
        if part == "[key]":
            break
        inside = isinstance(data, Mapping) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
        elif not (kind == "missing" and position == len(location) - 1):
            continue
        field.append(part)
    return tuple(field)


def _describe_error(
    detail: Any, field: tuple[str | int, ...], root: type[BaseModel], hints: Mapping[str, str]
) -> tuple[str, str | None]:
    """What is wrong with a field and what would be right, from one of pydantic's details."""
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if isinstance(found, str):
        found = redact_text(found)
    if kind == "extra_forbidden":
        known = _field_names_at(field[:-1], root)
        return f"{field[-1]!r} is not a field here", did_you_mean(str(field[-1]), known)
    if kind == "missing":
        return f"the field {field[-1]!r} is missing", None
    if kind == "literal_error":
        names = [value.strip("'") for value in str(context["expected"]).replace(" or ", ", ").split(", ")]
        meant = _TORCH_DTYPE_ALIASES.get(str(found).removeprefix("torch."), str(found))
        inside = _field_names_at(field, root)
        if inside and not isinstance(found, str):
            such = f"such as {{{', '.join(f'{name}: {found}' for name in inside)}}}"
            return f"found {found!r}, expected {context['expected']} or a mapping of {', '.join(inside)}", such
        return f"found {found!r}, expected {context['expected']}", did_you_mean(meant, names)
    if kind == "value_error":
        return str(context["error"]), None
    if kind == "string_pattern_mismatch":
        return f"found {found!r}, which does not match {context['pattern']}", hints.get(context["pattern"])
    if field[-2:-1] == ("shape",) and isinstance(field[-1], int):
        return f"found {found!r}, which is no dim", "a dim is a size, such as 28, or a name, such as batch"
    if kind == "string_type" and isinstance(found, (int, float)) and not isinstance(found, bool):
        return f"found {found!r}, a number where text is expected", "put it in quotes"
    if kind in ("model_type", "dict_type"):
        return f"found {found!r}, expected a mapping of fields", None
    message = detail["msg"].replace("Input should be ", "expected ")
    return f"found {found!r}: {message[0].lower()}{message[1:]}", None


def _field_names_at(field: Sequence[str | int], root: type[BaseModel]) -> list[str]:
    """The names that the model at a field knows, for the nearest-name hint."""
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
    """The pydantic model in an annotation: itself, or an arm of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arm in get_args(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            return arm
    return None
