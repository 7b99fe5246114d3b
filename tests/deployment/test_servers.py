"""Exports run by what they are made for, on loopback. docs/export.md says what was checked, and with which versions."""

import concurrent.futures
import json
import shutil
import sysconfig
import tempfile
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
import servers
from exported_nets import SCORES, SCORES_INPUTS
from projects import project, with_external_weights
from servers import BIN, HOST, free_port, get, post, run, server

import packager
from packager.deployment.exporter import export_bundle

HERE = Path(__file__).parent
PURELIB = Path(sysconfig.get_path("purelib"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BIN.is_dir(), reason="make slow installs the servers of tests/deployment.txt"),
]

OVER_TIME = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, scale):
        y = self.layer(x).softmax(0) * scale
        return {"y": y, "total": y.sum()}
"""

TINY_BERT = """
import torch
from torch import nn
from transformers import BertConfig, BertModel


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = BertModel(BertConfig.from_json_file(__file__.replace("model.py", "hub/config.json")))

    def forward(self, input_ids, attention_mask):
        return {"last_hidden_state": self.bert(input_ids, attention_mask=attention_mask).last_hidden_state}
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Return a bundle with two inputs, and outputs of every shape that a batch may have."""
    folder = tmp_path_factory.mktemp("scores")
    manifest = project(folder, SCORES, inputs=SCORES_INPUTS, name="scores", dims={"batch": {"min": 1, "max": 6}})
    return packager.build(manifest, folder / "dist").bundle


@pytest.fixture(scope="module")
def over_time(tmp_path_factory):
    """Return a bundle with a named dim in front that is no batch, and scalars."""
    folder = tmp_path_factory.mktemp("time")
    inputs = {"x": {"dtype": "float32", "shape": ["time", 4]}, "scale": {"dtype": "float32", "shape": []}}
    return packager.build(project(folder, OVER_TIME, inputs=inputs, name="over-time"), folder / "dist").bundle


def arrays(rows, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "x": generator.standard_normal((rows, 4)).astype(np.float32),
        "mask": generator.integers(0, 2, (rows, 4)),
    }


def as_lists(values):
    return {name: array.tolist() for name, array in values.items()}


# -- docker ---------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say_about_the_dockerfile(built, tmp_path):
    export_bundle(built.bundle, "docker", tmp_path / "out")
    assert run("hadolint", "--no-color", "--failure-threshold", "style", tmp_path / "out/Dockerfile") == ""
    dockerfile = (tmp_path / "out/Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(dockerfile.replace("WORKDIR /srv", "RUN cd /srv"))
    with pytest.raises(AssertionError, match="DL3003"):
        run("hadolint", tmp_path / "Dockerfile")


# -- triton ---------------------------------------------------------------------------------

PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


def test_tritons_protobuf_reads_the_config_as_it_was_meant(scores, tmp_path):
    fingerprint = export_bundle(scores, "triton", tmp_path / "out").fingerprint
    assert json.loads(run("python", "-c", PARSE, tmp_path / "out/scores/config.pbtxt")) == {
        "name": "scores",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 6,
        "dynamic_batching": {},
        "input": [
            {"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]},
            {"name": "mask", "data_type": "TYPE_INT64", "dims": ["4"]},
        ],
        "output": [
            {"name": "classes", "data_type": "TYPE_FP32", "dims": ["3"]},
            {"name": "score", "data_type": "TYPE_FP32", "dims": ["1"], "reshape": {}},
            {"name": "sign", "data_type": "TYPE_BOOL", "dims": ["3"]},
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "parameters": {
            "bundle": {"string_value": "scores-1.0.0"},
            "version": {"string_value": "1.0.0"},
            "fingerprint": {"string_value": fingerprint},
        },
    }


@pytest.fixture(scope="module")
def triton(scores, over_time, built, tmp_path_factory):
    """Serve the repositories of three bundles with a Triton, and return its address."""
    if find_library(f"python{sysconfig.get_python_version()}") is None:
        pytest.skip("the Python backend of Triton is linked with libpython, which this machine lacks")
    folder = tmp_path_factory.mktemp("triton")
    wheel = next((servers.ENVIRONMENT / "lib").glob("python*/site-packages"))
    shutil.copytree(wheel / "pytriton/tritonserver/backends/python", folder / "backends/python")
    stubs = wheel / "pytriton/tritonserver/python_backend_stubs"
    stub = stubs / sysconfig.get_python_version() / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends/python")
    (folder / "backends/onnxruntime").mkdir()
    backend = (HERE / "triton_backend.py").read_text().replace("<site-packages>", str(PURELIB))
    (folder / "backends/onnxruntime/model.py").write_text(backend)
    port = free_port()
    command = [wheel / "pytriton/tritonserver/bin/tritonserver", "--backend-directory", folder / "backends"]
    command += ["--http-address", HOST, "--http-port", port, "--allow-grpc", "false", "--allow-metrics", "false"]
    command += ["--disable-auto-complete-config"]
    external = with_external_weights(built.bundle, folder / "external")
    for name, bundle in (("scores", scores), ("time", over_time), ("digits", external)):
        export_bundle(bundle, "triton", folder / name)
        command += ["--model-repository", folder / name]
    for file in (command[0], folder / "backends/python/triton_python_backend_stub"):
        file.chmod(0o755)
    url, libraries = f"http://{HOST}:{port}/v2", wheel / "nvidia_pytriton.libs"
    with server(command, f"{url}/health/ready", folder / "log", LD_LIBRARY_PATH=libraries):
        yield f"{url}/models"


def infer(url, inputs):
    """Send arrays to a model of Triton, and return the status, and arrays or the error."""
    datatypes = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
    tensors = [
        {
            "name": name,
            "shape": array.shape or (1,),
            "datatype": datatypes[str(array.dtype)],
            "data": array.ravel().tolist(),
        }
        for name, array in inputs.items()
    ]
    status, body = post(f"{url}/infer", {"inputs": tensors})
    if status != 200:
        return status, body["error"]
    names = {datatype: dtype for dtype, datatype in datatypes.items()}
    return status, {
        output["name"]: np.array(output["data"], names[output["datatype"]]).reshape(output["shape"])
        for output in body["outputs"]
    }


def test_a_real_triton_serves_the_repository_with_the_outputs_of_the_bundle(triton, scores):
    record = get(f"{triton}/scores")
    assert [tensor["shape"] for tensor in record["inputs"]] == [[-1, 4], [-1, 4]]
    assert [tensor["shape"] for tensor in record["outputs"]] == [[-1, 3], [-1, 1], [-1, 3]]
    bundle = packager.load(scores)
    for rows in (1, 2, 6):
        status, outputs = infer(f"{triton}/scores", arrays(rows))
        assert status == 200, outputs
        for name, expected in bundle.run(arrays(rows)).items():
            np.testing.assert_array_equal(outputs[name].reshape(expected.shape), expected)


def test_a_real_triton_holds_the_limit_of_the_batch(triton):
    status, error = infer(f"{triton}/scores", arrays(7))
    assert status == 400 and "batch-size must be <= 6" in error


def test_a_real_triton_joins_requests_without_mixing_their_answers(triton, scores):
    bundle = packager.load(scores)
    requests = [arrays(1 + number % 3, seed=number) for number in range(60)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda inputs: infer(f"{triton}/scores", inputs), requests))
    for inputs, (status, outputs) in zip(requests, answers, strict=True):
        assert status == 200, outputs
        for name, expected in bundle.run(inputs).items():
            np.testing.assert_allclose(outputs[name].reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    statistics = get(f"{triton}/scores/stats")["model_stats"][0]
    assert statistics["inference_count"] >= 120
    assert max(batch["batch_size"] for batch in statistics["batch_stats"]) <= 6


def test_a_real_triton_takes_whole_shapes_where_there_is_no_batch(triton, over_time):
    inputs = {"x": arrays(5)["x"], "scale": np.array(2.0, np.float32)}
    status, outputs = infer(f"{triton}/over-time", inputs)
    assert status == 200, outputs
    expected = packager.load(over_time).run(inputs)
    np.testing.assert_array_equal(outputs["y"], expected["y"])
    np.testing.assert_array_equal(outputs["total"], expected["total"].reshape(1))


def test_a_real_triton_finds_external_weights(triton, built):
    inputs = {"image": np.random.default_rng(0).random((2, 1, 8, 8), np.float32)}
    status, outputs = infer(f"{triton}/digits-cnn", inputs)
    assert status == 200, outputs
    np.testing.assert_array_equal(outputs["logits"], packager.load(built.bundle).run(inputs)["logits"])


# -- bentoml and ray serve ------------------------------------------------------------------


@pytest.fixture(scope="module")
def bentoml(scores, tmp_path_factory):
    """Start the service with `bentoml serve`, and return the URL of its API."""
    folder = tmp_path_factory.mktemp("bentoml")
    export_bundle(scores, "bentoml", folder / "out")
    port = free_port()
    command = [BIN / "bentoml", "serve", "--host", HOST, "--port", port]
    with server(command, f"http://{HOST}:{port}/readyz", folder / "log", cwd=folder / "out", BENTOML_HOME=folder):
        yield f"http://{HOST}:{port}/predict"


@pytest.fixture(scope="module")
def ray(scores, tmp_path_factory):
    """Run the application of Ray Serve, and return its URL."""
    folder = tmp_path_factory.mktemp("ray")
    export_bundle(scores, "ray-serve", folder / "out")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as temporary:  # sockets need short paths
        command = [BIN / "python", HERE / "ray_driver.py", port, temporary]
        url = f"http://{HOST}:{port}/"
        with server(command, f"{url}-/healthz", folder / "log", cwd=folder / "out", seconds=400, HOME=folder):
            yield url


UNFIT = {
    "a fraction": {"mask": [[0.5, 1, 1, 1]]},
    "text": {"mask": [["1", "1", "1", "1"]]},
    "too large": {"mask": [[2**70, 1, 1, 1]]},
    "a wrong shape": {"mask": [[1, 1, 1]]},
    "ragged": {"x": [[1, 2, 3, 4], [5]]},
    "empty": {"x": []},
    "null": {"x": None},
    "too many rows": {"x": 7 * [[1, 2, 3, 4]], "mask": 7 * [[1, 1, 1, 1]]},
}
NO_REQUESTS = {"cut": b"{", "a list": b"[]", "binary": b"\xff", "an input is missing": b'{"x": [[1, 2, 3, 4]]}'}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", ["bentoml", "ray"])  # one test: another process would start them once more
def test_a_service_answers_what_the_bundle_computes_and_refuses_what_does_not_fit(scores, framework, request):
    url, bundle = request.getfixturevalue(framework), packager.load(scores)
    for rows in (1, 3):
        status, outputs = post(url, as_lists(arrays(rows)))
        assert status == 200, outputs
        expected = bundle.run(arrays(rows))
        assert list(outputs) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(np.array(outputs[name], array.dtype), array)
    answers = {kind: post(url, {**as_lists(arrays(1)), **change}) for kind, change in UNFIT.items()}
    answers |= {kind: post(url, body) for kind, body in NO_REQUESTS.items()}
    assert {kind: status for kind, (status, _) in answers.items()} == dict.fromkeys(answers, 400)
    assert [kind for kind, (_, body) in answers.items() if "error" not in json.dumps(body)] == []
    assert post(url, as_lists(arrays(3)))[1] == outputs


def test_bentoml_builds_a_bento_that_has_the_whole_bundle(scores, tmp_path):
    export_bundle(scores, "bentoml", tmp_path / "out")
    environment = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True", "PATH": f"{BIN}:/usr/bin:/bin"}
    run("bentoml", "build", "--output", "tag", cwd=tmp_path / "out", env=environment)
    (bento,) = (tmp_path / "bentos/scores").glob("*/src")
    assert packager.verify(bento / "bundle", parity=False).ok


# -- hugging face ---------------------------------------------------------------------------

OPTIMUM = """
import sys
import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    tokens = AutoTokenizer.from_pretrained(folder)(["a b c", "c"], padding=True, return_tensors="np")
    inputs = {name: np.asarray(tokens[name]) for name in ("input_ids", "attention_mask")}
    outputs = ORTModelForFeatureExtraction.from_pretrained(folder)(**inputs)
    np.savez(f"{folder}.npz", output=outputs.last_hidden_state, **inputs)
"""


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """Return a bundle of a BERT with random weights, and with config and tokenizer among its assets."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig

    folder = tmp_path_factory.mktemp("bert")
    BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, architectures=["BertModel"],
    ).save_pretrained(folder / "hub")  # fmt: skip
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "hub/tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "hub/tokenizer_config.json").write_text(json.dumps(settings))
    manifest = project(
        folder,
        TINY_BERT,
        inputs={
            "input_ids": {"dtype": "int64", "shape": ["batch", "sequence"], "range": [0, 8]},
            "attention_mask": {"dtype": "int64", "shape": ["batch", "sequence"], "range": [0, 2]},
        },
        dims={"batch": {"min": 1, "max": 4}, "sequence": {"min": 1, "max": 12}},
        assets=[f"hub/{path.name}" for path in sorted((folder / "hub").iterdir())],
        parity={"effort": "quick"},
    )
    return packager.build(manifest, folder / "dist").bundle


def test_optimum_loads_the_folder_and_computes_what_the_bundle_does(tiny_bert, tmp_path):
    external = with_external_weights(tiny_bert, tmp_path / "bundle", 1024)
    for folder, bundle in (("inside", tiny_bert), ("external", external)):
        export_bundle(bundle, "huggingface", tmp_path / folder)
        assert (tmp_path / folder / "onnx/model.onnx_data").exists() == (folder == "external")
    run("python", "-c", OPTIMUM, tmp_path / "inside", tmp_path / "external")
    for folder in ("inside", "external"):
        answer = dict(np.load(tmp_path / f"{folder}.npz"))
        output = answer.pop("output")
        assert answer["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
        np.testing.assert_array_equal(output, packager.load(tiny_bert).run(answer)["last_hidden_state"])
