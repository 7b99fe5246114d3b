"""Parse YAML into plain data, and keep the line of every field.

PyYAML composes a tree of nodes that have a position in the file. This module builds the data from that tree and keeps
the positions, so that an error about `inputs.image.shape` can name a line. Scalars follow the core schema of YAML 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema) rather than YAML 1.1, PyYAML's default: `1e-5` is a number, and `on`,
`yes` and `12:30` are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

FieldPath = tuple[str | int, ...]
_MAX_VALUES = 5_000  # a few lines of nested aliases can expand to billions of values
_MAX_CHARACTERS = 4_000_000
_MAX_DIGITS = 4000
_MAX_DEPTH = 100  # far below the depth at which pydantic gives up


@dataclass(frozen=True)
class YamlDocument:
    """The data of a YAML file, and the 1-based line of each field."""

    data: Any
    lines: Mapping[FieldPath, int]

    def line_of(self, path: FieldPath) -> int:
        """Return the line of a field, or of the closest field around it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


_TOO_MANY_VALUES = f"more than {_MAX_VALUES} values, counting every use of an alias"


class YamlError(Exception):
    """The text is not valid YAML, or a key occurs twice; `line` is 1-based."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class _CoreSchemaLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own hook)
    _nodes = _characters = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, unless there are too many to read in a moment. Raises `YamlError`."""
        self._nodes += 1
        if self._nodes > 2 * _MAX_VALUES:  # a key and its value are two nodes
            raise YamlError(self.line + 1, _TOO_MANY_VALUES)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def count_characters(self, node: yaml.Node) -> None:
        """Count the text of a use of a scalar, which an alias may repeat. Raises `YamlError` for too much text."""
        self._characters += len(node.value)
        if self._characters > _MAX_CHARACTERS:
            message = f"more than {_MAX_CHARACTERS} characters, counting every use of an alias"
            raise YamlError(node.start_mark.line + 1, message)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
):
    _CoreSchemaLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Return an integer of the core schema, in which 010 is ten."""
    text = str(loader.construct_scalar(node))
    if len(text) > _MAX_DIGITS:
        raise ValueError  # Python reads more in hexadecimal, and cannot write them as a decimal number
    return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)


_CoreSchemaLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str) -> YamlDocument:
    """Parse one YAML document. Raises `YamlError` with the line of the problem."""
    try:
        loader = _CoreSchemaLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"the character U+{ord(text[error.position]):04X} is not allowed in YAML") from None
    try:
        node = loader.get_single_node()
        lines: dict[FieldPath, int] = {}
        data = None if node is None else _convert_node(loader, node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(text for text in (error.context, error.problem) if text)
        raise YamlError(mark.line + 1 if mark else 1, message or str(error)) from None
    except RecursionError:
        raise YamlError(1, "the document contains itself, or is nested too deeply") from None
    finally:
        loader.dispose()
    return YamlDocument(data, lines)


def _convert_node(loader: _CoreSchemaLoader, node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > _MAX_VALUES:
        raise YamlError(node.start_mark.line + 1, _TOO_MANY_VALUES)
    if len(path) > _MAX_DEPTH:
        raise RecursionError
    if isinstance(node, yaml.SequenceNode):
        return [_convert_node(loader, item, (*path, index), lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        loader.count_characters(node)
        _reject_surrogates(node)
        try:
            return loader.construct_object(node)
        except (ValueError, LookupError, AttributeError):  # PyYAML raises them for text that does not match its tag
            kind = node.tag.rpartition(":")[2]
            raise YamlError(node.start_mark.line + 1, f"cannot read {node.value[:40]!r} as {kind}") from None
    data: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(line, "a key must be a single value, not a list or a mapping")
        _reject_surrogates(key_node)
        key = key_node.value
        if key in data:
            raise YamlError(line, f"duplicate key {key!r}")
        field = (*path, key)
        lines[field] = line
        data[key] = _convert_node(loader, value_node, field, lines)
    return data


def _reject_surrogates(node: yaml.Node) -> None:
    """Refuse half of a surrogate pair, which can be written as an escape but not encoded in UTF-8."""
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        code = ord(node.value[error.start])
        raise YamlError(node.start_mark.line + 1, f"U+{code:04X} is half of a surrogate pair") from None
