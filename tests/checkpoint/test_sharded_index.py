"""Tensors in pieces, without the ranks that write them: any cut is put together, and any other index is refused."""

import itertools
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from messages import mentions
from projects import package

from packager.checkpoint import read, sharded_index
from packager.checkpoint.sharded_index import Piece, PieceIndex, TensorPieces
from packager.checkpoint.state_tree import SAFETENSORS_DTYPES
from packager.errors import CheckpointUnreadable


def write(folder, tensors, cuts, whole):
    """A checkpoint in pieces; `cuts` are, by name, the places along each dimension where a tensor is cut."""
    files, spread = {}, {}
    for name, tensor in tensors.items():
        edges = [
            [0, *sorted(set(cut) & set(range(1, size))), size]
            for cut, size in zip(cuts[name], tensor.shape, strict=True)
        ]
        boxes = [list(itertools.pairwise(line)) for line in edges]
        pieces = []
        for number, box in enumerate(itertools.product(*boxes)):
            file = f"model.rank-{number:05d}.safetensors"
            files.setdefault(file, {})[name] = tensor[tuple(slice(*pair) for pair in box)].contiguous()
            pieces.append(Piece(file, tuple(begin for begin, _ in box), tuple(end - begin for begin, end in box)))
        spread[name] = TensorPieces(
            SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape), tuple(pieces) if tensor.numel() else ()
        )
    folder.mkdir(exist_ok=True)
    for file, held in files.items():
        safetensors.torch.save_file(held, folder / file)
    safetensors.torch.save_file(whole, folder / "model.safetensors")
    index = PieceIndex("model.safetensors", spread)
    (folder / "model.pieces.json").write_text(index.to_json())
    return index


@given(
    shapes=st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=3),
    cut=st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
def test_tensors_are_assembled_however_they_are_cut(tmp_path_factory, shapes, cut, dtype):
    folder = tmp_path_factory.mktemp("cut")
    tensors = {f"t{number}": torch.randn(shape).to(dtype) for number, shape in enumerate(shapes)}
    whole = {"buffer": torch.arange(3)}
    index = write(folder, tensors, {name: cut[: tensor.dim()] for name, tensor in tensors.items()}, whole)
    assert sharded_index.read_piece_index(folder / "model.pieces.json") == index
    state = read(folder / "model.pieces.json").state
    assert set(state) == {*tensors, "buffer"}
    assert all(
        torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "model", {"w": torch.arange(12.0).reshape(4, 3)}, {"w": [[2], []]}, {"b": torch.zeros(2)})
    return tmp_path / "model"


BOX = {"file": "model.rank-00000.safetensors", "offset": [0, 0], "shape": [2, 3]}
OTHER = {"file": "model.rank-00001.safetensors", "offset": [2, 0], "shape": [2, 3]}
REFUSED = [
    ({"pieces": [BOX]}, ("w", "[4, 3]")),
    ({"pieces": [BOX, BOX]}, ("w", "[4, 3]")),
    ({"pieces": [BOX, {**OTHER, "offset": [1, 0]}]}, ("w", "[4, 3]")),
    ({"pieces": [BOX, {**OTHER, "offset": [3, 0]}]}, ("w",)),
    ({"pieces": [BOX, {**OTHER, "offset": [-2, 0]}]}, ("-2",)),
    ({"pieces": [BOX, {**OTHER, "offset": [2]}]}, ("w",)),
    ({"pieces": [BOX, {**OTHER, "file": "../model.rank-00001.safetensors"}]}, ()),
    ({"pieces": [BOX, {**OTHER, "file": "/etc/passwd"}]}, ()),
    ({"pieces": [BOX, {**OTHER, "file": "model.pieces.json"}]}, ()),
    ({"pieces": [BOX, {**OTHER, "file": "gone.safetensors"}]}, ("gone.safetensors",)),
    ({"shape": [1 << 40, 1 << 40]}, ()),
    ({"shape": [4.0, 3]}, ("4.0",)),
    ({"dtype": "F64"}, ("w", "model.pieces.json")),
    ({"dtype": "nothing"}, ("w", "nothing")),
    ({"pieces": [{**BOX, "shape": [4, 3]}]}, ("w", "model.pieces.json")),
]


@pytest.mark.parametrize(("change", "facts"), REFUSED)
def test_an_index_that_contradicts_the_files_is_refused(folder, change, facts, golden):
    index = json.loads((folder / "model.pieces.json").read_text())
    index["tensors"]["w"].update(change)
    (folder / "model.pieces.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointUnreadable) as caught:
        read(folder / "model.pieces.json")
    golden(caught.value.why, *facts)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"schema": 2}',
        '{"schema": 1, "whole": "w.safetensors"}',
        '{"schema": 1, "schema": 1}',
        "[" * 9999,
    ],
)
def test_an_invalid_index_of_pieces_ends_with_2(folder, content):
    (folder / "model.pieces.json").write_text(content)
    with pytest.raises(CheckpointUnreadable):
        read(folder / "model.pieces.json")
    if content.startswith('{"schema": 1, "schema"'):
        answer = package("inspect", folder / "model.pieces.json")
        assert answer.returncode == 2
        mentions(answer.stderr, "error[checkpoint-unreadable]")


def test_the_file_of_a_single_rank_is_refused(folder, golden):
    with pytest.raises(CheckpointUnreadable) as caught:
        read(folder / "model.rank-00000.safetensors")
    golden(caught.value.why, "model.pieces.json")


BOXES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6
)


@given(boxes=BOXES)
@example(boxes=[(0, 0, 4, 3)])
@example(boxes=[(0, 0, 2, 3), (2, 0, 2, 3)])
@example(boxes=[(0, 0, 2, 2), (2, 0, 2, 1), (1, 2, 3, 1), (0, 2, 1, 1), (2, 1, 2, 1)])
@example(boxes=[(0, 0, 2, 2), (2, 0, 2, 1), (1, 2, 3, 1), (0, 2, 1, 1), (2, 0, 2, 1)])
def test_pieces_are_accepted_exactly_if_every_element_is_in_one_of_them(tmp_path_factory, boxes):
    boxes = [(row, column, min(rows, 4 - row), min(columns, 3 - column)) for row, column, rows, columns in boxes]
    counts = np.zeros((4, 3), int)
    for row, column, rows, columns in boxes:
        counts[row : row + rows, column : column + columns] += 1
    pieces = tuple(Piece("a", (row, column), (rows, columns)) for row, column, rows, columns in boxes)
    path = tmp_path_factory.mktemp("boxes") / "model.pieces.json"
    path.write_text(PieceIndex("model", {"w": TensorPieces("F32", (4, 3), pieces)}).to_json())
    if (counts == 1).all():
        assert sharded_index.read_piece_index(path).tensors["w"].pieces == pieces
    else:
        with pytest.raises(ValueError, match="do not add up"):
            sharded_index.read_piece_index(path)


def index_of(shape, boxes):
    pieces = tuple(Piece("a", offset, lengths) for offset, lengths in boxes)
    return PieceIndex("model", {"w": TensorPieces("F32", shape, pieces)}).to_json()


def test_pieces_that_lie_side_by_side_are_not_compared_with_each_other(tmp_path):
    """Each overlaps all others along the first axis, and none along the second: comparing pairs took hours."""
    count = 30_000
    boxes = [((number, number), (count, 1)) for number in range(count)]
    (tmp_path / "model.pieces.json").write_text(index_of((2 * count, count), boxes))
    with pytest.raises(ValueError, match="do not add up"):
        sharded_index.read_piece_index(tmp_path / "model.pieces.json")


def test_a_tensor_that_is_cut_along_many_dims_is_refused(tmp_path):
    """It has 2^60 corners."""
    boxes = [((0,) * 60, (1,) * 60), ((1,) * 60, (1,) * 60)]
    (tmp_path / "model.pieces.json").write_text(index_of((2,) * 60, boxes))
    with pytest.raises(ValueError, match="more than 4 dimensions"):
        sharded_index.read_piece_index(tmp_path / "model.pieces.json")


def test_an_index_of_a_thousand_tensors_on_64_ranks_is_read(tmp_path):
    pieces = tuple(Piece(f"model.rank-{rank:05d}.safetensors", (64 * rank, 0), (64, 4096)) for rank in range(64))
    index = PieceIndex("model", {f"layers.{n}.weight": TensorPieces("F32", (4096, 4096), pieces) for n in range(1000)})
    (tmp_path / "model.pieces.json").write_text(index.to_json())
    assert sharded_index.read_piece_index(tmp_path / "model.pieces.json") == index
