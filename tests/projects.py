"""Small projects for tests: a folder with model.py, a checkpoint and package.yaml."""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums, list_files, regular_file_digest
from packager.bundle.records import BuildRecord, BundleConfig, ParityRecord
from packager.provenance.documents import make_documents

ROOT = Path(__file__).parent.parent
IMAGE = {"image": {"dtype": "float32", "shape": ["batch", 1, 8, 8], "range": [0, 1]}}
FLOATS = {"x": {"dtype": "float32", "shape": ["batch", 4]}}

ANOTHER = "h1:" + 43 * "A" + "="  # a fingerprint that no bundle here has

LINEAR = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)
"""

SAVED_AS_PROGRAM = (
    LINEAR.replace("self.layer(x)", "Doubled.apply(self.layer(x))")
    + """

class Doubled(torch.autograd.Function):  # TorchScript cannot save a Python operator
    @staticmethod
    def forward(context, x):
        return x * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 2
"""
)

RECURRENT = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x[:, None])[0]
"""


def project(folder, source=LINEAR, *, inputs=FLOATS, entry="model.py:Net", kwargs=None, state=None, **sections):
    """Write a project into `folder` and return its manifest's path.

    The checkpoint is `state`, or the state dict of the entry built under seed 0; `sections` are those of
    the manifest.
    """
    import torch  # not for the tests that need no project

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(source)
    if state is None:
        torch.manual_seed(0)
        namespace = runpy.run_path(str(folder / "model.py"))
        state = namespace[entry.rpartition(":")[2]](**(kwargs or {})).state_dict()
    torch.save(state, folder / "best.pt")
    return manifest(folder, inputs=inputs, entry=entry, kwargs=kwargs, **sections)


def manifest(folder, *, inputs=FLOATS, entry="model.py:Net", kwargs=None, **sections):
    """Write package.yaml alone."""
    document = {
        "schema": 1,
        "name": "net",
        "version": "1.0.0",
        "model": {"entry": entry, **({"kwargs": kwargs} if kwargs else {})},
        "checkpoint": {"path": "best.pt"},
        "inputs": inputs,
        **sections,
    }
    path = folder / "package.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def digits(folder, **sections):
    """examples/digits with a narrow net of random weights."""
    source = (ROOT / "examples/digits/model.py").read_text()
    kwargs = {"classes": 10, "width": 4}
    (folder / "runs").mkdir(parents=True)
    shutil.copy(ROOT / "examples/digits/labels.txt", folder)
    settings = {"name": "digits-cnn", "dims": {"batch": {"min": 1, "max": 16}}, "outputs": ["logits"]}
    settings["assets"] = ["labels.txt"]
    return project(folder, source, inputs=IMAGE, entry="model.py:DigitsCNN", kwargs=kwargs, **{**settings, **sections})


RESEALED = set()
"""The fingerprints of bundles that a test has tampered with, and sealed itself."""


def reseal(bundle, *, documents=True):
    """Make SHA256SUMS and FINGERPRINT those of the files as they are now; returns the fingerprint.

    With `documents`, the standard documents say what the records say now, unless the records are malformed.
    """
    digests = {path: regular_file_digest(bundle / path) for path in list_files(bundle)}
    if documents:
        digests |= write_documents(bundle, digests)
    text = format_sums(digests)
    (bundle / layout.SUMS).write_text(text)
    (bundle / layout.FINGERPRINT).write_text(compute_fingerprint(text) + "\n")
    RESEALED.add(compute_fingerprint(text))
    return compute_fingerprint(text)


def with_external_weights(bundle, target, size_threshold=0):
    """Copy a bundle and move the weights of its ONNX model to model.onnx_data, the name of Hugging Face's loaders."""
    import onnx  # not for the tests that need no project

    import packager
    from packager.common.hashing import sha256_file

    copy = Path(shutil.copytree(bundle, target))
    model = onnx.load(copy / "model.onnx")
    (copy / "model.onnx").unlink()
    onnx.save(
        model,
        copy / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=size_threshold,
    )
    config = json.loads((copy / "config.json").read_text())
    artifact = config["artifacts"]["onnx"]
    artifact["sha256"] = sha256_file(copy / "model.onnx")
    artifact["data"] = {"path": "model.onnx_data", "sha256": sha256_file(copy / "model.onnx_data")}
    (copy / "config.json").write_text(json.dumps(config))
    reseal(copy)
    assert packager.verify(copy, parity=False).ok
    return copy


def write_documents(bundle, digests):
    """Write the standard documents of a bundle anew; return their digests, or none if the records are malformed."""
    models = {layout.CONFIG: BundleConfig, layout.PARITY: ParityRecord, layout.BUILD: BuildRecord}
    try:
        read = [model.model_validate_json((bundle / path).read_bytes()) for path, model in models.items()]
        documents = make_documents(*read, digests)
    except (OSError, ValueError, KeyError):
        return {}
    for path, content in documents.items():
        (bundle / path).write_bytes(content)
    return {path: hashlib.sha256(content).hexdigest() for path, content in documents.items()}


def update_digests(bundle):
    """Update config.json to the current digests of the artifacts, and reseal the bundle; returns the fingerprint."""
    config = json.loads((bundle / layout.CONFIG).read_text())
    for artifact in config["artifacts"].values():
        for file in filter(None, (artifact, (artifact or {}).get("data"))):
            file["sha256"] = regular_file_digest(bundle / file["path"])
    (bundle / layout.CONFIG).write_text(json.dumps(config))
    return reseal(bundle)


def package(*arguments, cwd=None, env=None):
    """Run the command `package` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "packager", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=env
    )


def environment_without_torch(folder):
    """Return an environment in which Python and the processes that packager starts cannot import torch."""
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def python(code, *arguments, cwd=None, env=None):
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=env
    )


def minimal_config(**fields):
    """Return the bytes of a config.json without a model that is valid."""
    config = {
        "schema": 1, "name": "net", "version": "1.0.0", "description": "", "license": None, "authors": [],
        "inputs": [], "outputs": [], "dims": {}, "artifacts": {"onnx": None, "torchscript": None}, "providers": [],
        "assets": [],
        "source": {**dict.fromkeys(["manifest_sha256", "checkpoint_sha256", "code_sha256"], "0" * 64),
                   "architecture": "Net", "parameters": 0, "toolchain": {}},
        "parity": {"onnx": "not-checked", "torchscript": "not-checked"}, "metadata": {}, **fields,
    }  # fmt: skip
    return json.dumps(config, separators=(",", ":")).encode()
