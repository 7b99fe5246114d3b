"""The archive of a bundle: the same files give the same bytes, and nothing else is accepted as an archive."""

import json
import os
import shutil
import stat
import struct
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions
from projects import minimal_config

from packager.bundle import archive as module
from packager.bundle.archive import is_archive, open_as_folder, write_archive
from packager.bundle.fingerprint import compute_fingerprint
from packager.bundle.writer import BundleWriter
from packager.cli.describe import inspect
from packager.common import deterministic_zip
from packager.errors import ArchiveRefused, IntegrityFailed, NotABundle, OutputRefused, PackagerError, render_error
from packager.runtime.loader import load
from packager.runtime.verify import verify

CONTENTS = {
    "config.json": minimal_config(),
    "evidence/golden.safetensors": bytes(range(256)),
    "assets/a b.txt": b"",
    "assets/\u00e9t\u00e9.txt": "\u00e9t\u00e9".encode(),
}


def small(folder, contents=CONTENTS):
    """Write a sealed folder of a few small files, without a model."""
    writer = BundleWriter(folder)
    for path, content in contents.items():
        writer.add_bytes(path, content)
    writer.seal()
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(contents):
    """Return the bytes of an archive of any entries in any order."""
    with tempfile.TemporaryFile() as stream:
        deterministic_zip.write_zip(stream, ((name, len(content), [content]) for name, content in contents))
        stream.seek(0)
        return stream.read()


def refused(path, content=None, kind=ArchiveRefused):
    """Return the reason why an archive is refused."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as caught, open_as_folder(path):
        pass
    assert str(path) in caught.value.message
    return caught.value.why


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(tmp_path_factory.mktemp("small") / "net-1.0.0")


@pytest.fixture(scope="module")
def good(folder):
    """Return the bytes of a valid archive."""
    write_archive(folder, folder.parent / "good.zip")
    return (folder.parent / "good.zip").read_bytes()


@pytest.fixture
def path(tmp_path, good):
    """Return the path of a valid archive, which a test may change."""
    (tmp_path / "net-1.0.0.zip").write_bytes(good)
    return tmp_path / "net-1.0.0.zip"


# -- what is written ------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes_whatever_their_times_modes_and_order(tmp_path, good):
    other = small(tmp_path / "other", dict(reversed(CONTENTS.items())))
    for number, file in enumerate(other.rglob("*")):
        os.utime(file, (number, number))
        file.chmod(0o700 if file.is_dir() else 0o400)
    (other / "empty folder").mkdir()
    before = os.umask(0o077)
    try:
        write_archive(other, tmp_path / "other.zip")
    finally:
        os.umask(before)
    assert (tmp_path / "other.zip").read_bytes() == good


def test_the_bytes_do_not_depend_on_folder_or_time_zone(folder, good, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    write_archive(Path("copy"), Path("copy.zip"))
    assert (tmp_path / "copy.zip").read_bytes() == good


def test_every_file_is_stored_aligned_and_in_order(folder, good, path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names == sorted(files(folder), key=str.encode)
        assert {"SHA256SUMS", "FINGERPRINT", "evidence/golden.safetensors"} < set(names)
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<2H", good, entry.header_offset + 26)
            start = entry.header_offset + 30 + name + extra
            assert start % 64 == 0
            assert good[start : start + entry.file_size] == (folder / entry.filename).read_bytes()


def test_a_signature_is_archived_too(folder, tmp_path):
    signed = shutil.copytree(folder, tmp_path / "signed")
    (signed / "model.sig").write_text("signed")
    write_archive(signed, tmp_path / "signed.zip")
    with open_as_folder(tmp_path / "signed.zip") as unpacked:
        assert files(unpacked) == files(signed)


def test_an_archive_has_the_usual_file_mode_and_leaves_nothing_beside_it(folder, tmp_path):
    before = os.umask(0o027)
    try:
        write_archive(folder, tmp_path / "x.zip")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.zip").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["x.zip"]


def test_an_existing_archive_is_replaced_atomically_or_kept(folder, good, tmp_path):
    (tmp_path / "x.zip").write_text("earlier")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "link").symlink_to("config.json")
    with pytest.raises(OutputRefused):
        write_archive(broken, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["broken", "x.zip"]
    with (tmp_path / "x.zip").open() as reader:
        write_archive(folder, tmp_path / "x.zip")
        assert reader.read() == "earlier"
    assert (tmp_path / "x.zip").read_bytes() == good


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda folder: (folder / "link").symlink_to("config.json"), ("link",)),
        (lambda folder: (folder / "link").symlink_to("assets"), ("link",)),
        (lambda folder: os.mkfifo(folder / "pipe"), ("pipe",)),
        (lambda folder: (folder / "a\\b").touch(), ("a\\\\b", "backslashes")),
        (lambda folder: open(os.fsencode(folder) + b"/\xff", "w").close(), ("\\udcff",)),
        (lambda folder: deep(folder), (f"{'d/' * 33}x", "32", "deep")),
    ],
    ids=["link", "linked folder", "pipe", "backslash", "no UTF-8", "deep"],
)
def test_a_folder_that_cannot_be_archived_is_refused(folder, tmp_path, change, facts, golden):
    changed = shutil.copytree(folder, tmp_path / "changed")
    change(changed)
    with pytest.raises(OutputRefused) as caught:
        write_archive(changed, tmp_path / "x.zip")
    golden(render_error(caught.value), "error[output-refused]", f"{tmp_path}/x.zip", *facts)


def deep(folder):
    (folder / ("d/" * 33)).mkdir(parents=True)
    (folder / ("d/" * 33) / "x").touch()


def test_a_folder_without_files_is_refused(tmp_path, golden):
    for name in ("empty", "nowhere"):
        with pytest.raises(OutputRefused) as caught:
            write_archive(tmp_path / name, tmp_path / "x.zip")
        golden(caught.value.why, tmp_path / name)
        (tmp_path / "empty").mkdir(exist_ok=True)


# -- what is read ---------------------------------------------------------------------------


def test_an_archive_stays_unpacked_until_the_block_ends(folder, path, temporary):
    with open_as_folder(path) as unpacked:
        assert files(unpacked) == files(folder)
        assert stat.S_IMODE(unpacked.stat().st_mode) == 0o700
        assert unpacked.parent == temporary
        write_archive(unpacked, path.with_name("again.zip"))
    assert not unpacked.exists()
    assert path.with_name("again.zip").read_bytes() == path.read_bytes()


def test_the_unpacked_folder_is_deleted_after_an_interrupt(path, temporary):
    with pytest.raises(KeyboardInterrupt), open_as_folder(path):
        raise KeyboardInterrupt


def test_an_error_names_the_archive_instead_of_the_unpacked_folder(path, temporary, golden):
    with pytest.raises(OutputRefused) as caught, open_as_folder(path) as unpacked:
        raise OutputRefused(str(unpacked), f"see {unpacked}/x", f"remove {unpacked}")
    golden(render_error(caught.value), "error[output-refused]", path, f"{path}/x", "see", "remove")
    assert str(caught.value) == render_error(caught.value)


def test_a_folder_is_used_in_place_even_if_its_name_ends_in_zip(folder, tmp_path):
    named = shutil.copytree(folder, tmp_path / "net.zip")
    for path in (folder, named, tmp_path / "nowhere.zip", Path(__file__)):
        assert not is_archive(path)
        with open_as_folder(path) as opened:
            assert opened is path


def test_an_archive_has_the_fingerprint_of_its_folder(folder, path):
    assert verify(path, parity=False) == verify(folder, parity=False)
    assert inspect(path) == inspect(folder)
    assert inspect(path)["fingerprint"] == (folder / "FINGERPRINT").read_text().strip()
    with zipfile.ZipFile(path) as archive:
        assert compute_fingerprint(archive.read("SHA256SUMS").decode()) == inspect(folder)["fingerprint"]


def test_the_shell_command_in_the_docstring_unpacks_and_checks_it(path):
    if not all(shutil.which(tool) for tool in ("unzip", "sha256sum")):
        pytest.skip("unzip or sha256sum is not installed")
    (line,) = (line.strip() for line in module.__doc__.splitlines() if line.startswith("    "))
    command = line.replace("NAME-VERSION", "net-1.0.0")
    process = subprocess.run(["sh", "-ec", command], cwd=path.parent, capture_output=True, text=True, check=True)
    assert process.stdout.count(": OK\n") == len(CONTENTS)


# -- what is refused ------------------------------------------------------------------------


def test_a_file_that_is_not_an_archive_is_refused(tmp_path, golden):
    (tmp_path / "x.zip").write_text("hello")
    with pytest.raises(ArchiveRefused) as caught:
        load(tmp_path / "x.zip")
    golden(render_error(caught.value), "error[archive-refused]", f"{tmp_path}/x.zip", "0", "5")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("mask", [0x01, pytest.param(0xFF, marks=pytest.mark.slow)])
def test_no_byte_of_an_archive_can_be_changed(path, good, temporary, mask):
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= mask
        path.write_bytes(changed)
        with pytest.raises((ArchiveRefused, IntegrityFailed)), open_as_folder(path):
            pass


def test_an_archive_cannot_be_truncated_anywhere(path, good, temporary):
    for length in range(len(good)):
        refused(path, good[:length])


@st.composite
def edits(draw, size):
    """Draw the start and end of the bytes to replace, and their replacement."""
    start = draw(st.integers(0, size))
    end = draw(st.integers(start, min(size, start + 80)))
    return start, end, draw(st.binary(max_size=80))


@given(st.data())
def test_an_edited_archive_is_refused_or_is_what_its_files_produce(good, folder, data):
    start, end, replacement = data.draw(edits(len(good)))
    other = data.draw(st.integers(0, len(good)))
    changed = good[:start] + data.draw(st.sampled_from([replacement, good[other : other + 64]])) + good[end:]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x.zip"
        path.write_bytes(changed)
        again, refusal = None, ""
        try:
            with open_as_folder(path) as unpacked:
                write_archive(unpacked, Path(temporary) / "again.zip")
                again = (Path(temporary) / "again.zip").read_bytes()
        except (ArchiveRefused, IntegrityFailed, NotABundle) as error:
            refusal = error.message
        if again is None:
            assert changed != good and str(path) in refusal
        else:
            assert again == changed


@given(st.binary(max_size=300) | st.lists(st.sampled_from([b"PK\3\4", b"PK\1\2", b"PK\5\6", b"\0" * 26])).map(b"".join))
def test_arbitrary_bytes_are_refused_without_a_crash(content):
    with tempfile.TemporaryDirectory() as temporary:
        refused(Path(temporary) / "x.zip", content)


def test_an_archive_of_a_different_program_is_refused(path, folder, tmp_path, golden):
    def zipped(method, stream):
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name in sorted(files(folder)):
                archive.write(folder / name, name)

    zipped(zipfile.ZIP_DEFLATED, path)
    golden(refused(path), "FINGERPRINT")
    zipped(zipfile.ZIP_STORED, path)
    golden(refused(path), "FINGERPRINT", "CRC")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=path.open("wb")) as pipe:
        zipped(zipfile.ZIP_STORED, pipe.stdin)
    golden(refused(path), "FINGERPRINT")


def test_an_encrypted_entry_is_refused(path, good, golden):
    second = good.index(b"PK\3\4", 1)
    changed = bytearray(good)
    changed[second + 6] |= 1
    golden(refused(path, changed), "SHA256SUMS")


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../../x", "..", ".", "./x", "a/./x", "a//x", "assets/", "/", "//x", ""]
)
def test_a_name_that_is_not_a_path_inside_a_bundle_is_refused(path, name, temporary, golden):
    golden(refused(path, entries([(name, b"content")])), f"{name!r}")


@pytest.mark.parametrize("name", ["a\\b", "..\\x", "C:\\x", "a\nb", "a\rb", "a\0b"])
def test_a_name_that_some_systems_cannot_store_is_refused(path, name, temporary, golden):
    golden(refused(path, entries([(name, b"content")])), repr(name))


def test_a_name_that_is_not_utf_8_is_refused(path, golden):
    content = entries([("\u00e9", b"content")]).replace("\u00e9".encode(), b"\xffa")
    golden(refused(path, content), "\\\\xffa")


def test_names_that_file_systems_cannot_store_are_refused(path, temporary, golden):
    golden(refused(path, entries([("d/" * 33 + "x", b"")])), "d/" * 33 + "x", "32")
    deepest = entries([("SHA256SUMS", b""), ("config.json", b""), ("d/" * 32 + "x", b"")])
    path.write_bytes(deepest)
    with open_as_folder(path) as unpacked:
        assert (unpacked / ("d/" * 32 + "x")).is_file()
    golden(refused(path, entries([("x" * 300, b"")])), "255")
    assert len(refused(path, entries([("x/" * 30_000, b"")]))) < 300


@pytest.mark.parametrize("names", [("a", "a/b"), ("a", "a/b/c"), ("a", "a-b", "a/b")], ids="+".join)
def test_a_name_cannot_be_both_a_file_and_a_folder(path, names, temporary, golden):
    golden(refused(path, entries([(name, b"") for name in names])), repr(names[-1]))


@pytest.mark.parametrize("names", ["aa", "ba", "aba", "abB"])
def test_duplicate_or_unsorted_entries_are_refused(path, names, golden):
    golden(refused(path, entries([(name, b"content") for name in names])), repr(names[-1]))


def test_entries_are_sorted_by_their_bytes(path):
    names = ["B", "SHA256SUMS", "a", "config.json", "z", "\u00e9", "\ud7ff", "\ue000", "\U00010000"]
    path.write_bytes(entries([(name, b"") for name in names]))
    with open_as_folder(path) as unpacked:
        assert sorted(os.listdir(unpacked), key=str.encode) == names


def patched(content, record, offset, value):
    """Replace a number in the first directory record, or in the first local header."""
    changed = bytearray(content)
    start = content.index(record) + offset
    changed[start : start + len(value)] = value
    return changed


def test_a_link_is_refused(path, good, temporary, golden):
    mode = struct.pack("<L", (stat.S_IFLNK | 0o777) << 16)
    golden(refused(path, patched(good, b"PK\1\2", 38, mode)))


def test_entries_that_overlap_are_refused(path, good, golden):
    second = good.index(b"PK\1\2", good.index(b"PK\1\2") + 1)
    changed = bytearray(good)
    changed[second + 42 : second + 46] = struct.pack("<L", 0)
    golden(refused(path, changed))


def test_a_directory_with_more_or_fewer_entries_than_the_archive_is_refused(path, good, golden):
    first = good.index(b"PK\1\2")
    second = good.index(b"PK\1\2", first + 1)
    golden(refused(path, good[:first] + good[second:]))
    golden(refused(path, good[:first] + good[first:second] + good[first:]))
    golden(refused(path, good[:second] + good[-22:]))


def test_a_wrong_size_is_refused(path, good, golden):
    left = len(good) - 64
    for size in (left + 1, 0xFFFF_FFFE):
        lie = patched(good, b"PK\3\4", 18, struct.pack("<2L", size, size))
        golden(refused(path, lie), "FINGERPRINT", size, left, "claims")
    shorter = patched(good, b"PK\3\4", 18, struct.pack("<2L", 5, 5))
    golden(refused(path, shorter), "69")
    differ = patched(good, b"PK\3\4", 18, struct.pack("<L", 5))
    mentions(refused(path, differ), "FINGERPRINT")


def test_a_huge_zip64_size_is_refused(path, monkeypatch, temporary, golden):
    with monkeypatch.context() as lowered:
        lowered.setattr(deterministic_zip, "ZIP64_SIZE_LIMIT", 1)
        content = entries([("a", b"content")])
    lie = content.replace(struct.pack("<2Q", 7, 7), struct.pack("<2Q", 1 << 60, 1 << 60), 1)
    left = len(content) - 64
    golden(refused(path, lie), "a", 1 << 60, left, "claims")


def test_a_content_that_does_not_match_its_crc_fails_integrity(path, good, golden):
    changed = bytearray(good)
    changed[good.index(b'{"schema"') + 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(IntegrityFailed) as caught:
        verify(path)
    golden(render_error(caught.value), "error[integrity-failed]", path, "config.json", "CRC")
    assert caught.value.exit_status == 1
    crc = good[good.index(b"PK\3\4") + 14 :][:4]
    golden(refused(path, patched(good, b"PK\3\4", 14, b"\0\0\0\0")))
    path.write_bytes(good.replace(crc, b"\0\0\0\0"))  # in the header and in the directory
    assert verify(path).integrity.changed == ("FINGERPRINT",)
    with pytest.raises(IntegrityFailed, match="changed: FINGERPRINT"):
        load(path)
    with pytest.raises(IntegrityFailed, match="'FINGERPRINT' does not match its CRC"):
        open_as_folder(path).__enter__()


def test_bytes_before_between_or_after_the_entries_are_refused(path, good, golden):
    second = good.index(b"PK\3\4", 1)
    golden(refused(path, b"#!/bin/sh\n" + good), "0", len(good) + 10)
    between = good[:second] + b"x" + good[second:]
    golden(refused(path, between), second, len(between))
    golden(refused(path, good + b"x"))
    golden(refused(path, good + good))
    golden(refused(path, good[:-2] + b"\1\0x"))
    golden(refused(path, good[:-1]))
    golden(refused(path, b""), "0")


def test_an_archive_of_a_changed_bundle_fails_verification(folder, path):
    other = shutil.copytree(folder, path.parent / "other")
    (other / "config.json").write_text(json.dumps({"schema": 1, "name": "other"}))
    write_archive(other, path)
    assert verify(path).integrity.changed == ("config.json",)


def test_an_archive_without_entries_is_not_a_bundle(path, golden):
    path.write_bytes(entries([]))
    with pytest.raises(PackagerError) as caught:
        load(path)
    assert caught.value.code == "not-a-bundle"
    golden(caught.value.message, path, "bundle")


# -- the machine ----------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_archive_is_refused(path):
    path.chmod(0)
    assert refused(path) == "Permission denied"


def test_a_missing_temporary_folder_is_reported_with_a_hint(path, monkeypatch, tmp_path, golden):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ArchiveRefused) as caught:
        open_as_folder(path).__enter__()
    golden(render_error(caught.value), "error[archive-refused]", path, "TMPDIR")
