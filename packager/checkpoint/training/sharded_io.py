"""Write and read the shards of tensors as safetensors files, with the planners of torch.distributed.checkpoint (DCP).

DCP plans which rank writes which piece, each of them once, and which pieces of which files a rank needs, whether the
tensor is sharded differently now, on a different number of ranks, or whole in one process. Its storage is replaced
here, because DCP's own keeps the plan in a pickle, and its Hugging Face storage packs every file in memory first. A
rank writes the pieces that it holds into one safetensors file, in one pass that computes the digest too, and rank 0
writes the index (`packager.checkpoint.sharded_index`). The headers of the files also have what
`torch.distributed.checkpoint.HuggingFaceStorageReader` looks for.

See https://docs.pytorch.org/docs/stable/distributed.checkpoint.html for planners and storage.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from packager.checkpoint.ranks import RankGroup, translate_rank_errors
from packager.checkpoint.run_folder import piece_file_name, pieces_index_name
from packager.checkpoint.sharded_index import Piece, PieceIndex, TensorPieces, part_of_metadata
from packager.checkpoint.state_tree import SAFETENSORS_DTYPES
from packager.checkpoint.state_tree_file import TORCH_DTYPES, write_tensors, write_text_durably
from packager.errors import PackagerError, RankFailed


def save_sharded(
    folder: Path, file: str, tensors: Mapping[str, torch.Tensor], local: Mapping[str, torch.Tensor], ranks: RankGroup
) -> dict[str, str]:
    """Write the sharded tensors that belong to `file`, all ranks together; `local` are their shards on this rank.

    Returns, on rank 0, the SHA-256 of every file written, by name. If a rank fails, every rank raises its
    `PackagerError`, or `RankFailed` with the text of any other error.
    """
    names = ranks.run_on_first(lambda: list(tensors))  # if two names share a tensor, rank 0 has chosen one of them
    writer = _ShardWriter(folder, file, ranks.rank)
    planner = _LocalValuesPlanner({name: local[name] for name in names if name in tensors})
    with _raise_first_failure():
        dcp_save(
            {name: tensors[name] for name in names if name in tensors},
            storage_writer=writer,
            planner=planner,
            process_group=ranks.group,
            no_dist=ranks.is_alone,
        )
    return writer.digests


def load_sharded(folder: Path, index: PieceIndex, targets: Mapping[str, torch.Tensor], ranks: RankGroup) -> None:
    """Fill the targets, by their names in the index, from its files; all ranks together.

    A target may be sharded or whole. If a rank fails, every rank raises its `PackagerError`, or `RankFailed` with the
    text of any other error.
    """
    if ranks.is_alone and not targets:
        return
    with _raise_first_failure():
        dcp_load(
            dict(targets),
            storage_reader=_ShardReader(folder, index),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=ranks.group,
            no_dist=ranks.is_alone,
        )


@contextlib.contextmanager
def _raise_first_failure() -> Iterator[None]:
    """Raise the error of the first rank that failed, on every rank; DCP raises one with the errors of all."""
    try:
        with translate_rank_errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # intended: it is one process
            yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if isinstance(cause, PackagerError):
            raise cause from None
        why = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, FileNotFoundError):
            why += "\nevery rank must be able to see the folder"
        raise RankFailed(f"rank {rank} of the run failed", why) from None


class _LocalValuesPlanner(DefaultSavePlanner):
    """Take the values from `local`, not from the tensors that are planned with: training may change those meanwhile."""

    def __init__(self, local: Mapping[str, torch.Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._local = local

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self._local[index.fqn]


class _ShardStorage:
    """What DCP also asks of a storage, and neither the writer nor the reader needs."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003 (DCP's signature)
        return True


class _ShardWriter(_ShardStorage, StorageWriter):
    """Write this rank's pieces into one file and, on rank 0, the index; `digests` are by the name of the file."""

    def __init__(self, folder: Path, file: str, rank: int) -> None:
        self._folder, self._file, self._rank = folder, file, rank
        self.digests: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        file = piece_file_name(self._file, self._rank)
        tensors: dict[str, torch.Tensor] = {}
        sharding_info: dict[str, dict[str, list[int]]] = {}
        pieces = {}
        for item in plan.items:
            name, chunk = item.index.fqn, item.tensor_data.chunk  # type: ignore[union-attr]  # every tensor has one
            if math.prod(chunk.sizes) == 0:
                continue
            if name in tensors:
                raise RankFailed(f"rank {self._rank} of the run failed", f"it holds two pieces of {name}")
            tensors[name] = planner.resolve_data(item).detach().contiguous()  # type: ignore[union-attr]
            sharding_info[name] = {"saved_offsets": list(chunk.offsets)}
            pieces[name] = item.index, Piece(file, tuple(chunk.offsets), tuple(chunk.sizes))
        future: Future[list[WriteResult]] = Future()
        if not tensors:
            future.set_result([])
            return future
        strings = {
            "DCP_VERSION": "1.0",
            "DCP_SHARDING_INFO": json.dumps(sharding_info),
            **part_of_metadata(pieces_index_name(self._file)),
        }
        digest = write_tensors(self._folder / file, tensors, strings)
        size = (self._folder / file).stat().st_size
        future.set_result(
            [WriteResult(index, tensors[name].nbytes, (piece, digest, size)) for name, (index, piece) in pieces.items()]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write, on rank 0, the index of what all ranks have written."""
        pieces: dict[str, list[Piece]] = {}
        for result in (result for rank_results in results for result in rank_results):
            piece, digest, size = result.storage_data
            if (self._folder / piece.file).stat().st_size != size:
                raise RankFailed("a file is not as its rank wrote it", f"{piece.file} has a different size")
            self.digests[piece.file] = digest
            pieces.setdefault(result.index.fqn, []).append(piece)
        tensors = {
            name: TensorPieces(SAFETENSORS_DTYPES[item.properties.dtype], tuple(item.size), tuple(pieces.get(name, ())))
            for name, item in metadata.state_dict_metadata.items()
            if isinstance(item, TensorStorageMetadata)
        }
        name = pieces_index_name(self._file)
        self.digests[name] = write_text_durably(self._folder / name, PieceIndex(self._file, tensors).to_json())

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass


class _ShardReader(_ShardStorage, StorageReader):
    """Read pieces from the files that an index lists."""

    def __init__(self, folder: Path, index: PieceIndex) -> None:
        self._folder, self._index = folder, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 (DCP's signature)
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(TORCH_DTYPES[tensor.dtype]),
                    torch.Size(tensor.shape),
                    [
                        ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))
                        for piece in tensor.pieces
                    ],
                )
                for name, tensor in self._index.tensors.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        files = {
            (name, piece.offset): piece.file for name, tensor in self._index.tensors.items() for piece in tensor.pieces
        }
        items_by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            file = files[item.storage_index.fqn, tuple(item.storage_index.offset or ())]
            items_by_file.setdefault(file, []).append(item)
        for file, items in items_by_file.items():
            with safe_open(self._folder / file, framework="pt") as stream:
                for item in items:
                    extents = zip(item.storage_offsets, item.lengths, strict=True)
                    region = tuple(slice(start, start + length) for start, length in extents)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(stream.get_slice(item.storage_index.fqn)[region])
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass
