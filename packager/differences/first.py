"""The first difference of one file of two bundles, in one sentence, read as what the file is.

A sentence names the place and the two values: a field of a record, a node or weight of a model, an entry of an
archive, a tensor, a line of text, and where nothing better can be said a byte. onnx is used where it is installed.
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
    """The file is not what its name says, or what reads it is not installed."""


def find_first_difference(a: Path, b: Path, file: str) -> str:
    """What first differs between the file `file`, a path inside of a bundle, of the bundles' folders `a` and `b`.

    Raises ValueError for a path that leads out of a bundle, and OSError where a file cannot be read.
    """
    if file.startswith("/") or ".." in file.split("/"):
        raise ValueError(f"{file} is no path inside of a bundle")
    for folder, other in ((a, "second"), (b, "first")):
        if not (folder / file).is_file():
            return f"only the {other} has it"
    model = file.removesuffix(".data")
    found, unread = "", ""
    try:
        if model.endswith(".onnx"):
            found = _compare_models(a / model, b / model, graph=file == model)
        elif file.endswith(".ts"):
            found = _compare_archives(a / file, b / file)
        elif file.endswith(".json"):
            found = _compare_json(a / file, b / file)
        elif file.endswith(".safetensors"):
            found = _compare_tensor_files(a / file, b / file)
    except _Unreadable as error:
        unread = f" ({error})"
    return found or _compare_contents(_map_content(a / file), _map_content(b / file)) + unread


def _compare_models(before: Path, after: Path, *, graph: bool) -> str:
    """The first node that differs, or else the first field, unless `graph` is false, or else the first weight."""
    try:
        from packager.differences import onnx_model

        models = onnx_model.load_onnx_model(before), onnx_model.load_onnx_model(after)
        if graph and (node := onnx_model.find_first_node_difference(*models)):
            place, field = node
            return (
                f"{place}: {field.where} {_format_values(field)}"
                if field.where
                else f"{place}: {_format_values(field)}"
            )
        if graph and (found := next(onnx_model.compare_graphs(*models), None)):
            return f"{found.where}: {_format_values(found)}"
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
        raise _Unreadable("large for JSON")
    try:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in (before, after)]
        found = next(find_differences(*records), None)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"no JSON: {error}") from None
    return f"{found.where or 'the value'}: {_format_values(found)}" if found is not None else ""


def _compare_tensor_files(before: Path, after: Path) -> str:
    try:
        with safetensors.safe_open(before, "np") as left, safetensors.safe_open(after, "np") as right:
            return _compare_tensors(left, right)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Unreadable(f"not read as tensors: {error}") from None  # numpy has not every dtype


def _compare_tensors(left: Any, right: Any) -> str:
    names = set(left.keys()), set(right.keys())
    for name in sorted(names[0] | names[1]):
        if name not in names[0] or name not in names[1]:
            return f"tensor {name}: only the {'first' if name in names[0] else 'second'} has it"
        slices = [one.get_slice(name) for one in (left, right)]
        kinds = [f"{one.get_dtype()}{one.get_shape()}" for one in slices]
        if kinds[0] != kinds[1]:
            return f"tensor {name}: {kinds[0]} and {kinds[1]}"
        changed = measure_change(left.get_tensor(name), right.get_tensor(name))
        if changed is not None:
            return f"tensor {name}: {changed.text()}"
    found = next(find_differences(left.metadata() or {}, right.metadata() or {}, "metadata"), None)
    return f"{found.where}: {_format_values(found)}" if found is not None else ""


def _compare_archives(before: Path, after: Path) -> str:
    """The first entry that differs, by name; all of an archive lies in one folder, which is not told."""
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
        raise _Unreadable(f"no archive: {error}") from None
    return ""


def _format_values(found: Difference) -> str:
    return " and ".join(format_pair(found.before, found.after))


# -- lines and bytes ------------------------------------------------------------------------


def _map_content(path: Path) -> FileContent:
    if path.stat().st_size == 0:
        return b""  # which cannot be mapped
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _compare_contents(before: FileContent, after: FileContent) -> str:
    """The first line that differs, or of what is no text the first byte."""
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
            shown = format_pair(
                *(texts if texts[0] != texts[1] else lines)
            )  # indentation is told where nothing else differs
            return f"line {before[:offset].count(10) + 1}: {shown[0]} and {shown[1]}"
    values = [f"{one[offset]:#04x}" if offset < len(one) else "the end" for one in (before, after)]
    return f"byte {offset}: {values[0]} and {values[1]}"


def _find_first_offset(before: FileContent, after: FileContent) -> int | None:
    """Where the contents part; the end of the shorter is a difference too."""
    shorter = min(len(before), len(after))
    for start in range(0, shorter, _BLOCK_BYTES):
        end = min(start + _BLOCK_BYTES, shorter)
        if before[start:end] != after[start:end]:
            return start + common_prefix_length(before[start:end], after[start:end])
    return None if len(before) == len(after) else shorter


def _line_at(content: FileContent, offset: int) -> str | None:
    """The line of which the byte at `offset` is one; None where the content ends with the line before."""
    start = content.rfind(b"\n", 0, offset) + 1
    end = content.find(b"\n", offset)
    if start >= len(content):
        return None
    return content[start : end if end >= 0 else len(content)].decode()
