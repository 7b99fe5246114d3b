"""The user's own inputs: read, and checked against the manifest."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from grids import declared
from messages import mentions

from packager.errors import DataDoesNotFit, render_error
from packager.parity.cases import sample_grid

TWO = {"x": ["batch", 3], "ids": {"dtype": "int64", "shape": ["batch"], "range": [0, 9]}}


def arrays(batch=5, **other):
    return {"x": np.arange(batch * 3, dtype=np.float32).reshape(batch, 3), "ids": np.arange(batch), **other}


def test_an_npz_file_is_an_additional_case(tmp_path):
    np.savez(tmp_path / "real.npz", **arrays())
    plain = sample_grid.build_grid(declared(TWO))
    built = sample_grid.build_grid(declared(TWO, folder=tmp_path, data="real.npz"))
    assert len(built.cases) == len(plain.cases) + 1
    case = built.cases[-1]
    assert (case.name, case.value_description, case.sizes, list(case.inputs)) == (
        "data",
        "data",
        {"batch": 5},
        ["x", "ids"],
    )
    assert all(np.array_equal(case.inputs[name], array) for name, array in arrays().items())


def test_a_safetensors_file_is_an_additional_case(tmp_path):
    safetensors.numpy.save_file(arrays(), tmp_path / "real.safetensors")
    case = sample_grid.build_grid(declared(TWO, folder=tmp_path, data="real.safetensors")).cases[-1]
    assert all(np.array_equal(case.inputs[name], array) for name, array in arrays().items())


def test_the_users_data_are_never_the_example(tmp_path):
    np.savez(tmp_path / "real.npz", **arrays(batch=2))
    built = sample_grid.build_grid(declared(TWO, folder=tmp_path, data="real.npz"))
    assert built.example_case.sizes == built.cases[-1].sizes
    assert built.example_case.name == "000"


def test_a_bfloat16_input_is_read_as_float32(tmp_path):
    np.savez(tmp_path / "real.npz", x=np.ones(3, np.float32))
    inputs = {"x": {"dtype": "bfloat16", "shape": [3]}}
    assert (
        sample_grid.build_grid(declared(inputs, folder=tmp_path, data="real.npz")).cases[-1].inputs["x"].dtype
        == np.float32
    )


@pytest.mark.parametrize(
    ("given_arrays", "facts"),
    [
        ({"x": arrays()["x"]}, ("real.npz", "ids")),
        (arrays(mask=np.ones(5)), ("real.npz", "ids", "mask")),
        (arrays(x=np.ones((5, 3))), ("float64[5, 3]", "float32[batch, 3]")),
        (arrays(ids=np.arange(5, dtype=np.int32)), ("int32[5]", "int64[batch]", "ids")),
        (arrays(x=np.ones(15, np.float32)), ("float32[15]", "float32[batch, 3]")),
        (arrays(x=np.ones((5, 4), np.float32)), ("float32[5, 4]", "float32[batch, 3]")),
        (arrays(ids=np.arange(6)), ("6", "5", "ids", "batch")),
        (arrays(batch=17), ("17", "dims.batch", "2", "16")),
        (arrays(batch=1), ("1", "dims.batch", "2", "16")),
    ],
    ids=["a missing name", "an extra name", "float", "integer", "rank", "fixed dim", "two sizes", "above", "below"],
)  # fmt: skip
def test_data_with_a_different_signature_are_refused(tmp_path, given_arrays, facts, golden):
    np.savez(tmp_path / "real.npz", **given_arrays)
    with pytest.raises(DataDoesNotFit) as caught:
        sample_grid.build_grid(declared(TWO, {"batch": {"min": 2, "max": 16}}, folder=tmp_path, data="real.npz"))
    golden(render_error(caught.value), "error[data-does-not-fit]", f"{tmp_path}/package.yaml:1: parity.data", *facts)


def damaged(path):
    """Write an .npz file and overwrite its middle."""
    np.savez_compressed(path, x=np.arange(999.0))
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)


def bytes_inside(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"hello")


@pytest.mark.parametrize(
    ("name", "write", "facts"),
    [
        ("no.npz", lambda path: None, ()),
        ("no.safetensors", lambda path: None, ()),
        ("folder.npz", Path.mkdir, ()),
        ("empty.npz", Path.touch, ()),
        ("text.npz", lambda path: path.write_text("x: 1"), ()),
        ("cut.npz", lambda path: path.write_bytes(b"PK\x03\x04"), ()),
        ("damaged.npz", damaged, ()),
        ("cut.safetensors", lambda path: path.write_bytes(b"{}"), ()),
        ("objects.npz", lambda path: np.savez(path, x=np.array([None])), ()),
        ("one.npy", lambda path: np.save(path, np.ones(3)),
         ("np.savez(file, name=array)",)),
        ("bytes.npz", bytes_inside, ("x",)),
    ],
)  # fmt: skip
def test_a_file_without_named_arrays_is_refused(tmp_path, name, write, facts):
    write(tmp_path / name)
    with pytest.raises(DataDoesNotFit) as caught:
        sample_grid.build_grid(declared({"x": [3]}, folder=tmp_path, data=name))
    mentions(f"{caught.value.why}\n{caught.value.hint}", name, *facts)
    assert caught.value.where == f"{tmp_path}/package.yaml:1: parity.data"
