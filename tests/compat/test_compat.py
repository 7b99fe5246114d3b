"""Bundles of every release, made by its make.py, are verified and loaded by this version."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import packager
from packager.bundle.packing import unpack_bundle
from packager.errors import BundleSchemaUnknown

HERE = Path(__file__).resolve().parent
ARCHIVES = sorted(HERE.glob("*/*.zip"))
NAMES = [path.relative_to(HERE).as_posix() for path in ARCHIVES]
FINGERPRINTS = json.loads((HERE / "fingerprints.json").read_text())
"""The fingerprints that the bundles had when they were made, by their paths."""


def test_no_bundle_of_a_release_was_changed_added_or_removed():
    assert sorted(FINGERPRINTS) == NAMES
    assert {name: packager.verify(HERE / name, parity=False).fingerprint for name in NAMES} == FINGERPRINTS


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_a_release_is_verified_with_its_program(name):
    report = packager.verify(HERE / name, trust_program=True)
    assert report.ok, report
    kinds = {path for path in zipfile.ZipFile(HERE / name).namelist() if path.startswith("model.")}
    backends = {"model.onnx": "onnx", "model.ts": "torchscript", "model.pt2": "torch-export"}
    passed = {backend for backend, verdict in report.parity.items() if verdict == "pass"}
    assert passed == {backends[path] for path in kinds - {"model.sig"}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_bundle_of_a_release_is_loaded_and_runs(tmp_path, name, form):
    path = HERE / name
    if form == "folder":
        assert unpack_bundle(path, tmp_path / "bundle", force=False) == FINGERPRINTS[name]
        path = tmp_path / "bundle"
    bundle = packager.load(path, fingerprint=FINGERPRINTS[name], selftest=True)
    (spec,) = bundle.inputs
    shape = [2 if isinstance(dim, str) else dim for dim in spec["shape"]]
    (output,) = bundle.run({spec["name"]: np.ones(shape, spec["dtype"])}).values()
    assert output.shape[0] == 2
    assert np.isfinite(output).all()


@pytest.mark.parametrize("key", sorted(HERE.glob("*/*.pem")), ids=lambda path: path.parent.name)
def test_the_signature_of_a_release_is_verified(key):
    report = packager.verify(key.parent / "torchscript.zip", public_key=key)
    assert report.ok
    assert report.signature is not None and report.signature.verdict == "pass"
    assert packager.load(key.parent / "torchscript.zip", public_key=key).backend == "onnx"


def test_a_bundle_of_a_newer_schema_says_so(tmp_path):
    from projects import reseal

    unpack_bundle(ARCHIVES[0], tmp_path / "bundle", force=False)
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    (tmp_path / "bundle/config.json").write_text(json.dumps({"schema": 2, "fields": config}))
    reseal(tmp_path / "bundle", documents=False)
    with pytest.raises(BundleSchemaUnknown, match="2"):
        packager.load(tmp_path / "bundle")
