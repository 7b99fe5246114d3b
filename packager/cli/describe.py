"""What a bundle, a checkpoint or an ONNX file holds.

A bundle and a safetensors file are read with what every install has; a PyTorch file needs torch
and an ONNX file needs onnx, and the error says so where they are not installed.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packager.bundle.archive import is_archive, open_as_folder
from packager.bundle.fingerprint import compute_fingerprint
from packager.bundle.layout import SUMS
from packager.checkpoint import run_folder
from packager.checkpoint.locate import (
    HUGGINGFACE_CONFIG_FILE,
    SHARD_INDEX_SUFFIX,
    LocatedCheckpoint,
    contains_checkpoint,
    detect_serialized_module,
    load_piece_index,
    locate_files,
    read_weight_map,
)
from packager.checkpoint.metadata import describe_contents, describe_run_checkpoint
from packager.checkpoint.remote import urls
from packager.checkpoint.safetensors_header import METADATA_KEY, get_metadata, read_header
from packager.common.progress import Listener, StageReporter, ignore_event
from packager.errors import CheckpointUnreadable, ExtraMissing
from packager.runtime.loader import read_config

_SERIALIZED_WEIGHTS = re.compile(
    r"^(data/\d+|constants/\d+|data/(weights|constants)/\w+_\d+)$"
)  # of a program's archive


def inspect(path: str | Path, listener: Listener = ignore_event) -> dict[str, Any]:
    """A description under `kind`: bundle, onnx, run or checkpoint. Raises the error of whatever cannot be read.

    `path` may be a URL; `listener` hears of the download.
    """
    if isinstance(path, str) and urls.is_url(path):
        from packager.checkpoint.remote import fetch

        with fetch.fetch_remote(fetch.RemoteCheckpoint(path), StageReporter(listener)) as fetched:
            return inspect(fetched)
    path = Path(path)
    if is_archive(path) or (
        path.is_dir() and ((path / SUMS).exists() or not (contains_checkpoint(path) or run_folder.is_run(path)))
    ):
        with open_as_folder(path) as folder:
            return _inspect_bundle(folder)
    if path.suffix == ".onnx" and path.exists():
        return _inspect_onnx(path)
    if path.is_dir() and run_folder.is_run(path):
        return {"kind": "run", "checkpoints": [asdict(row) for row in run_folder.tabulate_checkpoints(path)]}
    return _inspect_checkpoint(path)


def _inspect_bundle(path: Path) -> dict[str, Any]:
    config = read_config(path)
    try:
        seal = compute_fingerprint((path / SUMS).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        seal = f"unreadable: {error}"
    files = {one.relative_to(path).as_posix(): one.stat().st_size for one in sorted(path.rglob("*")) if one.is_file()}
    return {"kind": "bundle", "fingerprint": seal, "config": config, "files": files}


def _inspect_onnx(path: Path) -> dict[str, Any]:
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


def _inspect_checkpoint(path: Path) -> dict[str, Any]:
    located = locate_files(path)
    found = _inspect_by_format(path, located)
    if not located.from_run:
        return found
    strings = {name: one for name, one in found["metadata"].items() if name != "tree"}
    return {**found, "about": describe_run_checkpoint(located.head.parent).as_json(), "metadata": strings}


def _inspect_by_format(path: Path, located: LocatedCheckpoint) -> dict[str, Any]:
    if located.head.suffix == ".safetensors":
        return _inspect_safetensors(path, [located.head], "safetensors")
    if located.head.name.endswith(run_folder.PIECES_SUFFIX):
        index = load_piece_index(located.head, str(path), None)
        found = _inspect_safetensors(path, [located.head.parent / index.whole], "")
        tensors = found["tensors"] | {name: f"{one.dtype}{list(one.shape)}" for name, one in index.tensors.items()}
        return {**found, "format": f"safetensors in pieces of {len(index.files())} ranks", "tensors": tensors}
    if located.head.name.endswith(SHARD_INDEX_SUFFIX):
        shards = [file for file in located.files[1:] if file.name != HUGGINGFACE_CONFIG_FILE]
        if all(shard.suffix == ".safetensors" for shard in shards):
            found = _inspect_safetensors(path, shards, f"safetensors in {len(shards)} shards")
            absent = sorted(set(read_weight_map(located.head, str(path), None)) - set(found["tensors"]))
            if absent:
                why = f"{located.head.name} names {', '.join(absent[:5])}, and no shard has it"
                raise CheckpointUnreadable(str(path), None, why)
            return found
    kind = detect_serialized_module(located)
    return _inspect_with_torch(path) if kind is None else _inspect_serialized_module(located.head, kind)


def _inspect_serialized_module(path: Path, kind: str) -> dict[str, Any]:
    """What is in the archive of a program: to know more, some of it would have to be run."""
    with zipfile.ZipFile(path) as archive:
        sizes = {one.filename.partition("/")[2]: one.file_size for one in archive.infolist()}
    weights = {name: f"{size} bytes" for name, size in sizes.items() if _SERIALIZED_WEIGHTS.search(name)}
    return {
        "kind": "checkpoint",
        "format": f"{kind}, which holds its own forward()",
        "key": "",
        "beside": [],
        "about": describe_contents({}, {}).as_json(),
        "metadata": {"files": str(len(sizes)), "bytes": str(sum(sizes.values()))},
        "tensors": weights,
    }


def _inspect_safetensors(path: Path, files: Sequence[Path], form: str) -> dict[str, Any]:
    """Only the headers are read."""
    tensors, strings = {}, {}
    for file in files:
        try:
            header = read_header(file)
        except (OSError, ValueError) as error:
            raise CheckpointUnreadable(str(file), None, f"as safetensors: {error}") from None
        strings.update(get_metadata(header))
        tensors.update({name: f"{one['dtype']}{one['shape']}" for name, one in header.items() if name != METADATA_KEY})
    return {
        "kind": "checkpoint",
        "format": form,
        "key": "",
        "beside": [],
        "about": describe_contents({}, strings).as_json(),
        "metadata": strings,
        "tensors": tensors,
    }


def _inspect_with_torch(path: Path) -> dict[str, Any]:
    try:
        from packager.checkpoint import read as read_checkpoint
    except ImportError as error:
        raise ExtraMissing(error.name or "torch", "inspecting a PyTorch checkpoint") from None
    read = read_checkpoint(path)
    described = {name: f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for name, one in read.state.items()}
    return {
        "kind": "checkpoint",
        "format": read.format,
        "key": read.key,
        "beside": list(read.beside),
        "about": read.about.as_json(),
        "metadata": dict(read.metadata),
        "tensors": described,
    }
