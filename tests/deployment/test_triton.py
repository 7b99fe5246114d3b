"""The model repository for Triton: config.pbtxt, and above all its batch dimension.

Triton's own parser and server read it in test_servers.py.
"""

import json
import re

import numpy as np
import onnxruntime
import pytest
from exported_nets import SCORES, SCORES_INPUTS
from projects import project, reseal, with_external_weights

import packager
from packager.deployment.exporter import export_bundle

OVER_TIME = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).softmax(0)
"""

SCALED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, scale):
        y = self.layer(x) * scale
        return {"y": y, "total": y.sum()}
"""


def export(folder, source, **sections):
    """Build a project, export it for Triton, and return the text of config.pbtxt, the result and the bundle."""
    bundle = packager.build(project(folder / "project", source, **sections), folder / "dist").bundle
    result = export_bundle(bundle, "triton", folder / "out")
    return (folder / "out/net/config.pbtxt").read_text(), result, bundle


def tensors(text, kind):
    """Return the blocks of the inputs or outputs in config.pbtxt, with single spaces."""
    return [" ".join(block.split()) for block in re.findall(rf"^{kind} \{{\n(.*?)^\}}", text, re.DOTALL | re.MULTILINE)]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return export(
        tmp_path_factory.mktemp("scores"),
        SCORES,
        inputs=SCORES_INPUTS,
        dims={"batch": {"min": 1, "max": 6}},
    )


@pytest.fixture(scope="module")
def over_time(tmp_path_factory):
    return export(tmp_path_factory.mktemp("time"), OVER_TIME, inputs={"x": {"dtype": "float32", "shape": ["time", 4]}})


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    inputs = {"x": {"dtype": "float32", "shape": ["n", 4]}, "scale": {"dtype": "float32", "shape": []}}
    return export(tmp_path_factory.mktemp("scaled"), SCALED, inputs=inputs)


def test_a_batch_is_left_out_of_dims_and_bounded_by_the_manifest(scores):
    text, result, _ = scores
    assert "\nmax_batch_size: 6\n" in text and "\ndynamic_batching { }\n" in text
    assert result.notes == ()
    assert tensors(text, "input") == [
        'name: "x" data_type: TYPE_FP32 dims: [4]',
        'name: "mask" data_type: TYPE_INT64 dims: [4]',
    ]
    assert tensors(text, "output") == [
        'name: "classes" data_type: TYPE_FP32 dims: [3]',
        'name: "score" data_type: TYPE_FP32 dims: [1] reshape { shape: [] }',
        'name: "sign" data_type: TYPE_BOOL dims: [3]',
    ]


def test_without_a_max_the_batch_has_the_documented_limit(built, bundle, tmp_path):
    config = json.loads((bundle / "config.json").read_text())
    config["dims"]["batch"]["max"] = None
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    export_bundle(bundle, "triton", tmp_path / "out")
    assert "\nmax_batch_size: 32\n" in (tmp_path / "out/digits-cnn/config.pbtxt").read_text()


def test_rows_that_depend_on_each_other_are_not_batched(over_time):
    text, result, _ = over_time
    assert "\nmax_batch_size: 0\n" in text and "dynamic_batching" not in text
    assert tensors(text, "input") == ['name: "x" data_type: TYPE_FP32 dims: [-1, 4]']
    assert tensors(text, "output") == ['name: "output_0" data_type: TYPE_FP32 dims: [-1, 3]']
    assert len(result.notes) == 1 and "rows of time depend on each other" in result.notes[0]
    assert "# Zero, as rows of time depend on each other" in text


def test_a_scalar_has_one_dim_of_one(scaled):
    text, result, _ = scaled
    assert "\nmax_batch_size: 0\n" in text and len(result.notes) == 1
    assert tensors(text, "input") == [
        'name: "x" data_type: TYPE_FP32 dims: [-1, 4]',
        'name: "scale" data_type: TYPE_FP32 dims: [1]',
    ]
    assert tensors(text, "output")[1] == 'name: "total" data_type: TYPE_FP32 dims: [1]'


def test_config_names_the_bundle_and_runs_where_parity_was_proven(scores):
    text, result, _ = scores
    assert text.startswith(f"# net-1.0.0, {result.fingerprint}")
    assert '\nname: "net"\nplatform: "onnxruntime_onnx"\nbackend: "onnxruntime"\n' in text
    assert "\ninstance_group [{ kind: KIND_CPU count: 1 }]\n" in text
    for key, value in {"bundle": "net-1.0.0", "version": "1.0.0", "fingerprint": result.fingerprint}.items():
        assert f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' in text


@pytest.mark.parametrize("providers", [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider"]])
def test_a_bundle_for_a_gpu_is_not_tied_to_the_cpu(bundle, tmp_path, providers):
    config = json.loads((bundle / "config.json").read_text())
    config["providers"] = providers
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    export_bundle(bundle, "triton", tmp_path / "out")
    assert "instance_group" not in (tmp_path / "out/digits-cnn/config.pbtxt").read_text()


@pytest.mark.parametrize("name", ["scores", "over_time", "scaled"])
def test_the_dims_are_those_that_the_onnxruntime_backend_asks_for(name, request):
    """Triton's backend compares them in CompareDimsSupported: those of outputs exactly, those of inputs if fixed."""
    text, _, bundle = request.getfixturevalue(name)
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    is_batched = "max_batch_size: 0" not in text
    for kind, declared in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for block, tensor in zip(tensors(text, kind), declared, strict=True):
            shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
            dims = json.loads(re.search(r"dims: (\[.*?\])", block)[1])
            dims = [] if "reshape { shape: [] }" in block else dims
            expected = [-1, *dims] if is_batched else dims
            assert shape == expected or (shape == [] and expected == [1])


def test_external_weights_lie_beside_the_model_under_their_own_name(built, tmp_path):
    bundle = with_external_weights(built.bundle, tmp_path / "external")
    for target, folder in (("triton", "digits-cnn/1"), ("kserve", "model-repository/digits-cnn/1")):
        export_bundle(bundle, target, tmp_path / target)
        session = onnxruntime.InferenceSession(tmp_path / target / folder / "model.onnx")
        logits = session.run(None, {"image": np.zeros((1, 1, 8, 8), np.float32)})[0]
        assert np.array_equal(logits, packager.load(bundle)(image=np.zeros((1, 1, 8, 8), np.float32))["logits"])


# -- which dim is a batch -------------------------------------------------------------------
