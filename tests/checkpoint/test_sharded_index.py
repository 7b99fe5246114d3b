"""Tensors in pieces, without the ranks that write them: any cut is put together, and any other index is refused."""

import itertools
import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
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
