"""Read a folder of torch.distributed.checkpoint (DCP), assembling each tensor from the chunks that the ranks wrote.

`.metadata` is a pickle that lists the chunks of each tensor, with the `.distcp` file and the byte range of each chunk;
a chunk is a small file of torch.save, and is checked like one. No byte may belong to two chunks, so that reading them
all takes no more memory than the files have bytes. torch reads `.metadata` with plain pickle, which executes whatever
it names. Here each of the few classes that DCP writes is replaced by an inert placeholder, and any other name is
refused.

The optimizer's state is not read; only its presence is reported.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from packager.checkpoint.locate import LocatedCheckpoint
from packager.checkpoint.pickle_errors import first_error_line
from packager.errors import CheckpointUnreadable

_MAX_METADATA_BYTES = 1 << 30
_ALLOWED_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
}  # fmt: skip
_DTYPES = {str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


ChunkReader = Callable[[bytes, Path], Any]
"""Loads a chunk from its bytes; errors name the file."""


def read_dcp(
    located: LocatedCheckpoint, where: str | None, read_chunk: ChunkReader, max_operations: int
) -> dict[str, Any]:
    """Return everything in the folder but the optimizer's state, nested as it was saved.

    The pickle in `.metadata` may have `max_operations`.
    Raises `CheckpointUnreadable` or `CheckpointNeedsCode`.
    """
    display_name = str(located.path)
    metadata = _read_metadata(located.head, display_name, where, max_operations)
    try:
        chunks_by_name: dict[str, list[tuple[Any, Any]]] = {}
        for index, storage in metadata.storage_data.items():
            chunks_by_name.setdefault(str(index.fqn), []).append((index, storage))
        _refuse_overlaps(metadata.storage_data.values())
        paths = getattr(metadata, "planner_data", None) or {}
        content: dict[str, Any] = {}
        for name, description in metadata.state_dict_metadata.items():
            path = tuple(str(key) for key in paths.get(name, (name,)))
            if path[0].startswith("optim"):
                content.setdefault(path[0], {})
                continue
            stored = chunks_by_name.get(name, [])
            chunks = [_read_chunk(located, storage, read_chunk) for _, storage in stored]
            offsets = [getattr(index, "offset", None) for index, _ in stored]
            _set_nested(content, path, _assemble_tensor(name, description, chunks, offsets))
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError) as error:
        # All of these follow from a damaged .metadata.
        why = f"as torch.distributed.checkpoint: {first_error_line(error)}"
        raise CheckpointUnreadable(display_name, where, why) from None
    return content


def _assemble_tensor(name: str, description: Any, chunks: list[Any], offsets: list[Any]) -> Any:
    """Return the tensor that chunks at these offsets add up to, or the object that was saved as the only chunk."""
    if not chunks:
        raise ValueError(f"{name} is not in any file")
    size = getattr(description, "size", None)
    if size is None or (len(chunks) == 1 and tuple(chunks[0].shape) == tuple(size)):
        return chunks[0]
    if sum(chunk.numel() for chunk in chunks) != math.prod(size):
        raise ValueError(f"the chunks of {name} do not add up to {list(size)}")
    if any(chunk.numel() * chunk.element_size() > chunk.untyped_storage().nbytes() for chunk in chunks):
        raise ValueError(f"a chunk of {name} has more elements than bytes for them")
    tensor = torch.zeros(size, dtype=chunks[0].dtype)
    for chunk, offset in zip(chunks, offsets, strict=True):
        box = tensor
        for dim, (start, length) in enumerate(zip(offset, chunk.shape, strict=True)):
            box = box.narrow(dim, start, length)
        box.copy_(chunk)
    return tensor


def _refuse_overlaps(chunks: Iterable[Any]) -> None:
    """Raise ValueError if two chunks share a byte of a file."""
    ranges = sorted((str(chunk.relative_path), int(chunk.offset), int(chunk.length)) for chunk in chunks)
    for (file, start, length), (next_file, next_start, _) in itertools.pairwise(ranges):
        if file == next_file and start + length > next_start:
            raise ValueError(f"two chunks of {file} overlap")


def _read_chunk(located: LocatedCheckpoint, storage: Any, read_chunk: ChunkReader) -> Any:
    """Read one chunk from its byte range in a file. Raises ValueError or OSError."""
    name = str(storage.relative_path)
    file = located.folder / name
    if file not in located.files[1:]:
        raise ValueError(f"{name} is missing" if "/" not in name else f"it names a path outside its folder: {name!r}")
    if getattr(storage, "transform_descriptors", None):
        raise ValueError(f"{name} is compressed, which is not supported")
    offset, length = int(storage.offset), int(storage.length)
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ValueError(f"{name} is truncated")
    with file.open("rb") as stream:
        stream.seek(offset)
        return read_chunk(stream.read(length), file)


def _set_nested(content: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value


# -- .metadata ------------------------------------------------------------------------------


class _Placeholder:
    """Stand in for a class of DCP: keep the state that the pickle sets, and do nothing."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED_CLASSES.get(module, ()):
            return _Placeholder
        if name in ("_MEM_FORMAT_ENCODING", "TensorProperties._MEM_FORMAT_ENCODING", "_get_layout"):
            return _Placeholder
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in _DTYPES:
            return name
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath", "Path"):
            return PurePosixPath
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise _CodeRequired(f"{module}.{name}")


class _CodeRequired(Exception):
    pass


def _refuse_oversized_memo(content: bytes) -> None:
    """Refuse a pickle with a memo index beyond its own length, for which Python would allocate a list that long.

    Raises ValueError.
    """
    limit = len(content)
    binary = (int.from_bytes(match[1], "little") for match in re.finditer(b"r(?=(.{4}))", content, re.DOTALL))
    text = (int(match[1]) for match in re.finditer(rb"p(\d{1,20})\n", content))
    # The patterns may also match inside of strings: only the operations are certain, and slow to list.
    if any(index > limit for indexes in (binary, text) for index in indexes):
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > limit:
                raise ValueError("it claims more values than it has bytes")


def _refuse_operations(content: bytes, limit: int) -> None:
    """Refuse a pickle of more operations, each of which takes a byte in the file and up to 80 in memory.

    Raises ValueError.
    """
    if len(content) > limit and any(True for _ in itertools.islice(pickletools.genops(content), limit, None)):
        raise ValueError("it has too many values for the files beside it")


def _read_metadata(path: Path, display_name: str, where: str | None, max_operations: int) -> Any:
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too long")
        content = path.read_bytes()
        _refuse_oversized_memo(content)
        _refuse_operations(content, max_operations)
        return _RestrictedUnpickler(io.BytesIO(content)).load()
    except _CodeRequired as error:
        why = f".metadata asks for {error}, which torch.distributed.checkpoint does not write; no code was run"
        raise CheckpointUnreadable(display_name, where, why) from None
    except Exception as error:  # noqa: BLE001 (pickle raises a dozen unrelated classes for damaged bytes)
        why = f".metadata cannot be read: {first_error_line(error)}"
        raise CheckpointUnreadable(display_name, where, why) from None
