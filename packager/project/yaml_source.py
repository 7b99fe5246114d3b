"""YAML → plain data, with the line on which every field stands.

PyYAML composes a tree of nodes that know their place in the file; this module builds the data
from that tree and keeps the places beside it, so that a later complaint about `inputs.image.shape`
can name a line. Scalars follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema)
where PyYAML's default is 1.1: `1e-5` is a number, and `on`, `yes` and `12:30` are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

FieldPath = tuple[str | int, ...]
_MAX_VALUES = 100_000  # a few lines of aliases to aliases can stand for billions of values


@dataclass(frozen=True)
class YamlDocument:
    """What a YAML file says (`data`), and the 1-based line of each field (`lines`)."""

    data: Any
    lines: Mapping[FieldPath, int]

    def line_of(self, path: FieldPath) -> int:
        """The line of a field, or of the nearest field around it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class YamlError(Exception):
    """The text is not YAML, or says the same key twice; `line` is 1-based."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class _CoreSchemaLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own hook)


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
    """An integer of the core schema, where 010 is ten."""
    text = str(loader.construct_scalar(node))
    return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)


_CoreSchemaLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str) -> YamlDocument:
    """Parse one YAML document. Raises `YamlError` with the line at fault."""
    try:
        loader = _CoreSchemaLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"the character U+{ord(text[error.position]):04X} may not stand in YAML") from None
    try:
        node = loader.get_single_node()
        lines: dict[FieldPath, int] = {}
        data = None if node is None else _convert_node(loader, node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(one for one in (error.context, error.problem) if one)
        raise YamlError(mark.line + 1 if mark else 1, said or str(error)) from None
    except RecursionError:
        raise YamlError(1, "it contains itself, or is nested too deeply") from None
    finally:
        loader.dispose()
    return YamlDocument(data, lines)


def _convert_node(loader: yaml.SafeLoader, node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > _MAX_VALUES:
        raise YamlError(node.start_mark.line + 1, f"more than {_MAX_VALUES} values, aliases counted as often as used")
    if isinstance(node, yaml.SequenceNode):
        return [_convert_node(loader, item, (*path, index), lines) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        _reject_surrogates(node)
        try:
            return loader.construct_object(node)
        except (ValueError, LookupError, AttributeError):  # PyYAML's, for text that its tag does not fit
            kind = node.tag.rpartition(":")[2]
            raise YamlError(node.start_mark.line + 1, f"{node.value[:40]!r} cannot be read as {kind}") from None
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(line, "a key must be a single word")
        _reject_surrogates(key_node)
        key = key_node.value
        if key in found:
            raise YamlError(line, f"the key {key!r} stands here twice")
        place = (*path, key)
        lines[place] = line
        found[key] = _convert_node(loader, value_node, place, lines)
    return found


def _reject_surrogates(node: yaml.Node) -> None:
    """Refuse half a surrogate pair, which an escape can write and no UTF-8 file can hold."""
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        code = ord(node.value[error.start])
        raise YamlError(node.start_mark.line + 1, f"U+{code:04X} is half a character: no file can hold it") from None
