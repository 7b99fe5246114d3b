"""List the files that `checkpoint.path` stands for, without opening a tensor.

    a file                one file of weights, in the format of safetensors or of torch.save
    NAME.index.json       the index of a checkpoint in shards, and every shard
    NAME.pieces.json      the index of sharded tensors, the file of the others, and every file of pieces
    a folder              whichever of these it contains, in this order:
        run.json            a run of CheckpointManager: its best checkpoint if it has a metric, else its latest
        .metadata           torch.distributed.checkpoint, with all its *.distcp
        NAME.index.json     a checkpoint in shards, as above
        one file of weights under a usual name, or the only one there

A config.json beside the weights in a folder belongs to them, as Hugging Face writes it. The first file is the head: the
one that names the others, or else holds the weights. The digest of several files is the SHA-256 of what sha256sum would
print for them, so that two checkpoints can be compared without a tensor library.
"""

from __future__ import annotations

import errno
import hashlib
import stat
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packager.checkpoint import run_folder, sharded_index
from packager.checkpoint.safetensors_header import get_metadata, read_header
from packager.common.archive_directory import TOO_MANY_ENTRIES, ZIP_MAGIC, is_directory_too_long
from packager.common.hashing import sha256_file
from packager.common.strict_json import read_strict_json
from packager.errors import CheckpointNotFound, CheckpointUnreadable

SHARD_INDEX_SUFFIX = ".index.json"
DCP_METADATA_FILE = ".metadata"
HUGGINGFACE_CONFIG_FILE = "config.json"
_USUAL_WEIGHT_NAMES = (
    "model.safetensors", "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin", "model.pt", "model.pth",
)  # fmt: skip
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_MAX_SHARDS = 10_000
_SETTLED_NS = 2_000_000_000  # file times can be this coarse: a younger file may change unnoticed


@dataclass(frozen=True)
class FileVersion:
    """The state of a file as its metadata shows it: size in bytes, and times in ns since the epoch.

    `settled` says whether any later write would show in these times.
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
        """Tell whether size, modification time and inode agree."""
        return (self.size, self.modified_ns, self.inode) == (other.size, other.modified_ns, other.inode)


@dataclass(frozen=True)
class LocatedCheckpoint:
    """A path, and the files that are read for it, the head first.

    `from_run` says that they are one checkpoint of a run, and `skipped_checkpoints` which better ones are damaged, and
    how. `digests` holds the SHA-256 of the files that had to be read to choose them: all files of a run's checkpoint,
    otherwise none. `versions` holds the state of every file from before its contents were read.
    """

    path: Path
    files: tuple[Path, ...]
    versions: Mapping[Path, FileVersion]
    from_run: bool = False
    skipped_checkpoints: tuple[str, ...] = ()
    digests: Mapping[Path, str] = field(default_factory=dict)

    @property
    def head(self) -> Path:
        """The file that names the others, or holds the weights."""
        return self.files[0]

    @property
    def folder(self) -> Path:
        """The folder that the names of the files are relative to."""
        return self.head.parent if self.path in self.files else self.path

    def replaced(self) -> bool:
        """Tell whether a file is gone or was replaced since it was located. Reads no contents."""
        try:
            return not all(version.same_file(FileVersion.of(file)) for file, version in self.versions.items())
        except OSError:
            return True

    def changed(self) -> bool:
        """Tell whether a file was replaced or no longer has its digest.

        Contents are read only if the times of a file do not settle it.
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
    """Find the files of a checkpoint.

    Errors call it `display_name`, by default its path, and the manifest's field `where`. `weights` is the manifest's
    `checkpoint.weights`: a run has a separate file for averaged weights. `sha256` hashes a file of a run, to tell
    whether it is damaged. Raises `CheckpointNotFound`, `CheckpointUnreadable`, and for a run whatever
    `run_folder.choose_checkpoint` raises.
    """
    display_name = display_name or str(path)
    if _path_kind(path, display_name, where) == "folder":
        if run_folder.is_run(path) or run_folder.is_checkpoint(path):
            return _locate_in_run(path, display_name, where, weights, sha256)
        files = _list_folder_files(path, display_name, where)
    elif path.name.endswith(SHARD_INDEX_SUFFIX):
        files = [path, *list_shards(path, display_name, where)]
    elif (index := _find_piece_index(path, display_name, where)) is not None:
        files = [index, *_list_piece_files(index, display_name, where)]
    else:
        files = [path]
    for file in files:
        _check_file(file, display_name, where, alone=len(files) == 1)
    return LocatedCheckpoint(path, tuple(files), {file: FileVersion.of(file) for file in files})


def digest_checkpoint(located: LocatedCheckpoint, sha256: Callable[[Path], str]) -> str:
    """Return the SHA-256 of one file, or for several that of their sorted `sha256  name` lines. Raises OSError.

    `sha256` hashes a file; it is called only for files whose digest was not computed while they were located.
    """
    digests = {file: located.digests.get(file) or sha256(file) for file in located.files}
    if len(digests) == 1:
        return digests[located.head]
    lines = sorted(f"{digest}  {file.relative_to(located.folder).as_posix()}\n" for file, digest in digests.items())
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def detect_serialized_module(located: LocatedCheckpoint) -> str | None:
    """Return `TorchScript` or `an exported program` if the head is a module with its own forward(), else None."""
    try:
        with located.head.open("rb") as stream:
            if is_directory_too_long(stream):  # zipfile finds a directory whatever the first bytes are
                return None
        with zipfile.ZipFile(located.head) as archive:
            return detect_serialized_module_in(archive.namelist())
    except Exception:  # noqa: BLE001 (zipfile raises several unrelated classes; reading the file reports its damage)
        return None


def detect_serialized_module_in(names: Sequence[str]) -> str | None:
    """Return the same from the names of an archive's entries, which all lie in one folder."""
    inside = [name.partition("/")[2] for name in names]
    if any(name.startswith("code/") for name in inside):
        return "TorchScript"
    if any(name.startswith("models/") and name.endswith(".json") for name in inside):
        return "an exported program"
    return None


# -- paths ------------------------------------------------------------------------------------


def _path_kind(path: Path, display_name: str, where: str | None) -> str:
    """Return `file` or `folder`; refuse anything else."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFound(display_name, where, _describe_neighbors(path)) from None
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        is_loop = isinstance(error, OSError) and error.errno == errno.ELOOP
        why = "it is a symbolic link in a circle of links" if is_loop else getattr(error, "strerror", None)
        raise CheckpointUnreadable(display_name, where, why or str(error)) from None
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise CheckpointUnreadable(display_name, where, "it is not a regular file")
    return "file"


def _describe_neighbors(path: Path) -> str | None:
    if path.is_symlink():
        return f"it is a symbolic link to {path.readlink()}, which does not exist"
    names = sorted(_list_names(path.parent)) if path.parent.is_dir() else []
    checkpoints = [name for name in names if name.endswith((*WEIGHT_SUFFIXES, SHARD_INDEX_SUFFIX))]
    return f"beside it: {', '.join(checkpoints)}" if checkpoints else None


def _list_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _check_file(file: Path, display_name: str, where: str | None, *, alone: bool) -> None:
    """Refuse a path that is absent, not a file, unreadable or empty."""
    subject = "the file" if alone else file.name
    try:
        if _path_kind(file, display_name, where) == "folder":
            raise CheckpointUnreadable(display_name, where, f"{subject} is a folder, where a file is expected")
    except CheckpointNotFound:
        raise CheckpointUnreadable(display_name, where, f"{subject} is missing") from None
    try:
        with file.open("rb") as stream:
            head = stream.read(len(ZIP_MAGIC))
            is_crowded = head == ZIP_MAGIC and is_directory_too_long(stream)
    except OSError as error:
        raise CheckpointUnreadable(display_name, where, str(error.strerror), None) from None
    if not head:
        raise CheckpointUnreadable(display_name, where, f"{subject} is empty")
    if is_crowded:
        raise CheckpointUnreadable(display_name, where, f"{subject} is an archive of {TOO_MANY_ENTRIES}")


# -- folders and shards -----------------------------------------------------------------------


def contains_checkpoint(folder: Path) -> bool:
    """Tell whether a folder contains a file that a checkpoint consists of. Raises OSError."""
    return any(
        name == DCP_METADATA_FILE or name.endswith((SHARD_INDEX_SUFFIX, *WEIGHT_SUFFIXES))
        for name in _list_names(folder)
    )


def _list_folder_files(folder: Path, display_name: str, where: str | None) -> list[Path]:
    try:
        names = sorted(_list_names(folder))
    except OSError as error:
        raise CheckpointUnreadable(display_name, where, str(error.strerror), None) from None
    head, others = pick_head(names, display_name, where)
    shards = list_shards(folder / head, display_name, where) if head.endswith(SHARD_INDEX_SUFFIX) else []
    return [folder / head, *shards, *(folder / name for name in others)]


def pick_head(names: Sequence[str], display_name: str, where: str | None) -> tuple[str, list[str]]:
    """Choose the head among the names in a folder; return it with the other files that belong to it.

    Shards are not among those, because only the head names them. Raises `CheckpointUnreadable`.
    """
    if DCP_METADATA_FILE in names:
        return DCP_METADATA_FILE, [name for name in names if name.endswith(".distcp")]
    config = [HUGGINGFACE_CONFIG_FILE] if HUGGINGFACE_CONFIG_FILE in names else []
    indexes = [name for name in names if name.endswith(SHARD_INDEX_SUFFIX)]
    usual = [name for name in _USUAL_WEIGHT_NAMES if name in names]
    weights = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    if "adapter_config.json" in names and not usual and not indexes:
        raise CheckpointUnreadable(
            display_name, where, "it holds a PEFT adapter, not the weights of a model: merge them"
        )
    if usual and not (indexes and usual[0].endswith(".bin")):
        return usual[0], config
    if indexes:
        # The same weights may be there both as safetensors and as pickles: safetensors are preferred.
        return min(indexes, key=lambda name: ("safetensors" not in name, name)), config
    if len(weights) == 1:
        return weights[0], config
    if weights:
        why = f"it is a folder with {len(weights)} weight files: name one of {', '.join(weights[:20])}"
        raise CheckpointUnreadable(display_name, where, why)
    raise CheckpointUnreadable(display_name, where, "it is a folder without a checkpoint in it")


def _locate_in_run(
    folder: Path, display_name: str, where: str | None, weights: str, sha256: Callable[[Path], str]
) -> LocatedCheckpoint:  # fmt: skip
    """Return the files of the checkpoint that a run stands for, each with the digest that was recorded for it."""
    versions: dict[Path, FileVersion] = {}
    digests: dict[Path, str] = {}

    def hash_and_record(file: Path) -> str:
        versions[file] = FileVersion.of(file)
        digests[file] = sha256(file)
        return digests[file]

    chosen = run_folder.choose_checkpoint(folder, weights, hash_and_record)
    files = chosen.files
    if len(files) > 1 and set(_list_piece_files(files[0], display_name, where)) != set(files[1:]):
        raise CheckpointUnreadable(display_name, where, f"{files[0].name} does not name the files that are there")
    return LocatedCheckpoint(
        folder,
        files,
        versions={file: versions[file] for file in files},
        from_run=True,
        skipped_checkpoints=chosen.skipped_checkpoints,
        digests={file: digests[file] for file in files},
    )


def _find_piece_index(path: Path, display_name: str, where: str | None) -> Path | None:
    """Return the piece index that a path names, or the one beside the file of the tensors that all ranks share."""
    if path.name.endswith(run_folder.PIECES_SUFFIX):
        return path
    if path.suffix != ".safetensors":
        return None
    stem, rank, _ = path.stem.partition(".rank-")
    index = path.with_name(run_folder.pieces_index_name(f"{stem}.safetensors"))
    if not index.is_file():
        if named_index := _read_owning_index(path):
            why = f"it is a part of a sharded checkpoint: name its {named_index}, or their folder"
            raise CheckpointUnreadable(display_name, where, why)
        return None
    if rank:
        raise CheckpointUnreadable(display_name, where, f"it holds the pieces of a single rank: name {index.name}")
    return index


def _read_owning_index(path: Path) -> str | None:
    """Return the name of the index that a safetensors file says it is a part of."""
    try:
        return sharded_index.get_owning_index(get_metadata(read_header(path)))
    except (OSError, ValueError):
        return None  # reading the file reports its damage


def _list_piece_files(index: Path, display_name: str, where: str | None) -> list[Path]:
    """Return the file of the whole tensors, and those of the pieces."""
    pieces = load_piece_index(index, display_name, where)
    return [index.parent / name for name in (pieces.whole, *pieces.files())]


def load_piece_index(index: Path, display_name: str, where: str | None) -> sharded_index.PieceIndex:
    """Read the index of sharded tensors. Raises `CheckpointUnreadable`."""
    try:
        return sharded_index.read_piece_index(index)
    except (OSError, ValueError) as error:
        raise CheckpointUnreadable(display_name, where, f"{index.name}: {error}") from None


def list_shards(index: Path, display_name: str, where: str | None) -> list[Path]:
    """Return the shards that an index names, all in its own folder or below. Raises `CheckpointUnreadable`."""
    names = sorted(set(read_weight_map(index, display_name, where).values()))
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if not name or ".." in parts or name.startswith("/") or ":" in parts[0] or "\0" in name:
            raise CheckpointUnreadable(display_name, where, f"{index.name} names a path outside its folder: {name!r}")
    return [index.parent / name for name in names]


def read_weight_map(index: Path, display_name: str, where: str | None) -> dict[str, str]:
    """Read an index of shards: the file of each tensor, by its name. Raises `CheckpointUnreadable`."""
    try:
        shards = read_strict_json(index)["weight_map"]
        if not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError("weight_map names no shards")
        if len(set(shards.values())) > _MAX_SHARDS:
            raise ValueError(f"weight_map names more than {_MAX_SHARDS} shards")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if not isinstance(error, KeyError) else "it has no weight_map"
        raise CheckpointUnreadable(display_name, where, f"{index.name} is not an index of shards: {why}") from None
    return dict(shards)
