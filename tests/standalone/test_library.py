"""The library is the one that parity was proven with, as the RECORD of its wheel lists it."""

import base64
import hashlib
import zipfile

import pytest

from packager.common.installed_distributions import find_distribution
from packager.errors import LibraryUnavailable
from packager.standalone import library
from packager.standalone.library import read_installed_digest, read_library
from packager.standalone.runners import find_host_target


@pytest.fixture
def target(tmp_path):
    return find_host_target(tmp_path)


@pytest.fixture
def version():
    return find_distribution("onnxruntime")[0]


def make_wheel(path, version, content, *, listed=None):
    """Write a wheel of onnxruntime with a library; RECORD lists the digest of `listed`, or of the library."""
    files = {
        f"onnxruntime/capi/libonnxruntime.so.{version}": content,
        "onnxruntime/LICENSE": b"MIT",
        "onnxruntime/ThirdPartyNotices.txt": b"notices",
    }
    lines = []
    for name, stored in files.items():
        digest = hashlib.sha256(listed if listed is not None and "capi" in name else stored).digest()
        lines.append(f"{name},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},{len(stored)}\n")
    with zipfile.ZipFile(path, "w") as archive:
        for name, stored in files.items():
            archive.writestr(name, stored)
        archive.writestr(f"onnxruntime-{version}.dist-info/RECORD", "".join(lines))
    return path


def make_header(machine):
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + b"code"


def test_the_installed_library_has_its_digest_and_its_notices(version, target):
    taken = read_library(version, target, None)
    assert hashlib.sha256(taken.content).digest() == read_installed_digest(version, target)
    assert taken.notices.startswith(f"\nonnxruntime {version}\n".encode())
    assert b"MIT License" in taken.notices
    assert len(taken.notices) > 100_000


def test_a_wheel_for_another_target_is_read_from_its_file(tmp_path):
    wheel = make_wheel(tmp_path / "o.whl", "9.9.9", make_header(183))
    assert read_library("9.9.9", "linux-arm64", wheel).content == make_header(183)


@pytest.mark.parametrize(
    ("version", "machine", "listed", "why"),
    [
        ("1.2.3", 183, None, "parity was proven with 9.9.9, and 1.2.3 is in"),
        ("9.9.9", 62, None, "for a different machine"),
        ("9.9.9", 183, b"else", "does not have the digest in RECORD"),
    ],
)
def test_a_wheel_that_is_not_the_one_is_refused(tmp_path, version, machine, listed, why):
    wheel = make_wheel(tmp_path / "o.whl", version, make_header(machine), listed=listed)
    with pytest.raises(LibraryUnavailable, match=why) as caught:
        read_library("9.9.9", "linux-arm64", wheel)
    assert "pip download" in caught.value.hint
    assert "--platform manylinux_2_28_aarch64 onnxruntime==9.9.9" in caught.value.hint


def test_what_is_no_wheel_is_refused(tmp_path):
    path = tmp_path / "o.whl"
    path.write_bytes(b"nothing")
    with pytest.raises(LibraryUnavailable, match="cannot be read"):
        read_library("9.9.9", "linux-arm64", path)


def test_the_installed_library_of_another_version_or_machine_is_refused(version, target):
    other = next(name for name in library.MACHINES if name != target)
    with pytest.raises(LibraryUnavailable, match=f"proven with 0.0.1, and {version} is installed"):
        read_library("0.0.1", target, None)
    with pytest.raises(LibraryUnavailable, match="different machine"):
        read_library(version, other, None)
    assert read_installed_digest("0.0.1", target) is None
    assert read_installed_digest(version, other) is None
