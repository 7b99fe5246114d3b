"""Write docs/api.md, the public Python API, from signatures and docstrings.

python docs/generate_api.py

tests/test_docs.py fails if docs/api.md is not what this script writes.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).resolve().parent / "api.md"
WIDTH = 100
INTRODUCTION = """\
# Python API

Everything that a program may import. All other modules are internal and may change in any version.
This page is generated from the code by `make api`.

- [`packager`](#packager): build, load, verify, sign and compare bundles
- [`packager.checkpoint`](#packagercheckpoint): read checkpoints, and save those of a training loop
- [`packager.serving`](#packagerserving): serve bundles over HTTP
- [`packager.errors`](#packagererrors): the errors

Importing `packager` imports neither torch nor onnx. Each name is imported when it is first used.
"""
ERRORS = """\
## `packager.errors`

One class per error code, all derived from `packager.PackagerError`. [errors.md](errors.md) lists the codes with their
meaning, and the exit status that the command line gives them. The log messages of the library go to the loggers
`packager`, `packager.checkpoint` and `packager.serving`.
"""
SECTIONS = (
    ("packager", "Build, load, verify, sign and compare bundles."),
    ("packager.checkpoint", "Read checkpoints, and save those of a training loop ([training.md](training.md))."),
    (
        "packager.serving",
        "Serve bundles over HTTP, in a service of your own or by `package serve` ([serving.md](serving.md)).",
    ),
)
CREATED_BY_PACKAGER = ("Bundle", "PackagerError")  # a program reads their attributes, and does not construct them


def render() -> str:
    """Return the text of docs/api.md."""
    sections = [_render_module(importlib.import_module(name), summary) for name, summary in SECTIONS]
    return "\n".join((INTRODUCTION, *sections, ERRORS))


def _render_module(module: ModuleType, summary: str) -> str:
    names = sorted(module.__all__, key=lambda name: (inspect.isclass(getattr(module, name)), name.lower()))
    values = {name: getattr(module, name) for name in names}
    exported = {name: value for name, value in values.items() if callable(value)}  # not __version__, not errors
    parts = [f"## `{module.__name__}`\n\n{summary}\n"]
    for name, value in exported.items():
        render_value = _render_class if inspect.isclass(value) else _render_function
        parts.append(render_value(f"{module.__name__}.{name}", value))
    related = _related_dataclasses(list(exported.values()))
    return "\n".join((*parts, *(_render_class(value.__name__, value) for value in related)))


def _related_dataclasses(values: list[Any]) -> list[type]:
    """Return the dataclasses that annotations of exported values name, directly or in a field, without the exported."""
    related = list(values)
    for value in related:  # grows meanwhile
        members = [getattr(value, name) for name in _members(value)] if inspect.isclass(value) else []
        annotated = [value, *(member.fget if isinstance(member, property) else member for member in members)]
        annotations = " ".join(text for each in annotated for text in inspect.get_annotations(each).values())
        namespace = vars(importlib.import_module(value.__module__))
        for name in re.findall(r"\w+", annotations):
            candidate = namespace.get(name)
            if inspect.isclass(candidate) and dataclasses.is_dataclass(candidate) and candidate not in related:
                related.append(candidate)
    return related[len(values) :]


def _render_function(name: str, function: Callable[..., Any]) -> str:
    return f"### `{name}`\n\n{_code(_signature(name, function))}\n{inspect.getdoc(function)}\n"


def _render_class(name: str, value: type) -> str:
    short = name.rpartition(".")[2]
    fields = list(_fields(value))
    bases = "(Exception)" if issubclass(value, Exception) else ""
    blocks = [_code("\n    ".join((f"class {short}{bases}:", *fields)))]
    if not dataclasses.is_dataclass(value) and short not in CREATED_BY_PACKAGER:
        blocks.insert(0, _code(_signature(name, value)))
    parts = ["\n".join((f"### `{name}`\n", *blocks, f"{inspect.getdoc(value)}\n"))]
    parts += [_render_member(short, member, getattr(value, member)) for member in _members(value)]
    return "\n".join(parts)


def _render_member(owner: str, name: str, member: Any) -> str:
    title = f"{owner}.{name}"
    if isinstance(member, property):
        assert member.fget is not None
        declaration = f"{title}: {_annotation(member.fget.__annotations__['return'], member.fget)}"
    else:
        declaration = _signature(title, member)
    return f"#### `{title}`\n\n{_code(declaration)}\n{inspect.getdoc(member)}\n"


def _members(value: type) -> list[str]:
    """Return the public methods and properties that a class itself defines, and `__call__`."""
    return [
        name
        for name, member in vars(value).items()
        if (not name.startswith("_") or name == "__call__")
        and (inspect.isfunction(member) or isinstance(member, property))
    ]


def _fields(value: type) -> Iterator[str]:
    """Yield a line for each public attribute: the fields of a dataclass, or what a class and its __init__ declare."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            default = "" if field.default is dataclasses.MISSING else f" = {_default(field.default)}"
            if field.default_factory is not dataclasses.MISSING:
                default = f" = {_default(field.default_factory())}"
            yield f"{field.name}: {field.type}{default}".replace("'", '"')
        return
    for name, annotation in inspect.get_annotations(value).items():
        yield f"{name}: {annotation.removeprefix('ClassVar[').removesuffix(']')}"
    constructor = ast.parse(textwrap.dedent(inspect.getsource(value.__init__)))
    parameters = {node.arg: node.annotation for node in ast.walk(constructor) if isinstance(node, ast.arg)}
    for target, assigned, annotation in _assignments(constructor):
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_"):
            copied = parameters.get(assigned.id) if isinstance(assigned, ast.Name) else None
            declared = annotation or copied
            yield f"{target.attr}: {ast.unparse(declared)}" if declared else target.attr


def _assignments(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None, ast.expr | None]]:
    """Yield the target, the value and the annotation of every assignment, those of tuples one by one."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.AnnAssign):
            yield statement.target, statement.value, statement.annotation
        elif isinstance(statement, ast.Assign):
            target, value = statement.targets[0], statement.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                yield from ((left, right, None) for left, right in zip(target.elts, value.elts, strict=True))
            else:
                yield target, value, None


def _signature(name: str, function: Callable[..., Any]) -> str:
    """Return the declaration of a function or a constructor, on one line if it fits."""
    source = function.__init__ if inspect.isclass(function) else function
    signature = inspect.signature(source)
    parameters, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parameters.append("*")
        parameters.append(_parameter(parameter, source))
    result = "" if inspect.isclass(function) else f" -> {_annotation(signature.return_annotation, source)}"
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){result}"


def _parameter(parameter: inspect.Parameter, function: Callable[..., Any]) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {_annotation(parameter.annotation, function)}"
    return text if parameter.default is parameter.empty else f"{text} = {_default(parameter.default)}"


def _annotation(annotation: str, function: Callable[..., Any]) -> str:
    """Return an annotation as the source has it, with aliases of literals spelled out."""

    def spell_out(match: re.Match[str]) -> str:
        value = function.__globals__.get(match[0])
        choices = typing.get_args(value) if typing.get_origin(value) is typing.Literal else ()
        return f"Literal[{', '.join(map(_default, choices))}]" if choices else match[0]

    return re.sub(r"\b[A-Z]\w+\b", spell_out, annotation)


def _default(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if inspect.isfunction(value):
        return value.__name__
    if dataclasses.is_dataclass(value) and value == type(value)():
        return f"{type(value).__name__}()"
    return repr(value)


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE} written")
