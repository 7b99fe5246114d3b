"""Describe the first difference between two versions of one file of a bundle, according to its format.

The description names the position and the two values: a field of a record, a node or weight of a model, an entry
of an archive, a tensor, a line of text, or else a byte. ONNX models need onnx; without it, bytes are compared.
"""

from __future__ import annotations

import json
import mmap
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

import safetensors

from packager.differences.fields import find_differences
from packager.differences.report import Difference, common_prefix_length, format_pair
from packager.differences.tensors import measure_change
from packager.errors import ModelUnreadable

FileContent: TypeAlias = "bytes | mmap.mmap"
_BLOCK_BYTES = 1 << 20
_TEXT_PROBE_BYTES = 1 << 13
_MAX_RECORD_BYTES = 1 << 26


class _Unreadable(Exception):
    """The file is not in the format of its name, or the library that reads it is not installed."""


def find_first_difference(a: Path, b: Path, file: str) -> str:
    """Describe the first difference of `file`, a path inside a bundle, between the folders `a` and `b`.

    Raises ValueError for a path that leaves the bundle, and OSError if a file cannot be read.
    """
    if file.startswith("/") or ".." in file.split("/"):
        raise ValueError(f"{file} is not a path inside a bundle")
    for folder, other in ((a, "second"), (b, "first")):
        if not (folder / file).is_file():
            return f"only the {other} has it"
    model = file.removesuffix("_data")
    description, unreadable = "", ""
    try:
        if model.endswith(".onnx"):
            description = _compare_models(a / model, b / model, graph=file == model)
        elif file.endswith((".ts", ".pt2")):
            description = _compare_archives(a / file, b / file)
        elif file.endswith(".json"):
            description = _compare_json(a / file, b / file)
        elif file.endswith(".safetensors"):
            description = _compare_tensor_files(a / file, b / file)
    except _Unreadable as error:
        unreadable = f" ({error})"
    return description or _compare_contents(_map_content(a / file), _map_content(b / file)) + unreadable


def _compare_models(before: Path, after: Path, *, graph: bool) -> str:
    """Describe the first node that differs, else the first field, else the first weight.

    Without `graph`, only weights are compared.
    """
    try:
        from packager.differences import onnx_model

        models = onnx_model.load_onnx_model(before), onnx_model.load_onnx_model(after)
        if graph and (node := onnx_model.find_first_node_difference(*models)):
            label, difference = node
            field = f"{difference.where} " if difference.where else ""
            return f"{label}: {field}{_format_values(difference)}"
        if graph and (field_difference := next(onnx_model.compare_graphs(*models), None)):
            return _format_difference(field_difference)
        weight = next(onnx_model.compare_weights(*models), None)
    except ModelUnreadable as error:
        raise _Unreadable(error.why) from None
    except ImportError as error:
        if error.name is None or error.name.startswith("packager"):
            raise
        raise _Unreadable(f"{error.name} is not installed") from None
    if weight is None:
        return ""
    return f"weight {weight.where}: {weight.change.text() if weight.change else _format_values(weight)}"


def _compare_json(before: Path, after: Path) -> str:
    if max(before.stat().st_size, after.stat().st_size) > _MAX_RECORD_BYTES:
        raise _Unreadable("too large to compare as JSON")
    try:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in (before, after)]
        return _format_difference(next(find_differences(*records), None))
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"not JSON: {error}") from None


def _compare_tensor_files(before: Path, after: Path) -> str:
    try:
        with safetensors.safe_open(before, "np") as left, safetensors.safe_open(after, "np") as right:
            return _compare_tensors(left, right)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Unreadable(f"not readable as tensors: {error}") from None  # numpy lacks some dtypes


def _compare_tensors(left: Any, right: Any) -> str:
    names = set(left.keys()), set(right.keys())
    for name in sorted(names[0] | names[1]):
        if name not in names[0] or name not in names[1]:
            return f"tensor {name}: only the {'first' if name in names[0] else 'second'} has it"
        slices = [file.get_slice(name) for file in (left, right)]
        types = [f"{tensor.get_dtype()}{tensor.get_shape()}" for tensor in slices]
        if types[0] != types[1]:
            return f"tensor {name}: {types[0]} and {types[1]}"
        change = measure_change(left.get_tensor(name), right.get_tensor(name))
        if change is not None:
            return f"tensor {name}: {change.text()}"
    return _format_difference(next(find_differences(left.metadata() or {}, right.metadata() or {}, "metadata"), None))


def _compare_archives(before: Path, after: Path) -> str:
    """Describe the first entry that differs, by name without the folder that contains all entries."""
    try:
        with zipfile.ZipFile(before) as left, zipfile.ZipFile(after) as right:
            names = set(left.namelist()), set(right.namelist())
            for name in sorted(names[0] | names[1]):
                inner = name.partition("/")[2] or name
                if name not in names[0] or name not in names[1]:
                    return f"{inner}: only the {'first' if name in names[0] else 'second'} has it"
                contents = left.read(name), right.read(name)
                if contents[0] != contents[1]:
                    return f"{inner} {_compare_contents(*contents)}"
    except Exception as error:  # noqa: BLE001 (zipfile and its decompressors raise a dozen unrelated classes)
        raise _Unreadable(f"not an archive: {error}") from None
    return ""


def _format_difference(difference: Difference | None) -> str:
    return f"{difference.where or 'the value'}: {_format_values(difference)}" if difference is not None else ""


def _format_values(difference: Difference) -> str:
    return " and ".join(format_pair(difference.before, difference.after))


# -- lines and bytes ------------------------------------------------------------------------


def _map_content(path: Path) -> FileContent:
    if path.stat().st_size == 0:
        return b""  # an empty file cannot be mapped
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _compare_contents(before: FileContent, after: FileContent) -> str:
    """Describe the first line that differs, or the first byte if a content is not text."""
    offset = _find_first_offset(before, after)
    if offset is None:
        return "nothing: the bytes are the same"
    if b"\0" not in before[:_TEXT_PROBE_BYTES] + after[:_TEXT_PROBE_BYTES]:
        try:
            lines = _line_at(before, offset), _line_at(after, offset)
        except UnicodeDecodeError:
            lines = None, None
        if lines[0] != lines[1]:
            texts = [line and line.strip() for line in lines]
            shown = format_pair(*(texts if texts[0] != texts[1] else lines))  # with indentation if only that differs
            return f"line {before[:offset].count(10) + 1}: {shown[0]} and {shown[1]}"
    values = [f"{content[offset]:#04x}" if offset < len(content) else "the end" for content in (before, after)]
    return f"byte {offset}: {values[0]} and {values[1]}"


def _find_first_offset(before: FileContent, after: FileContent) -> int | None:
    """Return the offset of the first byte that differs, which may be the end of the shorter; None if equal."""
    shorter = min(len(before), len(after))
    for start in range(0, shorter, _BLOCK_BYTES):
        end = min(start + _BLOCK_BYTES, shorter)
        if before[start:end] != after[start:end]:
            return start + common_prefix_length(before[start:end], after[start:end])
    return None if len(before) == len(after) else shorter


def _line_at(content: FileContent, offset: int) -> str | None:
    """Return the line that contains the byte at `offset`; None if the content has no such line."""
    start = content.rfind(b"\n", 0, offset) + 1
    end = content.find(b"\n", offset)
    if start >= len(content):
        return None
    return content[start : end if end >= 0 else len(content)].decode()
