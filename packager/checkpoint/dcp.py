"""A folder of torch.distributed.checkpoint (DCP) → what was saved, put together from what every rank wrote.

`.metadata` is a pickle that says which tensor has which chunks, and where in which `.distcp` each of them lies;
a chunk is a file of torch.save's own. torch reads `.metadata` with plain pickle, which runs what it asks for.
Here it is read with stand-ins: each of the few classes that DCP writes becomes a record that does nothing, and
any other name is refused.

What an optimizer saved is left where it is: only that it is there is said.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from packager.checkpoint.locate import LocatedCheckpoint
from packager.errors import CheckpointUnreadable

_MAX_METADATA_BYTES = 1 << 30
_ALLOWED_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
}  # fmt: skip
_DTYPES = {str(one).removeprefix("torch.") for one in vars(torch).values() if isinstance(one, torch.dtype)}


def read_dcp(located: LocatedCheckpoint, where: str | None, unpickle: Callable[..., Any]) -> dict[str, Any]:
    """Everything in the folder but the optimizer's state, nested as it was saved; `unpickled` reads one chunk.

    Raises `CheckpointUnreadable` or `CheckpointNeedsCode`.
    """
    named = str(located.path)
    metadata = _read_metadata(located.head, named, where)
    try:
        places: dict[str, list[tuple[Any, Any]]] = {}
        for index, info in metadata.storage_data.items():
            places.setdefault(str(index.fqn), []).append((index, info))
        saved_as = getattr(metadata, "planner_data", None) or {}
        found: dict[str, Any] = {}
        for name, described in metadata.state_dict_metadata.items():
            path = tuple(str(part) for part in saved_as.get(name, (name,)))
            if path[0].startswith("optim"):
                found.setdefault(path[0], {})
                continue
            chunks = [_read_chunk(located, info, where, unpickle) for _, info in places.get(name, [])]
            offsets = [getattr(index, "offset", None) for index, _ in places.get(name, [])]
            _set_nested(found, path, _assemble_tensor(name, described, chunks, offsets))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        # what a damaged .metadata leads to
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointUnreadable(named, where, f"as torch.distributed.checkpoint: {text}") from None
    return found


def _assemble_tensor(name: str, described: Any, chunks: list[Any], offsets: list[Any]) -> Any:
    """A value from its chunks: a tensor put together, or the one object that was saved."""
    if not chunks:
        raise ValueError(f"{name} is nowhere to be found")
    size = getattr(described, "size", None)
    if size is None or (len(chunks) == 1 and tuple(chunks[0].shape) == tuple(size)):
        return chunks[0]
    if sum(one.numel() for one in chunks) != math.prod(size):
        raise ValueError(f"the chunks of {name} do not make up {list(size)}")
    whole = torch.zeros(size, dtype=chunks[0].dtype)
    for chunk, offset in zip(chunks, offsets, strict=True):
        part = whole
        for dim, (start, length) in enumerate(zip(offset, chunk.shape, strict=True)):
            part = part.narrow(dim, start, length)
        part.copy_(chunk)
    return whole


def _read_chunk(located: LocatedCheckpoint, info: Any, where: str | None, unpickled: Callable[..., Any]) -> Any:
    """One chunk from its place in a file."""
    name = str(info.relative_path)
    file = located.folder / name
    if file not in located.files[1:]:
        raise ValueError(f"{name} is missing" if "/" not in name else f"it names a path outside its folder: {name!r}")
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"{name} is compressed, which is not supported")
    offset, length = int(info.offset), int(info.length)
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ValueError(f"{name} is cut off")
    with file.open("rb") as stream:
        stream.seek(offset)
        return unpickled(io.BytesIO(stream.read(length)), file, zipped=True)


def _set_nested(found: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        found = found.setdefault(part, {})
    found[path[-1]] = value


# -- .metadata ------------------------------------------------------------------------------


class _Placeholder:
    """Stands in for a class of DCP: keeps what the pickle gives it, and does nothing."""

    def __init__(self, *given: object) -> None:
        self.given = given

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
    """Refuse a pickle that remembers a value at a place beyond its own length: a list that long would be made for it.

    Raises ValueError.
    """
    beyond = len(content)
    binary = (int.from_bytes(found[1], "little") for found in re.finditer(b"r(?=(.{4}))", content, re.DOTALL))
    text = (int(found[1]) for found in re.finditer(rb"p(\d{1,20})\n", content))
    if any(place > beyond for one in (binary, text) for place in one):  # it seems so; its operations tell
        for opcode, place, _ in pickletools.genops(content):
            if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(place, int) and place > beyond:
                raise ValueError("it claims more values than it has bytes")


def _read_metadata(path: Path, named: str, where: str | None) -> Any:
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too long")
        content = path.read_bytes()
        _refuse_oversized_memo(content)
        return _RestrictedUnpickler(io.BytesIO(content)).load()
    except _CodeRequired as error:
        why = f".metadata asks for {error}, which torch.distributed.checkpoint does not write; nothing of it was run"
        raise CheckpointUnreadable(named, where, why) from None
    except Exception as error:  # noqa: BLE001 (pickle raises a dozen unrelated classes for damaged bytes)
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointUnreadable(named, where, f".metadata cannot be read: {text}") from None
