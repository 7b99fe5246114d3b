"""A program in a bundle runs only where the bundle is trusted. The bundle here is an attacker's, with a valid seal."""

import json

import numpy as np
import pki
import pytest
import torch
from projects import package, update_digests

import packager
from packager.errors import BackendUnavailable, ProgramNotTrusted, SignatureWrong, render_error

PRECIOUS = b"the user's own file"


class Overwrite(torch.nn.Module):
    """What TorchScript allows: write to any file of the user, and return what is expected."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.path, True, 8, dtype=torch.uint8).fill_(88)
        return torch.zeros([image.size(0), 10]) + 0.0 * written.sum()  # or else it would be optimized away


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious.txt"
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture
def hostile(bundle, precious):
    """Return a bundle with a program that overwrites a file, and an ONNX model that works."""
    torch.jit.script(Overwrite(str(precious))).save(str(bundle / "model.ts"))
    update_digests(bundle)
    return bundle


@pytest.fixture
def cornered(hostile):
    """Return that bundle with an ONNX model that does not load, so that the program is all that is left."""
    (hostile / "model.onnx").write_bytes(b"not a model")
    update_digests(hostile)
    return hostile


def test_verify_runs_no_program_and_says_why(hostile, precious, golden):
    report = packager.verify(hostile)
    assert precious.read_bytes() == PRECIOUS
    assert report.ok
    assert report.parity == {"onnx": "pass", "torchscript": "not-checked"}
    (note,) = report.notes
    golden(note, "--fingerprint", "--trust-program")


def test_the_command_verify_runs_no_program_and_ends_with_0(hostile, precious):
    done = package("verify", hostile)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ok")
    assert precious.read_bytes() == PRECIOUS


@pytest.mark.parametrize("options", [{}, {"selftest": True}, {"verify": False}])
def test_load_refuses_to_fall_back_to_a_program(cornered, precious, options, golden):
    with pytest.raises(ProgramNotTrusted) as caught:
        packager.load(cornered, **options)
    assert precious.read_bytes() == PRECIOUS
    assert caught.value.exit_status == 2
    golden(render_error(caught.value), "error[program-not-trusted]", cornered, "model.ts", "model.onnx", "onnxruntime")


def test_run_refuses_to_fall_back_to_a_program(cornered, precious, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    done = package("run", cornered, "--input", tmp_path / "x.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[program-not-trusted]")
    assert precious.read_bytes() == PRECIOUS


def test_a_program_without_an_onnx_model_is_refused_like_any_other(bundle, precious):
    torch.jit.script(Overwrite(str(precious))).save(str(bundle / "model.ts"))
    (bundle / "model.onnx").unlink()
    config = json.loads((bundle / "config.json").read_text())
    config["artifacts"]["onnx"] = None
    (bundle / "config.json").write_text(json.dumps(config))
    update_digests(bundle)
    with pytest.raises(ProgramNotTrusted) as caught:
        packager.load(bundle)
    assert caught.value.why.splitlines()[0] == "the bundle has no ONNX model"
    assert precious.read_bytes() == PRECIOUS


@pytest.mark.parametrize("how", ["pinned", "trusted by name"])
def test_a_trusted_program_is_run_by_verify_load_and_run(cornered, precious, tmp_path, how):
    fingerprint = update_digests(cornered)
    trust = {"fingerprint": fingerprint} if how == "pinned" else {"trust_program": True}
    option = ["--fingerprint", fingerprint] if how == "pinned" else ["--trust-program"]

    bundle = packager.load(cornered, **trust)
    assert bundle.backend == "torchscript"
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    done = package("run", cornered, "--input", tmp_path / "x.npz", *option)
    assert done.returncode == 0, done.stderr
    assert precious.read_bytes() == 8 * b"X" + PRECIOUS[8:]


@pytest.mark.parametrize("how", ["pinned", "trusted by name"])
def test_verify_runs_the_program_of_a_trusted_bundle(hostile, precious, how):
    fingerprint = update_digests(hostile)
    report = packager.verify(hostile, **({"fingerprint": fingerprint} if how == "pinned" else {"trust_program": True}))
    assert report.parity == {"onnx": "pass", "torchscript": "fail"}  # it returns zeros
    assert precious.read_bytes() == 8 * b"X" + PRECIOUS[8:]


def test_load_runs_the_program_of_a_bundle_whose_signer_was_asked_for(cornered, precious, tmp_path):
    private, public = pki.write_key(tmp_path)
    packager.sign(cornered, key=private)
    with pytest.raises(ProgramNotTrusted):
        packager.load(cornered)  # a signature that nobody checked pins nothing
    bundle = packager.load(cornered, public_key=public, verify=False)
    assert bundle.backend == "torchscript"
    bundle.run({"image": np.zeros((2, 1, 8, 8), np.float32)})
    assert precious.read_bytes() == 8 * b"X" + PRECIOUS[8:]


@pytest.mark.parametrize("how", ["key", "certificate"])
def test_verify_runs_the_program_of_a_bundle_whose_signer_was_asked_for(hostile, precious, tmp_path, how):
    authorities = pki.Authorities(tmp_path)
    private, public = pki.write_key(tmp_path)
    if how == "key":
        packager.sign(hostile, key=private)
        signer = {"public_key": public}
    else:
        certificates = [authorities.certify(), authorities.intermediate_file]
        packager.sign(hostile, key=authorities.key_file, certificates=certificates)
        signer = {"certificate_chain": authorities.root_file}
    assert packager.verify(hostile).parity == {"onnx": "pass", "torchscript": "not-checked"}
    assert precious.read_bytes() == PRECIOUS
    assert packager.verify(hostile, **signer).parity == {"onnx": "pass", "torchscript": "fail"}  # it returns zeros
    assert precious.read_bytes() == 8 * b"X" + PRECIOUS[8:]


def test_no_program_of_a_bundle_is_run_that_someone_else_signed(cornered, precious, tmp_path):
    (tmp_path / "other").mkdir()
    packager.sign(cornered, key=pki.write_key(tmp_path / "other")[0])
    fingerprint, public = update_digests(cornered), pki.write_key(tmp_path)[1]
    for trust in ({}, {"fingerprint": fingerprint}, {"trust_program": True}):
        report = packager.verify(cornered, public_key=public, **trust)
        assert report.parity == {"onnx": "not-checked", "torchscript": "not-checked"}
        with pytest.raises(SignatureWrong):
            packager.load(cornered, public_key=public, **trust)
    assert precious.read_bytes() == PRECIOUS


def test_trust_does_not_override_that_no_fallback_is_wanted(cornered, precious):
    with pytest.raises(BackendUnavailable):
        packager.load(cornered, fallback=False, trust_program=True)
    assert precious.read_bytes() == PRECIOUS
