"""The files of a bundle are opened once: what is read, mapped and hashed is the same, whatever becomes of the names."""

import hashlib
import os
import resource
import shutil

import pytest

from packager.bundle.archive import write_archive
from packager.bundle.files import open_bundle
from packager.bundle.writer import BundleWriter
from packager.errors import IntegrityFailed, NotABundle

LARGE = bytes(range(256)) * 40_000  # more than is read without a second thread


@pytest.fixture(params=["folder", "archive"])
def path(request, tmp_path):
    writer = BundleWriter(tmp_path / "net")
    for name, content in {"config.json": b"{}", "assets/a": b"", "large": LARGE, "small": b"content"}.items():
        writer.add_bytes(name, content)
    writer.seal()
    if request.param == "folder":
        return writer.folder
    write_archive(writer.folder, tmp_path / "net.zip")
    return tmp_path / "net.zip"


def test_files_are_read_mapped_located_and_hashed(path):
    with open_bundle(path) as files:
        assert files.paths == ("FINGERPRINT", "SHA256SUMS", "assets/a", "config.json", "large", "small")
        assert files.sizes["large"] == len(LARGE) and "small" in files and "none" not in files
        assert files.read("small") == b"content" and files.map("large") == LARGE and files.map("assets/a") == b""
        assert files.map("large").readonly
        location = files.locate("large")
        assert os.pread(location.descriptor, location.size, location.offset) == LARGE
        assert not os.get_inheritable(location.descriptor)
        for name, content in (("small", b"content"), ("large", LARGE), ("assets/a", b"")):
            assert files.sha256(name) == hashlib.sha256(content).hexdigest()
        view = files.map("large")
    assert view[-256:] == bytes(range(256))


def test_a_digest_without_holding_is_the_same(path):
    with open_bundle(path) as files:
        assert files.sha256("large") == hashlib.sha256(LARGE).hexdigest()


def test_names_that_change_later_make_no_difference(path):
    with open_bundle(path) as files:
        for name in ("small", "large"):
            files.locate(name)
        other = path.with_name("other")
        path.rename(other)
        assert files.read("small") == b"content" and files.sha256("large") == hashlib.sha256(LARGE).hexdigest()


def test_a_file_is_not_opened_a_second_time(tmp_path):
    folder = BundleWriter(tmp_path / "net")
    folder.add_bytes("config.json", b"{}")
    folder.add_bytes("x", b"content")
    folder.seal()
    with open_bundle(tmp_path / "net") as files:
        files.sha256("x")
        with pytest.raises(ValueError, match="locate it first"):
            files.read("x")


def test_bytes_that_change_after_their_digest_are_refused(tmp_path):
    writer = BundleWriter(tmp_path / "net")
    writer.add_bytes("config.json", b"{}")
    writer.add_bytes("x", b"content")
    writer.seal()
    with open_bundle(tmp_path / "net") as files:
        files.locate("x")
        files.sha256("x")
        (tmp_path / "net/x").write_bytes(b"CONTENT")
        with pytest.raises(IntegrityFailed, match="changed while it was read"):
            files.read("x")


def test_a_folder_swapped_for_a_link_after_it_was_listed_is_not_followed(tmp_path):
    writer = BundleWriter(tmp_path / "net")
    writer.add_bytes("config.json", b"{}")
    writer.add_bytes("assets/x", b"content")
    writer.seal()
    with open_bundle(tmp_path / "net") as files:
        shutil.move(tmp_path / "net/assets", tmp_path / "elsewhere")
        (tmp_path / "net/assets").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(IntegrityFailed, match="not a regular file"):
            files.read("assets/x")
        assert files.sha256("assets/x") == ""


def test_a_file_larger_than_its_limit_is_refused(path):
    with open_bundle(path) as files, pytest.raises(IntegrityFailed, match="at most 3"):
        files.read("small", 3)


def test_no_descriptor_is_left_open_and_few_are_needed(path):
    def count():
        return len(os.listdir("/proc/self/fd"))

    before, limits = count(), resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_bundle(path) as files:
        for name in files.paths:
            files.sha256(name)
        assert count() <= before + 1
        for name in files.sizes:
            if path.suffix == ".zip":
                files.read(name)
    assert count() == before
    for name in ("nowhere", "net/small"):
        with pytest.raises(NotABundle):
            open_bundle(path.with_name("net").parent / name)
    assert count() == before and resource.getrlimit(resource.RLIMIT_NOFILE) == limits
