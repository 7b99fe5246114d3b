"""Named arrays are read from .npz and .safetensors, and not from files that are far larger in memory."""

import json
import zipfile

import numpy as np
import pytest
from messages import mentions

from packager.common.array_files import read_arrays
from packager.errors import DataDoesNotFit


def refusal(path):
    with pytest.raises(DataDoesNotFit) as caught:
        read_arrays(path, "parity.data")
    return caught.value


def test_compressed_and_plain_arrays_are_read(tmp_path):
    arrays = {"x": np.zeros((1000, 1000), np.float32), "y": np.arange(5)}
    for write, path in ((np.savez, tmp_path / "plain.npz"), (np.savez_compressed, tmp_path / "compressed.npz")):
        write(path, **arrays)
        assert all(np.array_equal(array, arrays[name]) for name, array in read_arrays(path, "x").items())


def test_an_npz_that_unpacks_to_much_more_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **{f"x{number}": np.zeros(5_000_000, np.uint8) for number in range(10)})
    monkeypatch.setattr(np, "load", None)
    error = refusal(path)
    mentions(error.why, f"{path.stat().st_size} bytes", "50001280")
    mentions(error.hint, "np.savez(")


def test_an_npz_of_which_half_is_air_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8)
    np.savez_compressed(tmp_path / "x.npz", noise=noise, zeros=np.zeros(15_000_000, np.uint8))
    assert read_arrays(tmp_path / "x.npz", "x")["zeros"].size == 15_000_000


@pytest.mark.parametrize("name_length", [3, 200])
def test_an_npz_of_too_many_arrays_is_refused_unread(tmp_path, monkeypatch, name_length):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for number in range(12_000):
            archive.writestr(f"{number:0{name_length}d}.npy", b"")
    monkeypatch.setattr(np, "load", None)
    mentions(refusal(tmp_path / "x.npz").why, "more than 10000 arrays")


def test_a_safetensors_file_of_too_many_arrays_is_refused(tmp_path):
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{number}": tensor for number in range(10_001)}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    mentions(refusal(tmp_path / "x.safetensors").why, "more than 10000 arrays")
