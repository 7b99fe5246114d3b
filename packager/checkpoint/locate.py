"""Which files a checkpoint is, told without opening one tensor: `checkpoint.path` may name a file or a folder.

    a file                one file of weights: safetensors or PyTorch's
    NAME.index.json       the index of a sharded checkpoint, and every shard that it names
    NAME.pieces.json      the index of tensors in pieces, the file of the others, and every file of pieces
    a folder              what its content says, in this order:
        run.json            a run of CheckpointManager: its best checkpoint where it has a metric, else its latest
        .metadata           torch.distributed.checkpoint, with all its *.distcp
        NAME.index.json     a sharded checkpoint, as above
        one file of weights under a usual name, or the only one there

A config.json beside weights in a folder belongs to them, as Hugging Face writes it. The first file is the
head: what leads to the others, or else holds the weights. The digest of several files is that of the lines
that sha256sum would print of them, so no tensor library is needed to say whether a checkpoint is the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packager.checkpoint import run_folder, sharded_index
from packager.checkpoint.safetensors_header import get_metadata, read_header
from packager.common.hashing import sha256_file
from packager.common.strict_json import parse_strict_json
from packager.errors import CheckpointNotFound, CheckpointUnreadable

SHARD_INDEX_SUFFIX = ".index.json"
DCP_METADATA_FILE = ".metadata"
HUGGINGFACE_CONFIG_FILE = "config.json"
_USUAL_WEIGHT_NAMES = (
    "model.safetensors", "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin", "model.pt", "model.pth",
)  # fmt: skip
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_MAX_JSON_BYTES = 100_000_000  # as safetensors has it for a header
_SETTLED_NS = 2_000_000_000  # file times are as coarse as this; a file younger than that may change unnoticed


@dataclass(frozen=True)
class FileVersion:
    """What the file system says about a file without reading it: bytes, and times in ns since the epoch.

    `settled` is whether any later write shows in these times.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    settled: bool

    @classmethod
    def of(cls, path: Path) -> FileVersion:
        """Return the version of a file as it is now. Raises OSError."""
        status, now = path.stat(), time.time_ns()
        settled = now - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, settled)

    def same_file(self, other: FileVersion) -> bool:
        """Whether size, modification time and inode agree."""
        return (self.size, self.modified_ns, self.inode) == (other.size, other.modified_ns, other.inode)


@dataclass(frozen=True)
class LocatedCheckpoint:
    """What a path named, and the files that are read for it, the head first; `chosen` is whether a run has others.

    `passed_over` says which checkpoints of the run would have come before, and are damaged. `digests` are the SHA-256
    of the files whose contents had to be read to choose them, which is all files of a run's checkpoint and none
    elsewhere. `versions` are those of all files, each taken before its contents were read.
    """

    path: Path
    files: tuple[Path, ...]
    versions: Mapping[Path, FileVersion]
    from_run: bool = False
    skipped_checkpoints: tuple[str, ...] = ()
    digests: Mapping[Path, str] = field(default_factory=dict)

    @property
    def head(self) -> Path:
        """The file that leads to the others, or holds the weights."""
        return self.files[0]

    @property
    def folder(self) -> Path:
        """Where the files' names start."""
        return self.head.parent if self.path in self.files else self.path

    def replaced(self) -> bool:
        """Whether a file is gone, or is no longer the one that was located. Reads no contents."""
        try:
            return not all(version.same_file(FileVersion.of(file)) for file, version in self.versions.items())
        except OSError:
            return True

    def changed(self) -> bool:
        """Whether a file is replaced, or holds other bytes than those of its digest.

        Contents are read only where the times of a file cannot tell.
        """
        return self.replaced() or any(self._differs(file, sha256) for file, sha256 in self.digests.items())

    def _differs(self, file: Path, sha256: str) -> bool:
        version = self.versions[file]
        try:
            untouched = version.settled and FileVersion.of(file).changed_ns == version.changed_ns
            return not untouched and sha256_file(file) != sha256
        except OSError:
            return True


def locate_files(
    path: Path,
    display_name: str | None = None,
    where: str | None = None,
    weights: str = "auto",
    sha256: Callable[[Path], str] = sha256_file,
) -> LocatedCheckpoint:
    """Find the files of a checkpoint; `named` is what the user calls it, `where` the field that does.

    `weights` matter where a run keeps the averaged ones in a file of their own, and `sha256` where it has
    to be told whether that file is whole. Raises `CheckpointNotFound`,
    `CheckpointUnreadable`, or what `run_folder.chosen` raises.
    """
    called = display_name or str(path)
    if _path_kind(path, called, where) == "folder":
        if run_folder.is_run(path) or run_folder.is_checkpoint(path):
            return _locate_in_run(path, called, where, weights, sha256)
        files = _list_folder_files(path, called, where)
    elif path.name.endswith(SHARD_INDEX_SUFFIX):
        files = [path, *list_shards(path, called, where)]
    elif (index := _find_piece_index(path, called, where)) is not None:
        files = [index, *_list_piece_files(index, called, where)]
    else:
        files = [path]
    for file in files:
        _check_file(file, called, where, alone=len(files) == 1)
    return LocatedCheckpoint(path, tuple(files), {file: FileVersion.of(file) for file in files})


def digest_checkpoint(located: LocatedCheckpoint, sha256: Callable[[Path], str]) -> str:
    """One file: its SHA-256. Several: SHA-256 over sorted `sha256  name` lines. Raises OSError.

    `sha256` is asked only about files whose digest was not found while they were located.
    """
    digests = {file: located.digests.get(file) or sha256(file) for file in located.files}
    if len(digests) == 1:
        return digests[located.head]
    lines = sorted(f"{one}  {file.relative_to(located.folder).as_posix()}\n" for file, one in digests.items())
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def detect_serialized_module(located: LocatedCheckpoint) -> str | None:
    """`TorchScript` or `an exported program` where the one file holds its own forward(); None where it does not."""
    try:
        with zipfile.ZipFile(located.head) as archive:
            return detect_serialized_module_in(archive.namelist())
    except Exception:  # noqa: BLE001 (zipfile raises several unrelated classes; whoever reads the file will tell)
        return None


def detect_serialized_module_in(names: Sequence[str]) -> str | None:
    """The same for the names of an archive's entries, which all lie in one folder."""
    inside = [name.partition("/")[2] for name in names]
    if any(name.startswith("code/") for name in inside):
        return "TorchScript"
    if any(name.startswith("models/") and name.endswith(".json") for name in inside):
        return "an exported program"
    return None


# -- what a path is -------------------------------------------------------------------------


def _path_kind(path: Path, named: str, where: str | None) -> str:
    """`file` or `folder`; refuses what is neither."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFound(named, where, _describe_neighbors(path)) from None
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        circle = isinstance(error, OSError) and error.errno == errno.ELOOP
        why = "it is a symbolic link that leads in a circle" if circle else getattr(error, "strerror", None)
        raise CheckpointUnreadable(named, where, why or str(error)) from None
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise CheckpointUnreadable(named, where, "it is no regular file")
    return "file"


def _describe_neighbors(path: Path) -> str | None:
    if path.is_symlink():
        return f"it is a symbolic link to {os.readlink(path)}, which is not there"
    beside = sorted(one.name for one in path.parent.iterdir()) if path.parent.is_dir() else []
    near = [name for name in beside if name.endswith((*WEIGHT_SUFFIXES, SHARD_INDEX_SUFFIX))]
    return f"beside it: {', '.join(near)}" if near else None


def _check_file(file: Path, named: str, where: str | None, *, alone: bool) -> None:
    """Refuse a file that is absent, no file, unreadable or empty."""
    it = "the file" if alone else file.name
    try:
        if _path_kind(file, named, where) == "folder":
            raise CheckpointUnreadable(named, where, f"{it} is a folder, and a file is expected")
    except CheckpointNotFound:
        raise CheckpointUnreadable(named, where, f"{it} is missing") from None
    try:
        with file.open("rb") as stream:
            head = stream.read(1)
    except OSError as error:
        raise CheckpointUnreadable(named, where, str(error.strerror), None) from None
    if not head:
        raise CheckpointUnreadable(named, where, f"{it} is empty")


# -- folders and shards -----------------------------------------------------------------------


def contains_checkpoint(folder: Path) -> bool:
    """Whether a folder has something in it that a checkpoint is made of."""
    return any(
        name == DCP_METADATA_FILE or name.endswith((SHARD_INDEX_SUFFIX, *WEIGHT_SUFFIXES))
        for name in os.listdir(folder)
    )


def _list_folder_files(folder: Path, named: str, where: str | None) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointUnreadable(named, where, str(error.strerror), None) from None
    head, others = pick_head(names, named, where)
    parts = list_shards(folder / head, named, where) if head.endswith(SHARD_INDEX_SUFFIX) else []
    return [folder / head, *parts, *(folder / name for name in others)]


def pick_head(names: Sequence[str], named: str, where: str | None) -> tuple[str, list[str]]:
    """The head among the names in a folder, and what else belongs to it by its name: shards are for the head to say.

    Raises `CheckpointUnreadable`.
    """
    if DCP_METADATA_FILE in names:
        return DCP_METADATA_FILE, [name for name in names if name.endswith(".distcp")]
    config = [HUGGINGFACE_CONFIG_FILE] if HUGGINGFACE_CONFIG_FILE in names else []
    indexes = [name for name in names if name.endswith(SHARD_INDEX_SUFFIX)]
    usual = [name for name in _USUAL_WEIGHT_NAMES if name in names]
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    if "adapter_config.json" in names and not usual and not indexes:
        raise CheckpointUnreadable(named, where, "it holds an adapter (PEFT), not the weights of a model: merge them")
    if usual and not (indexes and usual[0].endswith(".bin")):
        return usual[0], config
    if indexes:
        # safetensors before the same weights as pickles
        return min(indexes, key=lambda name: ("safetensors" not in name, name)), config
    if len(weights) == 1:
        return weights[0], config
    if weights:
        why = f"it is a folder with {len(weights)} files of weights: name one of {', '.join(weights[:20])}"
        raise CheckpointUnreadable(named, where, why)
    raise CheckpointUnreadable(named, where, "it is a folder without a checkpoint in it")


def _locate_in_run(
    folder: Path, named: str, where: str | None, weights: str, sha256: Callable[[Path], str]
) -> LocatedCheckpoint:  # fmt: skip
    """The files of the checkpoint that a run stands for; their digests are those that it has saved."""
    versions: dict[Path, FileVersion] = {}
    digests: dict[Path, str] = {}

    def hashed(file: Path) -> str:
        versions[file] = FileVersion.of(file)
        digests[file] = sha256(file)
        return digests[file]

    chosen = run_folder.choose_checkpoint(folder, weights, hashed)
    files = chosen.files
    if len(files) > 1 and set(_list_piece_files(files[0], named, where)) != set(files[1:]):
        raise CheckpointUnreadable(named, where, f"{files[0].name} names other files than there are")
    return LocatedCheckpoint(
        folder,
        files,
        versions={file: versions[file] for file in files},
        from_run=True,
        skipped_checkpoints=chosen.skipped_checkpoints,
        digests={file: digests[file] for file in files},
    )


def _find_piece_index(path: Path, named: str, where: str | None) -> Path | None:
    """The index that a file is, or that lies beside it where the file is what all ranks had the same."""
    if path.name.endswith(run_folder.PIECES_SUFFIX):
        return path
    if path.suffix != ".safetensors":
        return None
    stem, rank, _ = path.stem.partition(".rank-")
    index = path.with_name(run_folder.pieces_index_name(f"{stem}.safetensors"))
    if not index.is_file():
        if named_index := _read_owning_index(path):
            why = f"it is a part of a checkpoint in pieces: name its {named_index}, or their folder"
            raise CheckpointUnreadable(named, where, why)
        return None
    if rank:
        raise CheckpointUnreadable(named, where, f"it holds the pieces of one rank alone: name {index.name}")
    return index


def _read_owning_index(path: Path) -> str | None:
    """The index that a safetensors file says it is a part of."""
    try:
        return sharded_index.get_owning_index(get_metadata(read_header(path)))
    except (OSError, ValueError):
        return None  # whoever reads the file will tell


def _list_piece_files(index: Path, named: str, where: str | None) -> list[Path]:
    """The file of what is whole, and those of the pieces."""
    found = load_piece_index(index, named, where)
    return [index.parent / name for name in (found.whole, *found.files())]


def load_piece_index(index: Path, named: str, where: str | None) -> sharded_index.PieceIndex:
    """The index of tensors in pieces. Raises `CheckpointUnreadable`."""
    try:
        return sharded_index.read_piece_index(index)
    except (OSError, ValueError) as error:
        raise CheckpointUnreadable(named, where, f"{index.name}: {error}") from None


def list_shards(index: Path, named: str, where: str | None) -> list[Path]:
    """The shards that an index names, each in the index's own folder or below."""
    names = sorted(set(read_weight_map(index, named, where).values()))
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if not name or ".." in parts or name.startswith("/") or ":" in parts[0] or "\0" in name:
            raise CheckpointUnreadable(named, where, f"{index.name} names a path outside its folder: {name!r}")
    return [index.parent / name for name in names]


def read_weight_map(index: Path, named: str, where: str | None) -> dict[str, str]:
    """Which shard each tensor is in, as an index says."""
    try:
        if index.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is too long to be an index")
        found = parse_strict_json(index.read_bytes())
        shards = found["weight_map"]
        if not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError("weight_map names no shards")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if not isinstance(error, KeyError) else "it has no weight_map"
        raise CheckpointUnreadable(named, where, f"{index.name} is no index of shards: {why}") from None
    return dict(shards)
