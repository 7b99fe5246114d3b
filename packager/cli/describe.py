"""Describe what a bundle, a checkpoint or an ONNX file contains, as `package inspect --json` prints it.

Every installation can read a bundle, a safetensors file and an ONNX file. A PyTorch file requires torch; the error says
so if it is not installed.
"""

from __future__ import annotations

import mmap
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packager.bundle.config import read_config
from packager.bundle.files import BundleFiles, is_archive, is_executable, open_bundle
from packager.bundle.fingerprint import SumsMalformed
from packager.bundle.layout import SUMS
from packager.bundle.seal import read_sums
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
from packager.checkpoint.metadata import About, describe_contents, describe_run_checkpoint
from packager.checkpoint.remote import urls
from packager.checkpoint.safetensors_header import METADATA_KEY, get_metadata, read_header
from packager.cli.describe_onnx import describe_model
from packager.common.progress import Listener, StageReporter, ignore_event
from packager.errors import CheckpointUnreadable, ExtraMissing

# Entries of the archive of a TorchScript or exported program that contain weights.
_SERIALIZED_WEIGHTS = re.compile(r"^(data/\d+|constants/\d+|data/(weights|constants)/\w+_\d+)$")

_MAX_PROTOBUF_BYTES = 2 << 30


def inspect(path: str | Path, listener: Listener = ignore_event) -> dict[str, Any]:
    """Return a description of a file or folder; its `kind` is bundle, onnx, run or checkpoint.

    `path` may be a URL; `listener` receives the progress of the download. Raises `NotABundle`, `CheckpointNotFound`,
    `CheckpointUnreadable`, `ExtraMissing`, or whatever else reading the file raises.
    """
    if isinstance(path, str) and urls.is_url(path):
        from packager.checkpoint.remote import fetch

        with fetch.fetch_remote(fetch.RemoteCheckpoint(path), StageReporter(listener)) as fetched:
            return inspect(fetched)
    path = Path(path)
    is_run = path.is_dir() and run_folder.is_run(path)
    is_folder = path.is_dir() and ((path / SUMS).exists() or not (contains_checkpoint(path) or is_run))
    if is_folder or is_archive(path) or (path.is_file() and is_executable(path)):
        with open_bundle(path) as files:
            return _describe_bundle(files)
    if path.suffix == ".onnx" and path.exists():
        return _describe_onnx(path)
    if is_run:
        return {"kind": "run", "checkpoints": [asdict(row) for row in run_folder.tabulate_checkpoints(path)]}
    return _describe_checkpoint(path)


def _describe_bundle(files: BundleFiles) -> dict[str, Any]:
    config = read_config(files)
    try:
        fingerprint = read_sums(files).fingerprint
    except SumsMalformed as error:
        fingerprint = f"unreadable: {error}"
    return {"kind": "bundle", "fingerprint": fingerprint, "config": config, "files": dict(sorted(files.sizes.items()))}


def _describe_onnx(path: Path) -> dict[str, Any]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is not a regular file")
        if path.stat().st_size >= _MAX_PROTOBUF_BYTES:
            raise OSError("it has more bytes than protobuf allows: 2 GiB")
        if path.stat().st_size == 0:
            raise OSError("it is empty")
        with path.open("rb") as stream:
            return describe_model(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except (OSError, ValueError) as error:
        raise CheckpointUnreadable(str(path), None, f"as ONNX: {error}", "export the model again") from None


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    located = locate_files(path)
    description = _describe_by_format(path, located)
    if located.from_run:
        description["about"] = describe_run_checkpoint(located.head.parent).as_json()
        description["metadata"] = {name: text for name, text in description["metadata"].items() if name != "tree"}
    return description


def _describe_by_format(path: Path, located: LocatedCheckpoint) -> dict[str, Any]:
    head = located.head
    if head.suffix == ".safetensors":
        return _describe_safetensors([head], "safetensors")
    if head.name.endswith(run_folder.PIECES_SUFFIX):
        index = load_piece_index(head, str(path), None)
        format_name = f"safetensors in pieces of {len(index.files())} ranks"
        description = _describe_safetensors([head.parent / index.whole], format_name)
        pieces = {name: f"{tensor.dtype}{list(tensor.shape)}" for name, tensor in index.tensors.items()}
        return {**description, "tensors": description["tensors"] | pieces}
    if head.name.endswith(SHARD_INDEX_SUFFIX):
        shards = [file for file in located.files[1:] if file.name != HUGGINGFACE_CONFIG_FILE]
        if all(shard.suffix == ".safetensors" for shard in shards):
            description = _describe_safetensors(shards, f"safetensors in {len(shards)} shards")
            absent = sorted(set(read_weight_map(head, str(path), None)) - set(description["tensors"]))
            if absent:
                why = f"{head.name} names {', '.join(absent[:5])}, but no shard contains it"
                raise CheckpointUnreadable(str(path), None, why)
            return description
    kind = detect_serialized_module(located)
    return _describe_with_torch(path) if kind is None else _describe_serialized_module(head, kind)


def _describe_serialized_module(path: Path, kind: str) -> dict[str, Any]:
    """Describe the archive of a program by its entries, because reading more would run some of it."""
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
    weights = {name: f"{size} bytes" for name, size in sizes.items() if _SERIALIZED_WEIGHTS.search(name)}
    metadata = {"files": str(len(sizes)), "bytes": str(sum(sizes.values()))}
    return _describe_weights(f"{kind}, which contains its own forward()", describe_contents({}, {}), metadata, weights)


def _describe_safetensors(files: Sequence[Path], format_name: str) -> dict[str, Any]:
    """Describe safetensors files by their headers alone."""
    tensors, metadata = {}, {}
    for file in files:
        try:
            header = read_header(file)
        except (OSError, ValueError) as error:
            raise CheckpointUnreadable(str(file), None, f"as safetensors: {error}") from None
        metadata.update(get_metadata(header))
        entries = ((name, entry) for name, entry in header.items() if name != METADATA_KEY)
        tensors.update({name: f"{entry['dtype']}{entry['shape']}" for name, entry in entries})
    return _describe_weights(format_name, describe_contents({}, metadata), metadata, tensors)


def _describe_with_torch(path: Path) -> dict[str, Any]:
    try:
        from packager.checkpoint import read as read_checkpoint
    except ImportError as error:
        raise ExtraMissing(error.name or "torch", "inspecting a PyTorch checkpoint") from None
    checkpoint = read_checkpoint(path)
    tensors = {
        name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        for name, tensor in checkpoint.state.items()
    }
    description = _describe_weights(checkpoint.format, checkpoint.about, checkpoint.metadata, tensors)
    return {**description, "key": checkpoint.key, "beside": list(checkpoint.beside)}


def _describe_weights(
    format_name: str, about: About, metadata: Mapping[str, str], tensors: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "kind": "checkpoint",
        "format": format_name,
        "key": "",
        "beside": [],
        "about": about.as_json(),
        "metadata": dict(metadata),
        "tensors": dict(tensors),
    }
