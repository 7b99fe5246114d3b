"""Open a checkpoint's files without running code that they hold.

A safetensors file cannot hold code. A file of torch.save is a pickle, which can: it is loaded with `weights_only=True`,
an allow-list of tensors and plain containers
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only), unless the manifest trusts it. Added to
that list are plain values that training scripts save beside their weights: numpy's scalars and arrays, paths, and
argparse's namespace. A ZIP archive must look like torch.save's own: nothing compressed, no entry twice, and no more
content than the file has bytes. Tensors are loaded to the CPU, whatever device they were saved on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pathlib
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from packager.checkpoint import dcp, pickle_errors
from packager.checkpoint.locate import (
    DCP_METADATA_FILE,
    SHARD_INDEX_SUFFIX,
    LocatedCheckpoint,
    detect_serialized_module_in,
    load_piece_index,
    read_weight_map,
)
from packager.checkpoint.run_folder import PIECES_SUFFIX
from packager.checkpoint.safetensors_header import get_metadata, read_header
from packager.checkpoint.sharded_index import TensorPieces
from packager.checkpoint.state_tree import SAFETENSORS_DTYPES
from packager.checkpoint.state_tree_file import TORCH_DTYPES
from packager.common.archive_directory import TOO_MANY_ENTRIES, ZIP_MAGIC, is_directory_too_long
from packager.errors import CheckpointNeedsCode, CheckpointUnreadable

_FREE_OPERATIONS, _BYTES_PER_OPERATION, _BYTES_PER_DCP_OPERATION = 150_000, 64, 16
"""Of pickles, for all files of a checkpoint together.

An operation is one byte in the file, up to 200 in memory, and two microseconds of time. torch.save writes 33 for a
tensor, and DCP another 108 in `.metadata`, where the smallest tensor takes 1,800 bytes of files.
"""


@dataclass(frozen=True)
class CheckpointContent:
    """Everything that was saved, the name of its format, and the strings that safetensors keeps beside its tensors."""

    content: Any
    format: str
    metadata: dict[str, str]


def open_checkpoint(located: LocatedCheckpoint, *, trust_pickle: bool, where: str | None) -> CheckpointContent:
    """Open the files that `locate_files` returned.

    `trust_pickle` lets a pickle run code; `where` is the manifest's field that names the checkpoint. Raises
    `CheckpointUnreadable` or `CheckpointNeedsCode`.
    """
    size = sum(version.size for version in located.versions.values())
    is_dcp = located.head.name == DCP_METADATA_FILE
    max_operations = _FREE_OPERATIONS + size // (_BYTES_PER_DCP_OPERATION if is_dcp else _BYTES_PER_OPERATION)
    reader = _CheckpointReader(located, trust_pickle, where, _OperationBudget(max_operations))
    if is_dcp:
        content = dcp.read_dcp(located, where, reader.read_chunk, max_operations)
        return CheckpointContent(content, "torch.distributed.checkpoint", {})
    if located.head.name.endswith(SHARD_INDEX_SUFFIX):
        return reader.read_shards()
    if located.head.name.endswith(PIECES_SUFFIX):
        return reader.read_pieces()
    return reader.read_file(located.head)


@dataclass
class _OperationBudget:
    """How many operations the pickles of a checkpoint may still have, all of them together."""

    remaining: int


@dataclass(frozen=True)
class _CheckpointReader:
    """The files of one checkpoint, and what may be spent on them; `open_checkpoint` describes the other fields."""

    located: LocatedCheckpoint
    trust_pickle: bool
    where: str | None
    budget: _OperationBudget

    def read_file(self, path: Path) -> CheckpointContent:
        """Read one file of weights."""
        if path.suffix == ".safetensors":
            tensors, strings = self._read_safetensors(path)
            return CheckpointContent(tensors, "safetensors", strings)
        with path.open("rb") as stream:
            zipped = stream.read(4) == ZIP_MAGIC
        size = path.stat().st_size
        self._check_pickle(path, path, size, zipped=zipped)
        content = self._unpickle(path, path, zipped=zipped)
        self._check_sizes(content, path, size)
        return CheckpointContent(content, "pytorch", {})

    def read_chunk(self, content: bytes, file: Path) -> Any:
        """Read the part of `file` that holds one value of torch.distributed.checkpoint."""
        if not content.startswith(ZIP_MAGIC):
            raise self._unreadable(file, "a chunk in it is not an archive of torch.save")
        self._check_pickle(io.BytesIO(content), file, len(content), zipped=True)
        value = self._unpickle(io.BytesIO(content), file, zipped=True)
        self._check_sizes(value, file, len(content))
        return value

    def read_shards(self) -> CheckpointContent:
        """Read the shards of an index as one state dict, each tensor from the shard that the index names."""
        path, head = str(self.located.path), self.located.head
        weight_map = read_weight_map(head, path, self.where)
        shards = sorted(set(weight_map.values()))
        tensors: dict[str, Any] = {}
        strings: dict[str, str] = {}
        formats = set()
        for shard in shards:
            opened = self.read_file(head.parent / shard)
            formats.add(opened.format)
            strings |= opened.metadata
            if not isinstance(opened.content, dict):
                raise self._unreadable(head.parent / shard, "it is not a state dict")
            names = {name for name, file in weight_map.items() if file == shard}
            missing = sorted(names - set(opened.content))
            if missing:
                why = f"{shard} lacks tensors that {head.name} lists: {', '.join(missing[:5])}"
                raise CheckpointUnreadable(path, self.where, why)
            tensors.update({name: tensor for name, tensor in opened.content.items() if name in names})
        return CheckpointContent(tensors, f"{' and '.join(sorted(formats))} in {len(shards)} shards", strings)

    def read_pieces(self) -> CheckpointContent:
        """Read the tensors that several ranks wrote, each assembled from its pieces."""
        head = self.located.head
        index = load_piece_index(head, str(self.located.path), self.where)
        tensors, strings = self._read_safetensors(head.parent / index.whole)
        files = {file: self._read_safetensors(head.parent / file)[0] for file in index.files()}
        for name, tensor in index.tensors.items():
            tensors[name] = self._assemble_tensor(name, tensor, files)
        return CheckpointContent(tensors, f"safetensors in pieces of {len(files)} ranks", strings)

    def _assemble_tensor(
        self, name: str, tensor: TensorPieces, files: dict[str, dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        """Return a tensor from its pieces; `files` are the tensors of each file by name."""
        path = str(self.located.path)
        if tensor.dtype not in TORCH_DTYPES:
            raise CheckpointUnreadable(path, self.where, f"{name} has the unknown dtype {tensor.dtype!r}")
        pieces = [(piece, files[piece.file].get(name)) for piece in tensor.pieces]
        for piece, value in pieces:
            if (
                value is None
                or tuple(value.shape) != piece.shape
                or SAFETENSORS_DTYPES.get(value.dtype) != tensor.dtype
            ):
                why = f"{piece.file} does not hold the piece of {name} that {self.located.head.name} lists"
                raise CheckpointUnreadable(path, self.where, why)
        if len(pieces) == 1 and pieces[0][0].shape == tensor.shape:
            return files[pieces[0][0].file][name]
        assembled = torch.empty(tensor.shape, dtype=TORCH_DTYPES[tensor.dtype])
        for piece, _ in pieces:
            box = (slice(start, start + length) for start, length in zip(piece.offset, piece.shape, strict=True))
            assembled[tuple(box)] = files[piece.file][name]
        return assembled

    def _unpickle(self, source: Path | IO[bytes], file: Path, *, zipped: bool) -> Any:
        """Load the content of a file of torch.save, or of the part of `file` that a stream holds."""
        mapped = zipped and isinstance(source, Path)
        with torch.serialization.safe_globals(_safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, and TypedStorage in old files
            try:
                return torch.load(source, map_location="cpu", weights_only=not self.trust_pickle, mmap=mapped)
            except Exception as error:  # noqa: BLE001 (torch and pickle raise a dozen unrelated classes for damaged bytes)
                if isinstance(error, pickle.UnpicklingError):
                    names = pickle_errors.find_unsafe_globals(source, str(error), zipped=zipped)
                    if names:
                        raise CheckpointNeedsCode(str(file), self.where, names) from None
                raise self._unreadable(file, pickle_errors.explain_load_error(source, error, zipped=zipped)) from None

    def _check_sizes(self, content: Any, file: Path, size: int) -> None:
        """Refuse tensors with more bytes than the file: a pickle may also ask for memory that nothing was read into."""
        if not self.trust_pickle and sum(_storage_sizes(content).values()) > size:
            raise self._unreadable(file, "its tensors have more bytes than the file: some were not saved, but made up")

    def _read_safetensors(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        try:
            strings = get_metadata(read_header(path))
            tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            # The last two are raised for a dtype that torch lacks.
            with path.open("rb") as stream:
                if stream.read(4) == ZIP_MAGIC:
                    raise self._unreadable(path, "it is a ZIP archive like those of torch.save: call it .pt") from None
            raise self._unreadable(path, f"as safetensors: {pickle_errors.first_error_line(error)}") from None
        return tensors, strings

    def _check_pickle(self, source: Path | IO[bytes], path: Path, size: int, *, zipped: bool) -> None:
        """Refuse a file of torch.save that needs more memory than its `size` in bytes; errors name `path`."""
        if zipped:
            self._check_archive(source, path, size)
        if not self.trust_pickle:
            self.budget.remaining -= pickle_errors.count_operations(source, self.budget.remaining, zipped=zipped)
            if self.budget.remaining < 0:
                raise self._unreadable(path, "it has too many values outside of tensors: save long lists as tensors")
        if not self.trust_pickle and pickle_errors.contains_bytearray(source, zipped=zipped):
            raise self._unreadable(path, "it creates a bytearray, which may be of any size: save it as a tensor")
        if not self.trust_pickle and pickle_errors.has_unusable_call(source, zipped=zipped):
            raise self._unreadable(path, "it calls something that is not a function, or names one of absurd length")

    def _check_archive(self, source: Path | IO[bytes], path: Path, size: int) -> None:
        """Refuse an archive that torch.save would not write."""
        with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as stream:
            if is_directory_too_long(stream):
                raise self._unreadable(path, f"it is an archive of {TOO_MANY_ENTRIES}")
        try:
            with zipfile.ZipFile(source) as archive:
                entries = archive.infolist()
        except zipfile.BadZipFile:
            raise self._unreadable(path, "the file is truncated: the directory of the archive is missing") from None
        except Exception as error:  # noqa: BLE001 (zipfile raises several unrelated classes for a damaged directory)
            why = f"the directory of the archive is damaged: {pickle_errors.first_error_line(error)}"
            raise self._unreadable(path, why) from None
        names = [entry.filename for entry in entries]
        kind = detect_serialized_module_in(names)
        if kind is not None:
            description = "a TorchScript archive" if kind == "TorchScript" else f"{kind} (.pt2)"
            raise self._unreadable(path, f"it is {description}, not a checkpoint")
        if not any(name.endswith("data.pkl") for name in names):
            raise self._unreadable(path, "it is a ZIP archive that torch.save did not write: it has no data.pkl")
        compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if compressed:
            raise self._unreadable(path, f"its entry {compressed[0]} is compressed, and torch.save compresses nothing")
        if len(set(names)) < len(names):
            duplicate = Counter(names).most_common(1)[0][0]
            raise self._unreadable(path, f"its entry {duplicate} occurs twice")
        if sum(name.lower().endswith("data.pkl") for name in names) > 1:  # torch ignores case
            raise self._unreadable(path, "it has several entries data.pkl, and torch.save writes one")
        if sum(entry.file_size for entry in entries) > size:
            raise self._unreadable(path, "its entries claim more bytes than the file has")

    def _unreadable(self, file: Path, why: str) -> CheckpointUnreadable:
        """Return an error that names the file itself, which may be one of many."""
        return CheckpointUnreadable(str(file), self.where, why)


def _storage_sizes(content: Any) -> dict[int, int]:
    """Return the bytes of the memory that dense tensors refer to, by address, wherever in the content they are."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    values = [content]
    while values:
        value = values.pop()
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            values += value.values() if isinstance(value, Mapping) else value
    return sizes


def _safe_globals() -> list[Any]:
    """Return what a pickle may create beyond torch's own allow-list: values whose creation has no side effects."""
    numpy_names = ("numpy.core.multiarray", "numpy._core.multiarray")
    paths = [
        (pathlib.PurePath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        *(type(np.dtype(character)) for character in "?bBhHiIlLqQefdFDgGU"),
        *((scalar, f"{name}.scalar") for name in numpy_names),
        *((array, f"{name}._reconstruct") for name in numpy_names),
        (_encode_latin1, "_codecs.encode"),
        *paths,
    ]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Encode as the old protocols of pickle write bytes; refuse other encodings, which would be looked up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding[:100]!r}")
    return text.encode("latin1")
