"""Open a checkpoint's files without running anything they hold.

A safetensors file cannot hold code. A PyTorch file is a pickle, which can: it is read with
`weights_only=True`, an allow-list of tensors and plain containers
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only), unless the manifest
says that it is trusted. Added to that list are plain values that training scripts save beside their
weights: numpy's scalars and arrays, paths, and the namespace of argparse. A zip archive is held to what
torch.save writes: nothing compressed, no entry twice, no more in it than the file has bytes.
Tensors land on the CPU whatever device they were saved on.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from packager.checkpoint import dcp, pickle_scan
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
from packager.checkpoint.state_tree import SAFETENSORS_DTYPES
from packager.checkpoint.state_tree_file import TORCH_DTYPES
from packager.errors import CheckpointNeedsCode, CheckpointUnreadable


@dataclass(frozen=True)
class CheckpointContent:
    """What the files hold: whatever was saved, and the strings that safetensors keeps beside its tensors."""

    content: Any
    format: str
    metadata: dict[str, str]


def open_checkpoint(located: LocatedCheckpoint, *, trust_pickle: bool, where: str | None) -> CheckpointContent:
    """Open what `packager.checkpoint.locate` found: a file, the shards of an index, or a folder.

    Raises `CheckpointNotFound`, `CheckpointUnreadable` or `CheckpointNeedsCode`.
    """
    opener = _CheckpointReader(located, trust_pickle, where)
    if located.head.name == DCP_METADATA_FILE:
        return CheckpointContent(dcp.read_dcp(located, where, opener.unpickle), "torch.distributed.checkpoint", {})
    if located.head.name.endswith(SHARD_INDEX_SUFFIX):
        return opener.read_shards()
    if located.head.name.endswith(PIECES_SUFFIX):
        return opener.read_pieces()
    return opener.read_file(located.head)


@dataclass(frozen=True)
class _CheckpointReader:
    """One checkpoint's files being opened: what it is called in errors, and whether it may run code."""

    located: LocatedCheckpoint
    trust_pickle: bool
    where: str | None

    def read_file(self, path: Path) -> CheckpointContent:
        """One file of weights."""
        if path.suffix == ".safetensors":
            tensors, strings = self._read_safetensors(path)
            return CheckpointContent(tensors, "safetensors", strings)
        with path.open("rb") as stream:
            zipped = stream.read(4) == pickle_scan.ZIP_MAGIC
        if zipped:
            self._check_archive(path)
        if not self.trust_pickle and pickle_scan.contains_bytearray(path, zipped=zipped):
            raise self._unreadable_error(path, "it asks for a bytearray, which may be of any size: save it as a tensor")
        return CheckpointContent(self.unpickle(path, path, zipped=zipped), "pytorch", {})

    def read_shards(self) -> CheckpointContent:
        """All shards of an index as one state dict, each tensor from the shard that the index says."""
        named = str(self.located.path)
        wanted = read_weight_map(self.located.head, named, self.where)
        found: dict[str, Any] = {}
        formats, strings = set(), {}
        for shard in sorted(set(wanted.values())):
            opened = self.read_file(self.located.head.parent / shard)
            if not isinstance(opened.content, dict):
                raise self._unreadable_error(self.located.head.parent / shard, "it is no state dict")
            formats.add(opened.format)
            strings.update(opened.metadata)
            here = {name for name, place in wanted.items() if place == shard}
            absent = sorted(here - set(opened.content))
            if absent:
                why = f"{self.located.head.name} says that {shard} holds {', '.join(absent[:5])}, and it does not"
                raise CheckpointUnreadable(named, self.where, why)
            found.update({name: one for name, one in opened.content.items() if name in here})
        return CheckpointContent(
            found, f"{' and '.join(sorted(formats))} in {len(set(wanted.values()))} shards", strings
        )

    def read_pieces(self) -> CheckpointContent:
        """What several ranks wrote, each tensor put together from its pieces."""
        folder, named = self.located.head.parent, str(self.located.path)
        index = load_piece_index(self.located.head, named, self.where)
        found, strings = self._read_safetensors(folder / index.whole)
        parts = {file: self._read_safetensors(folder / file)[0] for file in index.files()}
        for name, one in index.tensors.items():
            if one.dtype not in TORCH_DTYPES:
                raise CheckpointUnreadable(named, self.where, f"{name} is of the dtype {one.dtype!r}")
            boxes = [(piece, parts[piece.file].get(name)) for piece in one.pieces]
            for piece, part in boxes:
                if part is None or tuple(part.shape) != piece.shape or SAFETENSORS_DTYPES.get(part.dtype) != one.dtype:
                    why = f"{piece.file} does not hold the piece of {name} that {self.located.head.name} says"
                    raise CheckpointUnreadable(named, self.where, why)
            if len(boxes) == 1 and boxes[0][0].shape == one.shape:
                found[name] = parts[boxes[0][0].file][name]
                continue
            found[name] = torch.empty(one.shape, dtype=TORCH_DTYPES[one.dtype])
            for piece, _ in boxes:
                place = zip(piece.offset, piece.shape, strict=True)
                box = tuple(slice(begin, begin + length) for begin, length in place)
                found[name][box] = parts[piece.file][name]
        return CheckpointContent(found, f"safetensors in pieces of {len(parts)} ranks", strings)

    def unpickle(self, source: Path | IO[bytes], file: Path, *, zipped: bool) -> Any:
        """What torch.save wrote into a file, or into the part of it that a stream holds."""
        mapped = zipped and isinstance(source, Path)
        with torch.serialization.safe_globals(_safe_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, and of TypedStorage in old files
            try:
                return torch.load(source, map_location="cpu", weights_only=not self.trust_pickle, mmap=mapped)
            except pickle.UnpicklingError as error:
                names = pickle_scan.find_unsafe_globals(source, str(error), zipped=zipped)
                if names:
                    raise CheckpointNeedsCode(str(file), self.where, names) from None
                raise self._unreadable_error(
                    file, pickle_scan.explain_load_error(source, error, zipped=zipped)
                ) from None
            except Exception as error:  # noqa: BLE001 (torch and pickle raise a dozen unrelated classes for damaged bytes)
                raise self._unreadable_error(
                    file, pickle_scan.explain_load_error(source, error, zipped=zipped)
                ) from None

    def _read_safetensors(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        try:
            strings = get_metadata(read_header(path))
            tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            # the latter two for a dtype that torch has not
            with path.open("rb") as stream:
                if stream.read(4) == pickle_scan.ZIP_MAGIC:
                    raise self._unreadable_error(path, "it is a ZIP as torch.save writes it: call it .pt") from None
            raise self._unreadable_error(path, f"as safetensors: {pickle_scan.first_error_line(error)}") from None
        return tensors, strings

    def _check_archive(self, path: Path) -> None:
        """Refuse an archive that torch.save does not write."""
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except zipfile.BadZipFile:
            raise self._unreadable_error(path, "the file is cut off: its directory is missing") from None
        except Exception as error:  # noqa: BLE001 (zipfile raises several unrelated classes for a damaged directory)
            raise self._unreadable_error(
                path, f"its directory is damaged: {pickle_scan.first_error_line(error)}"
            ) from None
        names = [one.filename for one in entries]
        holds = detect_serialized_module_in(names)
        if holds is not None:
            what = "a TorchScript archive" if holds == "TorchScript" else f"{holds} (.pt2)"
            raise self._unreadable_error(path, f"it is {what}, not a checkpoint")
        if not any(name.endswith("data.pkl") for name in names):
            raise self._unreadable_error(path, "it is a ZIP, and none of torch.save's: it has no data.pkl")
        packed = [one.filename for one in entries if one.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise self._unreadable_error(
                path, f"its entry {packed[0]} is compressed, and torch.save compresses nothing"
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise self._unreadable_error(path, f"its entry {twice} stands there twice")
        if sum(one.file_size for one in entries) > path.stat().st_size:
            raise self._unreadable_error(path, "its entries claim more than the file holds")

    def _unreadable_error(self, file: Path, why: str) -> CheckpointUnreadable:
        """Of the file itself: it may be one of many."""
        return CheckpointUnreadable(str(file), self.where, why)


def _safe_globals() -> list[Any]:
    """What may be made from a pickle beside torch's own allow-list: values that do nothing when they are made."""
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
        *(type(np.dtype(one)) for one in "?bBhHiIlLqQefdFDgGU"),
        *((scalar, f"{name}.scalar") for name in numpy_names),
        *((array, f"{name}._reconstruct") for name in numpy_names),
        (_encode_latin1, "_codecs.encode"),
        *paths,
    ]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How pickle writes bytes in its old protocols; other encodings are not looked up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")
