"""What a bundle, a checkpoint or an ONNX file holds.

A bundle and a safetensors file are read with what every install has; a PyTorch file needs torch
and an ONNX file needs onnx, and the error says so where they are not installed.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from packager.bundle.archive import as_folder, is_archive
from packager.bundle.fingerprint import fingerprint
from packager.bundle.layout import SUMS
from packager.errors import CheckpointNotFound, CheckpointUnreadable, ExtraMissing
from packager.runtime.loader import read_config


def inspect(path: Path) -> dict[str, Any]:
    """A description under `kind`: bundle, onnx or checkpoint. Raises the error of whatever cannot be read."""
    if path.is_dir() or is_archive(path):
        with as_folder(path) as folder:
            return _bundle(folder)
    if not path.exists():
        raise CheckpointNotFound(str(path), None)
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    return _pytorch(path)


def _bundle(path: Path) -> dict[str, Any]:
    config = read_config(path)
    try:
        seal = fingerprint((path / SUMS).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        seal = f"unreadable: {error}"
    files = {one.relative_to(path).as_posix(): one.stat().st_size for one in sorted(path.rglob("*")) if one.is_file()}
    return {"kind": "bundle", "fingerprint": seal, "config": config, "files": files}


def _onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ImportError as error:
        raise ExtraMissing(error.name or "onnx", "inspecting an ONNX file") from None
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise CheckpointUnreadable(str(path), None, f"as ONNX: {error}") from None
    if not model.HasField("graph"):  # an empty file is a protobuf too
        raise CheckpointUnreadable(str(path), None, "as ONNX: it holds no graph")
    constants = {one.name for one in model.graph.initializer}

    def tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
        kind = value.type.tensor_type
        shape = [one.dim_param or one.dim_value for one in kind.shape.dim]
        return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower(), "shape": shape}

    return {
        "kind": "onnx",
        "producer": model.producer_name,
        "ir_version": model.ir_version,
        "opset": {one.domain or "ai.onnx": one.version for one in model.opset_import},
        "inputs": [tensor(one) for one in model.graph.input if one.name not in constants],
        "outputs": [tensor(one) for one in model.graph.output],
        "nodes": len(model.graph.node),
        "operators": dict(Counter(one.op_type for one in model.graph.node).most_common()),
        "initializers": len(model.graph.initializer),
    }


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > path.stat().st_size - 8:
                raise ValueError("the header claims more than the file holds")
            header = json.loads(stream.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        described = {name: f"{one['dtype']}{one['shape']}" for name, one in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnreadable(str(path), None, f"as safetensors: {error}") from None
    return {
        "kind": "checkpoint",
        "format": "safetensors",
        "key": "",
        "beside": [],
        "metadata": header.get("__metadata__", {}),
        "tensors": described,
    }


def _pytorch(path: Path) -> dict[str, Any]:
    try:
        from packager import checkpoint
    except ImportError as error:
        raise ExtraMissing(error.name or "torch", "inspecting a PyTorch checkpoint") from None
    read = checkpoint.read(path)
    described = {name: f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for name, one in read.state.items()}
    return {
        "kind": "checkpoint",
        "format": "pytorch",
        "key": read.key,
        "beside": list(read.beside),
        "metadata": {},
        "tensors": described,
    }
