"""Check the archive of an exported program before torch reads it, so that reading it runs nothing but the program.

`torch.export.load` runs whatever its file asks for: it unpickles example inputs, constants and tensor subclasses with
`weights_only=False`, loads native libraries of AOTInductor, evaluates the sizes of tensors with `sympy.sympify`, which
is Python's `eval`, resolves operators as attributes of `torch` (`torch.ops.load_library` is one), and generates Python
code from the names of nodes and arguments. None of this is needed to express a model. `check_archive` accepts an
archive with the program and raw tensors alone, in which every name is a plain name, every size an arithmetic
expression, and every operator one of ATen's that computes something.

Such a program can still ask for any amount of memory or time, as any model can.
"""

from __future__ import annotations

import ast
import json
import re
from typing import IO, Any

from packager.common import deterministic_zip

ROOT = "model"
"""The folder inside the archive."""
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"

_PROGRAM = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_CONSTANT_FILES = ("archive_format", "archive_version", "byteorder", ".data/version")
_RAW_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")

_NAME = re.compile(r"[\w.+-]*", re.ASCII)  # neither a call nor a statement
_TEXT = re.compile(r"[\w .,>-]*", re.ASCII)  # arguments of operators: "floor", "bij,bjk->bik"
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\.|save\.)(_{0,2}[a-z]\w*)\.[A-Za-z]\w*"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub"
    r"|truediv)"
    r"|torch\._?sym_\w+|math\.\w+",
    re.ASCII,
)
_EXPRESSION_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Half", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Equality",
    "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "And", "Or", "Not",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "OpaqueUnaryFn_sqrt", "OpaqueUnaryFn_log2",
})  # fmt: skip
_MAX_EXPRESSION_CHARACTERS = 10_000
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


class ArchiveUnsafe(ValueError):
    """The archive holds more than a program of plain operators and its tensors, so torch must not read it."""


def check_archive(stream: IO[bytes]) -> None:
    """Check that an exported program is one that torch can read without running anything else.

    The stream is left at its start. Raises `ArchiveUnsafe`, or OSError.
    """
    try:
        for name, chunks in deterministic_zip.read_zip(stream):
            folder, _, entry = name.partition("/")
            if folder != ROOT:
                raise ArchiveUnsafe(f"the archive holds {name!r}")
            _check_entry(entry, chunks)
    except deterministic_zip.ZipMalformed as error:
        raise ArchiveUnsafe(f"the archive is malformed: {error}") from None
    stream.seek(0)


def _check_entry(name: str, chunks: Any) -> None:
    if name in _CONSTANT_FILES or _RAW_TENSOR.fullmatch(name):
        return
    if name not in (_SAMPLE_INPUTS, _PROGRAM, *_CONFIGS):
        raise ArchiveUnsafe(f"the archive holds {name!r}")
    content = b"".join(chunks)
    if name == _SAMPLE_INPUTS:
        if content:
            raise ArchiveUnsafe("the archive holds a pickle of example inputs")
        return
    try:
        _check_value("", json.loads(content))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArchiveUnsafe):
            raise
        raise ArchiveUnsafe(f"{name} cannot be read: {type(error).__name__}") from None


def _check_value(field: str, value: Any) -> None:
    """Check a JSON value; `field` is the name under which it is found. Raises `ArchiveUnsafe`."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text("a name", name, _NAME)
            _check_value(name, item)
    elif isinstance(value, list):
        for item in value:
            _check_value(field, item)
    elif isinstance(value, str):
        _check_string(field, value)
    if field == "use_pickle" and value:
        raise ArchiveUnsafe("a tensor is stored as a pickle")
    if field == "guards_code" and value:
        raise ArchiveUnsafe("the program has guards in Python")


def _check_string(field: str, text: str) -> None:
    if field == "expr_str":
        _check_expression(text)
    elif field in ("in_spec", "out_spec"):
        _check_structure(json.loads(text))
    elif field == "target":
        _check_text("the operator", text, _OPERATORS)
    else:
        _check_text(f"{field}:", text, _TEXT if field in ("as_string", "as_strings") else _NAME)


def _check_text(kind: str, text: str, allowed: re.Pattern[str]) -> None:
    if not allowed.fullmatch(text):
        raise ArchiveUnsafe(f"{kind} {text[:100]!r} is not allowed")


def _check_structure(spec: Any) -> None:
    """Check a tree of containers, `[1, {"type": "builtins.tuple", "context": "null", "children_spec": […]}]`."""
    for node in spec if isinstance(spec, list) else [spec]:
        if isinstance(node, dict):
            if node.get("type") not in _CONTAINERS or node.get("context") not in (None, "null", "[]"):
                raise ArchiveUnsafe(f"arguments or outputs in {str(node.get('type'))[:100]!r}")
            _check_structure(node.get("children_spec", []))


def _check_expression(text: str) -> None:
    """Check the size of a tensor, as sympy's `srepr` writes it: `Add(Symbol('s21', integer=True), Integer(-1))`."""
    try:
        tree = ast.parse(text, mode="eval").body if len(text) <= _MAX_EXPRESSION_CHARACTERS else None
    except (SyntaxError, ValueError, MemoryError):  # the last for deep nesting
        tree = None
    if tree is None or not _is_arithmetic(tree):
        raise ArchiveUnsafe(f"the size {text[:100]!r} is not an arithmetic expression")


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in _EXPRESSION_FUNCTIONS
        return known and all(_is_arithmetic(item) for item in (*node.args, *(word.value for word in node.keywords)))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_arithmetic(node.operand)
    if isinstance(node, ast.Name):
        return node.id in ("true", "false")
    if not isinstance(node, ast.Constant):
        return False
    return not isinstance(node.value, str) or _NAME.fullmatch(node.value) is not None
