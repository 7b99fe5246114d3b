"""An executable in a chroot that has what docs/standalone.md lists, and nothing else."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from userlands import FOLDERS, LIBRARIES, LOADERS, ROOT, make_root, need

pytestmark = pytest.mark.slow

PR_SET_MDWE = 65  # what systemd's MemoryDenyWriteExecute sets
CHROOT = shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin:/bin")
RELEASES = ["bullseye", "stable"]  # glibc 2.31 of Debian 11, and the newest


@pytest.fixture(params=RELEASES)
def bare(request, tmp_path, executable):
    """Return the root folder of a bare host with the executable as /model, and /tmp."""
    need(os.geteuid() == 0, "needs root: chroot")
    root = make_root(tmp_path / "root", request.param, "amd64")
    shutil.copy(executable, root / "model")
    (root / "tmp").mkdir()
    np.savez(root / "tmp/x.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    return root


@contextlib.contextmanager
def proc_in(root):
    """Mount /proc in a root folder."""
    (root / "proc").mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", root / "proc"], check=True)


def ask(root, *arguments):
    """Run the executable in the root folder; returns its status, and what it printed."""
    answer = subprocess.run(
        [CHROOT, root, "/model", *arguments], capture_output=True, text=True, env={"PATH": "/"}, cwd="/", check=False
    )
    return answer.returncode, answer.stdout or answer.stderr


def verify_and_run(root):
    status, text = ask(root, "verify", "--json")
    assert status == 0, text
    assert json.loads(text)["parity"]["onnx"] == "pass"
    status, text = ask(root, "run", "--input", "/tmp/x.npz", "--output", "/tmp/y.npz")
    assert status == 0, text
    with np.load(root / "tmp/y.npz") as outputs:
        (logits,) = outputs.values()
    assert logits.shape == (2, 10) and np.isfinite(logits).all()


def test_a_host_with_the_libraries_that_the_documentation_lists_is_enough(bare):
    with proc_in(bare):
        verify_and_run(bare)


def test_a_host_without_proc_is_enough(bare):
    verify_and_run(bare)
    assert sorted(path.name for path in (bare / "tmp").iterdir()) == ["x.npz", "y.npz"]


def test_a_host_without_libstdcpp_gets_a_clear_error(bare):
    for name in ("libstdc++.so.6", "libgcc_s.so.1"):
        next(bare.rglob(name)).unlink()
    with proc_in(bare):
        status, text = ask(bare, "info")
        assert status == 0, text  # the program itself needs neither
        answers = [ask(bare, "run", "--input", "/tmp/x.npz"), ask(bare, "verify")]
    for status, text in answers:  # the bundle is not the one to blame
        assert status == 2
        assert "libstdc++.so.6: cannot open shared object file" in text
        assert "hint: the host needs glibc 2.28 or later, libstdc++.so.6 and libgcc_s.so.1" in text


def test_nothing_but_the_executable_was_written(bare):
    before = sorted(path for path in bare.rglob("*"))
    with proc_in(bare):
        status, text = ask(bare, "verify")
    assert status == 0, text
    (bare / "proc").rmdir()
    assert sorted(path for path in bare.rglob("*")) == before  # no cache, no telemetry


def test_memory_is_never_writable_and_executable(executable):
    code = (
        "import ctypes, os, sys\n"
        f"if ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0):\n    sys.exit('needs Linux 6.3: PR_SET_MDWE')\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, executable, "verify"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    need("PR_SET_MDWE" not in answer.stderr, answer.stderr)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_documentation_lists_these_libraries():
    text = (ROOT / "docs/standalone.md").read_text(encoding="utf-8")
    for name in [*LIBRARIES, *(Path(loader).name for loader in LOADERS.values())]:
        assert f"`{name}`" in text
    assert set(FOLDERS) == set(LOADERS)
