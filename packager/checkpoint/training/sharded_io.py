"""Tensors that are spread over ranks ↔ safetensors files, through torch.distributed.checkpoint (DCP).

DCP plans: which rank writes which piece, each once, and which pieces of which files a rank needs, cut in its own way or
whole, on another number of ranks or on none. What DCP's own storage would do is done here, as that keeps its plan in a
pickle and its Hugging Face storage packs every file in memory first: a rank writes the pieces that it holds into
one safetensors file, in one pass that gives the digest too, and rank 0 writes the index
(`packager.checkpoint.sharded_index`).
The files also say in their headers what `torch.distributed.checkpoint.HuggingFaceStorageReader` looks for there.

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
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
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
    """Write the spread tensors that belong to `file`, all ranks together; `held` is what of each lies on this one.

    Returns, on rank 0, the SHA-256 of every file that was written, by name. Raises on every rank what went wrong on
    one: OSError's text as `RankFailed`.
    """
    names = ranks.run_on_first(lambda: list(tensors))  # where two names are one tensor, rank 0 has said which it is
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
    """Fill the targets, each in its own way cut or whole, from the files of an index; all ranks together.

    Raises on every rank what went wrong on one, as `RankFailed`.
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
    """What DCP says of every rank that failed → the first of it, which every rank raises."""
    try:
        with translate_rank_errors(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if isinstance(cause, PackagerError):
            raise cause from None
        text = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, FileNotFoundError):
            text += "\nthe folder has to be one that every rank sees"
        raise RankFailed(f"rank {rank} of the run failed", text) from None


class _LocalValuesPlanner(DefaultSavePlanner):
    """Takes the values from elsewhere than the tensors that are planned with: those may change meanwhile."""

    def __init__(self, held: Mapping[str, torch.Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._held = held

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self._held[index.fqn]


class _ShardWriter(StorageWriter):
    def __init__(self, folder: Path, file: str, rank: int) -> None:
        self._folder, self._file, self._rank = folder, file, rank
        self.digests: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, torch.Tensor] = {}
        places: dict[str, dict[str, list[int]]] = {}
        shapes = {}
        for item in plan.items:
            name, box = item.index.fqn, item.tensor_data.chunk  # type: ignore[union-attr]  # there is one for a tensor
            if math.prod(box.sizes) == 0:
                continue
            if name in tensors:
                raise RankFailed(f"rank {self._rank} of the run failed", f"it holds two pieces of {name}")
            tensors[name] = planner.resolve_data(item).detach().contiguous()  # type: ignore[union-attr]
            places[name] = {"saved_offsets": list(box.offsets)}
            shapes[name] = (item.index, tuple(box.offsets), tuple(box.sizes))
        future: Future[list[WriteResult]] = Future()
        if not tensors:
            future.set_result([])
            return future
        file = piece_file_name(self._file, self._rank)
        strings = {
            "DCP_VERSION": "1.0",
            "DCP_SHARDING_INFO": json.dumps(places),
            **part_of_metadata(pieces_index_name(self._file)),
        }
        digest = write_tensors(self._folder / file, tensors, strings)
        size = (self._folder / file).stat().st_size
        future.set_result(
            [
                WriteResult(index, tensors[name].nbytes, (Piece(file, offset, shape), digest, size))
                for name, (index, offset, shape) in shapes.items()
            ]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0: write the index of what all have written."""
        found: dict[str, list[Piece]] = {}
        for result in (one for written in results for one in written):
            piece, digest, size = result.storage_data
            if (self._folder / piece.file).stat().st_size != size:
                raise RankFailed("what a rank wrote is not there", f"{piece.file} has another size")
            self.digests[piece.file] = digest
            found.setdefault(result.index.fqn, []).append(piece)
        tensors = {
            name: TensorPieces(SAFETENSORS_DTYPES[one.properties.dtype], tuple(one.size), tuple(found.get(name, ())))
            for name, one in metadata.state_dict_metadata.items()
            if isinstance(one, TensorStorageMetadata)
        }
        name = pieces_index_name(self._file)
        self.digests[name] = write_text_durably(self._folder / name, PieceIndex(self._file, tensors).to_json())

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _ShardReader(StorageReader):
    def __init__(self, folder: Path, index: PieceIndex) -> None:
        self._folder, self._index = folder, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(TORCH_DTYPES[one.dtype]),
                    torch.Size(one.shape),
                    [ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)) for piece in one.pieces],
                )
                for name, one in self._index.tensors.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        place = {
            (name, piece.offset): piece.file for name, one in self._index.tensors.items() for piece in one.pieces
        }  # fmt: skip
        wanted: dict[str, list[Any]] = {}
        for item in plan.items:
            file = place[item.storage_index.fqn, tuple(item.storage_index.offset or ())]
            wanted.setdefault(file, []).append(item)
        for file, items in wanted.items():
            with safe_open(self._folder / file, framework="pt") as stream:
                for item in items:
                    boxes = zip(item.storage_offsets, item.lengths, strict=True)
                    part = stream.get_slice(item.storage_index.fqn)[
                        tuple(slice(begin, begin + length) for begin, length in boxes)
                    ]
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True
