"""Where a host lacks /proc, files in memory or a folder for temporary files, the executable falls back, or says why."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from executables import call
from projects import project

import packager
from packager.bundle.executable_layout import MACHINES
from packager.bundle.files import open_bundle
from packager.common.installed_distributions import find_distribution
from packager.standalone import assemble
from packager.standalone.assemble import make_standalone
from packager.standalone.library import read_library
from packager.standalone.runners import find_host_target

EMBEDDING = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(70_000, 64)

    def forward(self, ids):
        return self.table(ids).mean(1)
"""
LIBRARIES = [
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6",
]  # fmt: skip

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a chroot needs root")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return a bundle with 18 MB of weights, which are in model.onnx_data."""
    folder = tmp_path_factory.mktemp("large")
    inputs = {"ids": {"dtype": "int64", "shape": ["batch", 3], "range": [0, 70_000]}}
    manifest = project(
        folder, EMBEDDING, inputs=inputs, name="large", outputs=["mean"], torchscript={"method": "none"},
        parity={"effort": "quick"},
    )  # fmt: skip
    bundle = packager.build(manifest, folder / "out").bundle
    assert (bundle / "model.onnx_data").stat().st_size > 16 << 20
    data = json.loads((bundle / "config.json").read_bytes())["artifacts"]["onnx"]["data"]
    assert len(data["pieces"]) == 3  # of 8 MiB
    return bundle


@pytest.fixture(scope="module")
def large_executable(large, runner, tmp_path_factory):
    target = tmp_path_factory.mktemp("large-executable") / "large"
    make_standalone(large, target)
    return target


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(path, ids=np.array([[0, 69_999, 7], [1, 2, 3]]))
    return path


@pytest.fixture
def root(large_executable, ids, tmp_path):
    """Return a folder for a chroot: the executable, its libraries, /tmp, and nothing else."""
    root = tmp_path / "root"
    loader = Path(
        {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[os.uname().machine]
    )
    folder = root / "lib"
    folder.mkdir(parents=True)
    (root / "tmp").mkdir()
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, env={"PATH": "/sbin:/usr/sbin"}).stdout
    for name in LIBRARIES:
        shutil.copy(re.search(rf"\s{re.escape(name)} .*=> (\S+)", listed).group(1), folder)
    (root / loader.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
    shutil.copy(loader, root / loader.relative_to("/"))
    shutil.copy(large_executable, root / "large")
    shutil.copy(ids, root / "ids.npz")
    return root


def predict_in(root, prepare=lambda: None):
    """Run a prediction in a chroot, after `prepare` in the child. Returns the answer, and the outputs or None."""

    def enter():
        prepare()
        os.chroot(root)
        os.chdir("/")

    command = ["/large", "run", "--input", "/ids.npz", "--output", "/out.npz"]
    environment = {"LD_LIBRARY_PATH": "/lib"}
    answer = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, env=environment, check=False)
    outputs = dict(np.load(root / "out.npz")) if (root / "out.npz").exists() else None
    return answer, outputs


def expect_same(outputs, large, ids):
    expected = packager.load(large).run(dict(np.load(ids)))
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)


def mount(*arguments):
    """Return a function that mounts something, in a namespace of the child alone."""

    def prepare():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x20000) != 0 or libc.mount(None, b"/", None, 0x4000 | 0x40000, None) != 0:  # private
            os._exit(99)
        if libc.mount(*arguments) != 0:
            os._exit(99)

    return prepare


@needs_root
def test_without_proc_the_copy_is_a_temporary_file_that_is_gone(root, large, ids):
    answer, outputs = predict_in(root)
    assert answer.returncode == 0, answer.stderr
    expect_same(outputs, large, ids)
    assert os.listdir(root / "tmp") == []


@needs_root
def test_with_proc_nothing_is_written(root, large, ids):
    (root / "proc").mkdir()
    (root / "tmp").rmdir()
    answer, outputs = predict_in(root, mount(b"proc", os.fsencode(root / "proc"), b"proc", 0, None))
    assert answer.returncode == 0, answer.stderr
    expect_same(outputs, large, ids)


@needs_root
def test_a_temporary_folder_from_which_nothing_runs_is_enough(root, large, ids):
    answer, outputs = predict_in(root, mount(b"tmpfs", os.fsencode(root / "tmp"), b"tmpfs", 8, None))  # MS_NOEXEC
    assert answer.returncode == 0, answer.stderr
    expect_same(outputs, large, ids)


@needs_root
@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("tmp", "no copy of its library can be made"),
        ("lib/libstdc++.so.6", "libstdc++.so.6: cannot open shared object"),
    ],
)
def test_what_the_host_lacks_is_said(root, missing, why):
    path = root / missing
    path.rmdir() if path.is_dir() else path.unlink()
    answer, _ = predict_in(root)
    assert answer.returncode == 2
    assert "error[backend-unavailable]" in answer.stderr
    assert why in answer.stderr
    assert "hint: the host needs glibc 2.28 or later" in answer.stderr


@needs_root
def test_info_needs_no_library(root):
    for name in ("tmp", "lib/libstdc++.so.6"):
        path = root / name
        path.rmdir() if path.is_dir() else path.unlink()

    def enter():
        os.chroot(root)

    answer = subprocess.run(
        ["/large", "info"], preexec_fn=enter, capture_output=True, text=True, env={"LD_LIBRARY_PATH": "/lib"}
    )
    assert answer.returncode == 0, answer.stderr


def forbid_memfd():
    """Let memfd_create fail with ENOSYS in this process and its children, by a seccomp filter."""
    number = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
    instructions = [
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, number),
        (0x06, 0, 0, 0x00050000 | 38),  # fail with ENOSYS
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))

    class Program(ctypes.Structure):
        _fields_ = (("size", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction)))

    array = (Instruction * len(instructions))(*(Instruction(*fields) for fields in instructions))
    program = Program(len(instructions), array)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:  # PR_SET_SECCOMP
        os._exit(99)


def test_where_files_in_memory_are_forbidden_the_copy_is_a_temporary_file(large_executable, large, ids, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    output = tmp_path / "out.npz"
    answer = call(
        large_executable, "run", "--input", ids, "--output", output,
        preexec_fn=forbid_memfd, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    expect_same(dict(np.load(output)), large, ids)
    assert os.listdir(folder) == []


def test_no_library_is_taken_from_the_temporary_folder(large_executable, ids, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name in ("libdl.so.2", "librt.so.1", "libstdc++.so.6"):
        (folder / name).write_bytes(b"not a library")
    answer = call(
        large_executable, "run", "--input", ids,
        preexec_fn=forbid_memfd, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr


# -- what is mapped -------------------------------------------------------------------------


@contextlib.contextmanager
def serving(executable):
    """Yield the process of a server that is ready."""
    command = [executable, "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("http")
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def sum_mappings(process, path, name):
    """Return the kB of one kind in all mappings of a file in a process, with the offsets of the mappings."""
    total, offsets, inside = 0, [], False
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        header = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) \S+ \d+\s*(.*)", line)
        if header:
            inside = header.group(2) == str(path)
            if inside:
                offsets.append(int(header.group(1), 16))
        elif inside and line.startswith(f"{name}:"):
            total += int(line.split()[1])
    return total, offsets


@pytest.mark.skipif(sys.platform != "linux", reason="smaps")
def test_weights_are_mapped_from_the_executable_and_shared_by_processes(large_executable):
    with open_bundle(large_executable) as files:
        data = files.locate("model.onnx_data")
    with serving(large_executable) as first, serving(large_executable) as second:
        for process in (first, second):
            dirty, offsets = sum_mappings(process, large_executable, "Private_Dirty")
            assert dirty < 4000  # data of the runner and the library; the weights have five times as much
            assert any(data.offset <= offset + 4095 and offset < data.offset + data.size for offset in offsets)
            # A file that was just written is dirty until the system has stored it.
            shared = [sum_mappings(process, large_executable, f"Shared_{kind}")[0] for kind in ("Clean", "Dirty")]
            assert sum(shared) > 8000


def test_an_executable_that_was_deleted_runs_on(large_executable, ids, tmp_path):
    path = tmp_path / "large"
    shutil.copy(large_executable, path)
    output = tmp_path / "out.npz"
    code = (
        "import os, sys\n"
        "descriptor = os.open(sys.argv[1], os.O_PATH)\n"
        "os.unlink(sys.argv[1])\n"
        "os.execve(descriptor, [sys.argv[1], 'run', '--input', sys.argv[2], '--output', sys.argv[3]], os.environ)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code, path, ids, output], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert output.exists()


# -- a library that cannot be overlaid ------------------------------------------------------


def mark_text_relocations(content):
    """Return a library that says that its code is relocated, which is not so: DF_TEXTREL in DT_FLAGS."""
    library = bytearray(content)
    start, count = struct.unpack_from("<Q", library, 32)[0], struct.unpack_from("<H", library, 56)[0]
    headers = [struct.unpack_from("<LLQQQQ", library, start + 56 * index) for index in range(count)]
    offset, size = next((header[2], header[5]) for header in headers if header[0] == 2)  # PT_DYNAMIC
    for position in range(offset, offset + size, 16):
        tag, value = struct.unpack_from("<qQ", library, position)
        if tag == 30:  # DT_FLAGS
            struct.pack_into("<Q", library, position + 8, value | 4)
            return bytes(library)
    raise AssertionError("the library has no DT_FLAGS")


@pytest.mark.parametrize("prepare", [lambda: None, forbid_memfd], ids=["in memory", "in a temporary file"])
def test_a_library_of_an_unknown_layout_is_copied_whole(archived, built, runner, tmp_path, prepare):
    target = find_host_target(tmp_path)
    library = read_library(find_distribution("onnxruntime")[0], target, None)
    path, folder = tmp_path / "digits-cnn", tmp_path / "temporary"
    folder.mkdir()
    with path.open("xb") as stream, archived.open("rb") as archive:
        marked = replace(library, content=mark_text_relocations(library.content))
        assemble._write(stream, runner, marked, MACHINES[target], archive)
    path.chmod(0o755)
    np.savez(tmp_path / "x.npz", image=np.full((1, 1, 8, 8), 0.5, np.float32))
    answer = call(
        path, "run", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz",
        preexec_fn=prepare, env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    expect_same(dict(np.load(tmp_path / "y.npz")), built.bundle, tmp_path / "x.npz")
    assert os.listdir(folder) == []


def test_nothing_is_left_behind_and_nothing_is_sent(large_executable, ids, tmp_path):
    """Wheels of onnxruntime since 1.29 send telemetry, and keep an identity in the home folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder)}
    answer = call(large_executable, "run", "--input", ids, env=environment, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert list(folder.rglob("*")) == []
