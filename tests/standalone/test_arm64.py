"""The executable for arm64, run by qemu-user on onnxruntime's wheel and Debian's libraries for arm64."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from userlands import DOWNLOADS, make_root, need

import packager
from packager.errors import RunnerUnavailable
from packager.standalone.assemble import make_standalone
from packager.standalone.runners import read_runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# qemu shows the host's own /proc/cpuinfo, from which the library for arm64 makes a null pointer. A file of the sysroot
# goes before that of the host.
PROCESSOR = """processor\t: {}
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.fixture(scope="module")
def wheel():
    """Return the path of onnxruntime's wheel for arm64, downloaded once."""
    version, folder = onnxruntime.__version__, DOWNLOADS / "wheels"
    if not list(folder.glob(f"onnxruntime-{version}-*aarch64.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        platform = ["--platform", "manylinux_2_28_aarch64", "--dest", folder]
        subprocess.run([*command, *platform, f"onnxruntime=={version}"], check=True)
    return next(folder.glob(f"onnxruntime-{version}-*aarch64.whl"))


@pytest.fixture(scope="module")
def ask(built, wheel, tmp_path_factory):
    """Return a function that runs the executable for arm64; it returns its status, and what it printed."""
    need(QEMU, "needs qemu-aarch64: apt-get install qemu-user-static")
    try:
        read_runner("linux-arm64")
    except RunnerUnavailable as error:
        need(False, error.why)
    folder = tmp_path_factory.mktemp("arm64")
    root = make_root(folder / "root", "stable", "arm64")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(PROCESSOR.format(number) for number in range(os.cpu_count())))
    target = folder / "digits-cnn"
    make_standalone(built.bundle, target, target="linux-arm64", onnxruntime_wheel=wheel)

    def run(*arguments):
        command = [QEMU, "-L", root, target, *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.returncode, answer.stdout or answer.stderr

    return run


def test_the_executable_for_arm64_describes_itself(ask, built):
    status, text = ask("info", "--json")
    assert status == 0, text
    assert json.loads(text)["fingerprint"] == built.fingerprint


def test_parity_holds_on_arm64(ask):
    status, text = ask("verify", "--json")
    assert status == 0, text
    report = json.loads(text)
    assert report["ok"] and report["parity"]["onnx"] == "pass"


def test_a_prediction_on_arm64_is_that_of_this_machine(ask, built, tmp_path):
    image = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.savez(tmp_path / "x.npz", image=image)
    status, text = ask("run", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert status == 0, text
    expected = packager.load(built.bundle).run({"image": image})
    with np.load(tmp_path / "y.npz") as outputs:
        for name, values in expected.items():
            np.testing.assert_allclose(outputs[name], values, atol=1e-5, rtol=1e-4)
