"""Loading a bundle and predicting with it."""

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from messages import mentions
from projects import ANOTHER, LINEAR, project, python, reseal

import packager
from packager.bundle import archive
from packager.errors import (
    BackendUnavailable,
    DataDoesNotFit,
    FingerprintWrong,
    InferenceFailed,
    IntegrityFailed,
    SelftestFailed,
    render_error,
)
from packager.model import loader
from packager.project import manifest


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def eager(digits):
    with loader.open_model_loader(manifest.load_manifest(digits)) as load_model:
        module = load_model().module
        return lambda x: module(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def loaded(built):
    return packager.load(built.bundle)


# -- predictions ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_a_run_returns_what_the_module_returns(loaded, eager, count):
    outputs = loaded.run({"image": images(count)})
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    np.testing.assert_allclose(outputs["logits"], eager(images(count)), rtol=1e-5, atol=1e-5)


def test_a_call_is_a_run(loaded):
    assert np.array_equal(loaded(image=images(3))["logits"], loaded.run({"image": images(3)})["logits"])


def test_a_bundle_describes_itself(loaded, built, golden):
    assert (loaded.name, loaded.version, loaded.backend) == ("digits-cnn", "1.0.0", "onnx")
    assert loaded.fingerprint == built.fingerprint
    assert loaded.inputs == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8], "range": [0, 1]}]
    assert loaded.outputs == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert loaded.config == json.loads((built.bundle / "config.json").read_text())
    golden(repr(loaded), "1.0.0", f"{built.fingerprint}>", "digits", "cnn")


def test_an_array_may_be_non_contiguous_or_read_only(loaded, eager):
    transposed = images(4).transpose(0, 1, 3, 2)
    transposed.flags.writeable = False
    expected = eager(np.ascontiguousarray(transposed))
    np.testing.assert_allclose(loaded.run({"image": transposed})["logits"], expected, rtol=1e-5, atol=1e-5)


def test_threads_may_run_a_bundle_concurrently(loaded):
    expected = [loaded.run({"image": images(2, seed)})["logits"] for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda seed: loaded.run({"image": images(2, seed % 8)})["logits"], range(64)))
    assert all(np.array_equal(logits, expected[index % 8]) for index, logits in enumerate(results))


def test_one_thread_is_enough(built, eager):
    logits = packager.load(built.bundle, threads=1).run({"image": images(3)})["logits"]
    np.testing.assert_allclose(logits, eager(images(3)), rtol=1e-5, atol=1e-5)


# -- inputs that are refused ----------------------------------------------------------------


def refused(bundle, **inputs):
    with pytest.raises(DataDoesNotFit) as caught:
        bundle.run(inputs)
    return caught.value


def test_a_misspelt_input_is_refused_with_a_suggestion(loaded, golden):
    golden(render_error(refused(loaded, imgae=images(1))), "error[data-does-not-fit]", "inputs", "image", "imgae")


@pytest.mark.parametrize(
    ("inputs", "where", "facts"),
    [
        ({}, "inputs", ("image",)),
        ({"image": images(1), "mask": images(1)}, "inputs", ("image", "mask")),
        ({"image": images(1).astype(np.float64)}, "image", ("float64[1, 1, 8, 8]", "float32[batch, 1, 8, 8]")),
        ({"image": images(1)[0]}, "image", ("[1, 8, 8]", "[batch, 1, 8, 8]")),
        ({"image": images(1)[:, :, :7]}, "image", ("[batch, 1, 8, 8]", "8", "7")),
        ({"image": images(0)}, "image", ("0", "1", "16")),
        ({"image": images(17)}, "image", ("17", "1", "16")),
        ({"image": images(1).tolist()}, "image", ()),
        ({"image": torch.zeros(1, 1, 8, 8)}, "image", ()),
    ],
)
def test_inputs_that_do_not_fit_are_refused(loaded, inputs, where, facts, golden):
    error = refused(loaded, **inputs)
    assert error.where == where
    golden(error.why, *facts)


TWO = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, ids, x):
        return {"sum": self.layer(x) + ids, "mask": ids > 2}
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Build a bundle with an int64 and a float32 input, which share a dim without a max."""
    folder = tmp_path_factory.mktemp("two")
    inputs = {
        "ids": {"dtype": "int64", "shape": ["rows", 1], "range": [0, 5]},
        "x": {"dtype": "float32", "shape": ["rows", 4]},
    }
    return packager.build(project(folder, TWO, inputs=inputs), folder / "out").bundle


def test_a_dim_that_differs_between_inputs_is_refused(two, golden):
    bundle = packager.load(two)
    ids, x = np.zeros((2, 1), np.int64), np.zeros((3, 4), np.float32)
    golden(refused(bundle, ids=ids, x=x).why, "3", "2")
    golden(refused(bundle, ids=ids[:0], x=x[:0]).why, "0", "1")


def test_several_inputs_and_outputs_keep_their_names(two):
    ids, x = np.array([[1], [4]]), np.ones((2, 4), np.float32)
    outputs = packager.load(two)(x=x, ids=ids)
    assert list(outputs) == ["sum", "mask"]
    assert outputs["mask"].dtype == np.bool_
    assert outputs["mask"].tolist() == [[False], [True]]
    assert np.allclose(outputs["sum"][1] - outputs["sum"][0], 3.0)


# -- integrity ------------------------------------------------------------------------------


def test_a_changed_bundle_is_refused(bundle, golden):
    with (bundle / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    (bundle / "extra").touch()
    with pytest.raises(IntegrityFailed) as caught:
        packager.load(bundle, verify="all")
    golden(render_error(caught.value), "error[integrity-failed]", bundle, "model.onnx", "extra")


def test_a_changed_bundle_loads_only_without_verify(bundle):
    (bundle / "extra").touch()
    assert packager.load(bundle, verify=False).backend == "onnx"


def test_a_wrong_fingerprint_is_refused(bundle, built, golden):
    assert packager.load(bundle, fingerprint=built.fingerprint).fingerprint == built.fingerprint
    with pytest.raises(FingerprintWrong) as caught:
        packager.load(bundle, fingerprint=ANOTHER)
    golden(render_error(caught.value), "error[fingerprint-wrong]", bundle, ANOTHER, built.fingerprint)


def test_a_fingerprint_implies_verify(bundle, built):
    with (bundle / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityFailed):
        packager.load(bundle, fingerprint=built.fingerprint, verify=False)


# -- fallback -------------------------------------------------------------------------------


@pytest.fixture
def broken(bundle):
    """Return a bundle whose ONNX model does not load."""
    (bundle / "model.onnx").write_bytes(b"not a model")
    reseal(bundle)
    return bundle


def test_torchscript_is_the_fallback_and_a_warning_says_why(broken, eager, caplog):
    with caplog.at_level(logging.WARNING, logger="packager"):
        bundle = packager.load(broken, trust_program=True)
    assert bundle.backend == "torchscript"
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    mentions(message, "digits-cnn-1.0.0", "TorchScript", "onnxruntime", "model.onnx")
    outputs = bundle.run({"image": images(5)})
    assert list(outputs) == ["logits"]
    np.testing.assert_allclose(outputs["logits"], eager(images(5)), rtol=1e-5, atol=1e-5)
    assert refused(bundle, image=images(17)).where == "image"


def test_without_fallback_a_broken_onnx_model_is_refused(broken, golden):
    with pytest.raises(BackendUnavailable) as caught:
        packager.load(broken, fallback=False)
    golden(caught.value.message, broken)
    assert caught.value.why.startswith("onnxruntime: ")
    golden(caught.value.hint, "fallback=True")


def test_a_good_bundle_does_not_fall_back(built, caplog):
    assert packager.load(built.bundle, fallback=False).backend == "onnx"
    assert caplog.records == []


def test_two_broken_models_are_both_named(broken):
    (broken / "model.ts").write_bytes(b"not a model")
    reseal(broken)
    with pytest.raises(BackendUnavailable) as caught:
        packager.load(broken, trust_program=True)
    assert [line.partition(":")[0] for line in caught.value.why.splitlines()] == ["onnxruntime", "TorchScript"]


def test_a_fallback_without_torch_is_refused(broken, golden):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import packager\n"
        "from packager.errors import render_error\n"
        "try:\n"
        "    packager.load(sys.argv[1], trust_program=True)\n"
        "except packager.PackagerError as error:\n"
        "    print(render_error(error))\n"
    )
    process = python(code, broken)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    golden(lines[0], "error[backend-unavailable]", broken)
    mentions(lines[2], "TorchScript", "torch")
    assert lines[3] == "hint: pip install torch"


# -- archives -------------------------------------------------------------------------------


def zipped(bundle):
    archive.write_archive(bundle, bundle.with_name("net.zip"))
    return bundle.with_name("net.zip")


def test_an_archive_is_loaded_like_its_folder_and_leaves_nothing_unpacked(archived, built, loaded, temporary):
    bundle = packager.load(str(archived), fingerprint=built.fingerprint, selftest=True)
    assert os.listdir(temporary) == []
    assert bundle.path == archived
    assert (bundle.backend, bundle.fingerprint, bundle.config) == ("onnx", loaded.fingerprint, loaded.config)
    for count in (1, 16):
        assert np.array_equal(bundle(image=images(count))["logits"], loaded(image=images(count))["logits"])


def test_the_fallback_of_an_archive_runs_after_the_unpacked_folder_is_deleted(broken, eager, caplog, temporary):
    with caplog.at_level(logging.WARNING, logger="packager"):
        bundle = packager.load(zipped(broken), selftest=True, trust_program=True)
    assert bundle.backend == "torchscript"
    np.testing.assert_allclose(bundle(image=images(5))["logits"], eager(images(5)), rtol=1e-5, atol=1e-5)
    message = caplog.records[0].getMessage()
    mentions(message, "digits-cnn-1.0.0", "TorchScript", "onnxruntime", "model.onnx")


def test_external_weights_stay_loaded_after_the_unpacked_folder_is_deleted(bundle, loaded, temporary):
    import onnx

    model = onnx.load(bundle / "model.onnx")
    (bundle / "model.onnx").unlink()
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    config = json.loads((bundle / "config.json").read_text())
    config["artifacts"]["onnx"]["data"] = {"path": "model.onnx_data", "sha256": "0" * 64}
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    reloaded = packager.load(zipped(bundle), fallback=False)
    assert (bundle / "model.onnx_data").stat().st_size > 1000
    shutil.rmtree(bundle)
    for count in (1, 16):
        np.testing.assert_allclose(
            reloaded(image=images(count))["logits"], loaded(image=images(count))["logits"], rtol=1e-5, atol=1e-6
        )


def test_an_archive_of_a_changed_bundle_is_refused_under_its_own_name(bundle, temporary, golden):
    with (bundle / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    path = zipped(bundle)
    with pytest.raises(IntegrityFailed) as caught:
        packager.load(path)
    golden(render_error(caught.value), "error[integrity-failed]", path, "model.onnx")


def test_an_archive_of_a_different_bundle_is_refused_under_its_own_name(archived, temporary, golden):
    with pytest.raises(FingerprintWrong) as caught:
        packager.load(archived, fingerprint=ANOTHER)
    golden(caught.value.message, archived)


def test_an_archive_whose_models_are_both_broken_is_refused_under_its_own_name(broken, temporary, golden):
    (broken / "model.ts").write_bytes(b"not a model")
    reseal(broken)
    path = zipped(broken)
    with pytest.raises(BackendUnavailable) as caught:
        packager.load(path, trust_program=True)
    golden(caught.value.message, path)
    assert str(temporary) not in render_error(caught.value)


# -- selftest -------------------------------------------------------------------------------


def test_a_selftest_passes_on_either_backend(bundle):
    assert packager.load(bundle, selftest=True).backend == "onnx"
    (bundle / "model.onnx").write_bytes(b"not a model")
    reseal(bundle)
    assert packager.load(bundle, selftest=True, trust_program=True).backend == "torchscript"


def test_a_selftest_refuses_a_model_with_wrong_outputs(bundle, golden):
    import onnx

    model = onnx.load(bundle / "model.onnx")
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save(model, bundle / "model.onnx")
    reseal(bundle)
    assert packager.load(bundle).backend == "onnx"
    with pytest.raises(SelftestFailed) as caught:
        packager.load(bundle, selftest=True)
    golden(caught.value.message, bundle)
    assert caught.value.why.startswith("logits[")


def test_a_model_that_fails_its_selftest_takes_a_trusted_fallback_and_says_why(bundle, eager, caplog):
    import onnx

    model = onnx.load(bundle / "model.onnx")
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save(model, bundle / "model.onnx")
    reseal(bundle)
    with pytest.raises(SelftestFailed):
        packager.load(bundle, selftest=True, trust_program=True, fallback=False)
    loaded = packager.load(bundle, selftest=True, trust_program=True)
    assert loaded.backend == "torchscript"
    mentions(caplog.messages[-1], "self-test", "model.onnx", "logits[")
    np.testing.assert_allclose(loaded(image=images(2))["logits"], eager(images(2)), rtol=1e-5, atol=1e-5)


def test_a_selftest_refuses_malformed_evidence(bundle):
    (bundle / "evidence/golden.safetensors").write_bytes(b"")
    reseal(bundle)
    with pytest.raises(SelftestFailed) as caught:
        packager.load(bundle, selftest=True)
    assert caught.value.why.startswith("evidence: ")


def test_values_that_the_model_cannot_run_on_are_reported_with_the_cause(tmp_path, golden):
    table = LINEAR.replace("nn.Linear(4, 3)", "nn.Embedding(5, 3)")
    path = project(tmp_path / "p", table, inputs={"x": {"dtype": "int64", "shape": ["batch"], "range": [0, 5]}})
    bundle = packager.load(packager.build(path, tmp_path / "dist").bundle)
    with pytest.raises(InferenceFailed) as caught:
        bundle.run({"x": np.array([7])})
    assert caught.value.exit_status == 2
    golden(caught.value.message)
    mentions(caught.value.why, "idx=7", "[-5,4]")


def test_inputs_that_are_not_a_mapping_are_refused(bundle, golden):
    for given, kind in ((np.zeros((1, 4), np.float32), "ndarray"), ([1.0], "list")):
        with pytest.raises(DataDoesNotFit) as caught:
            packager.load(bundle).run(given)
        golden(caught.value.why, kind)
