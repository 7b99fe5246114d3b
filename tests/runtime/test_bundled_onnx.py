"""External weights are mapped from the verified descriptor, and copied where that is not possible."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.bundle.archive import write_archive
from packager.bundle.files import Location, adopt_files, open_bundle
from packager.errors import IntegrityFailed
from packager.runtime import bundled_onnx
from packager.runtime.bundled_onnx import open_bundled_onnx
from packager.runtime.session_settings import SessionSettings

ARTIFACT = {"path": "model.onnx", "data": {"path": "model.onnx_data"}}
SIZE = 1 << 19  # of the weight: 2 MB


@pytest.fixture
def folder(tmp_path, built):
    """Return a folder with a model that adds its external weight, and the files that every bundle has."""
    folder = Path(shutil.copytree(built.bundle, tmp_path / "bundle"))
    weight = numpy_helper.from_array(np.arange(SIZE, dtype=np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [result], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    return folder


def count_mapped(name):
    return sum(name in line for line in Path("/proc/self/maps").read_text().splitlines())


def predict(backend):
    outputs = backend.run({"x": np.ones(1, np.float32)})["y"]
    np.testing.assert_array_equal(outputs, np.arange(SIZE, dtype=np.float32) + 1)


def open_model(files):
    return open_bundled_onnx(files, ARTIFACT, ["CPUExecutionProvider"], SessionSettings(threads=1))


@pytest.mark.parametrize("archived", [False, True])
def test_weights_are_mapped_from_the_folder_and_from_within_the_archive(folder, tmp_path, archived):
    if archived:
        write_archive(folder, tmp_path / "bundle.zip")
    path = tmp_path / ("bundle.zip" if archived else "bundle")
    with open_bundle(path) as files:
        backend = open_model(files)
    mapped = "bundle.zip" if archived else "model.onnx_data"
    assert count_mapped(str(tmp_path / "bundle") + (".zip" if archived else f"/{mapped}")) == 1
    predict(backend)
    backend.close()
    assert count_mapped(str(path)) == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_file_that_was_opened_is_mapped_whatever_has_its_name(folder, tmp_path, moment):
    data = folder / "model.onnx_data"
    with open_bundle(folder) as files:
        if moment == "before":
            files.locate(data.name)
            data.rename(tmp_path / "moved")
            data.write_bytes(bytes(SIZE * 4))
        backend = open_model(files)
        if moment == "after":
            data.unlink()
            data.write_bytes(bytes(SIZE * 4))
    predict(backend)


def test_weights_of_a_deleted_file_are_copied(folder):
    with open_bundle(folder) as files:
        files.locate("model.onnx_data")
        (folder / "model.onnx_data").unlink()
        predict(open_model(files))


def test_weights_are_copied_where_there_is_no_proc(folder, monkeypatch):
    monkeypatch.setattr(bundled_onnx, "_DESCRIPTORS", "absent/fd")
    with open_bundle(folder) as files:
        backend = open_model(files)
    assert count_mapped(f"{folder}/model.onnx_data") == 1  # by Python, until the session is gone
    predict(backend)


def test_weights_with_a_wrong_digest_are_refused_though_the_session_was_made(folder):
    with open_bundle(folder) as files:
        files.expect({"model.onnx_data": "0" * 64})
        with pytest.raises(IntegrityFailed, match=r"changed: model\.onnx_data"):
            open_model(files)


def test_a_wrong_digest_explains_a_session_that_could_not_be_made(folder):
    (folder / "model.onnx").write_bytes(b"not a model")
    with open_bundle(folder) as files:
        files.expect({"model.onnx_data": "0" * 64})
        with pytest.raises(IntegrityFailed, match=r"changed: model\.onnx_data"):
            open_model(files)


def test_a_process_that_inherited_the_descriptors_maps_them_too(folder):
    locations = {}
    for name in ("model.onnx", "model.onnx_data"):
        descriptor = os.open(folder / name, os.O_RDONLY)
        locations[name] = Location(descriptor, 0, os.fstat(descriptor).st_size)
    with adopt_files(locations, {}) as files:
        predict(open_model(files))
