"""ZIP archives in which the names and contents of the files determine every byte."""

import io
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.common import deterministic_zip

NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20)
FILES = st.dictionaries(NAMES, st.binary(max_size=200), max_size=6).map(lambda files: dict(sorted(files.items())))
THREE = {"a": b"", "folder/b": bytes(range(256)) * 300, "\u00e9": b"no ASCII"}


def zip_bytes(files):
    stream = io.BytesIO()
    deterministic_zip.write_zip(stream, ((name, len(content), [content]) for name, content in files.items()))
    return stream.getvalue()


def read(path):
    with path.open("rb") as stream:
        return {name: b"".join(chunks) for name, chunks in deterministic_zip.read_zip(stream)}


@pytest.fixture(params=["plain", "zip64"])
def limits(request, monkeypatch):
    """Use the limits of the format, or limits so low that every number needs a ZIP64 field."""
    if request.param == "zip64":
        monkeypatch.setattr(deterministic_zip, "ZIP64_SIZE_LIMIT", 1)
        monkeypatch.setattr(deterministic_zip, "ZIP64_COUNT_LIMIT", 1)
    return request.param


@given(FILES)
def test_other_readers_find_the_files_stored_aligned_and_without_a_time(files):
    content = zip_bytes(files)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
        assert archive.comment == b""
        for entry in archive.infolist():
            name, extra = struct.unpack_from("<2H", content, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name + extra) % 64 == 0
            assert (entry.compress_type, entry.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
            assert (entry.create_system, entry.external_attr, entry.comment) == (3, 0o100644 << 16, b"")
            assert entry.flag_bits == (0 if entry.filename.isascii() else 0x800)


@given(FILES)
def test_any_files_come_back(files):
    with tempfile.TemporaryFile() as stream:
        stream.write(zip_bytes(files))
        stream.seek(0)
        assert {name: b"".join(chunks) for name, chunks in deterministic_zip.read_zip(stream)} == files


def test_files_come_back_as_they_were_written(tmp_path, limits):
    (tmp_path / "x.zip").write_bytes(zip_bytes(THREE))
    assert read(tmp_path / "x.zip") == THREE


def test_the_bytes_of_a_known_archive_never_change():
    assert zip_bytes({"a": b"hello"}).hex(" ", 2).replace(" ", "") == (
        "504b0304" "1400" "0000" "0000" "0000" "2100" "86a61036" "05000000" "05000000" "0100" "2100" "61"
        "4642" "1d00" + "00" * 29 + "68656c6c6f"
        "504b0102" "2d03" "1400" "0000" "0000" "0000" "2100" "86a61036" "05000000" "05000000" "0100" "0000" "0000"
        "0000" "0000" "0000a481" "00000000" "61"
        "504b0506" "0000" "0000" "0100" "0100" "2f000000" "45000000" "0000"
    )  # fmt: skip


@pytest.mark.parametrize("tool", ["unzip", "zipfile"])
def test_command_line_tools_accept_an_archive(tmp_path, limits, tool):
    if tool == "unzip" and not shutil.which("unzip"):
        pytest.skip("unzip is not installed")
    (tmp_path / "x.zip").write_bytes(zip_bytes(THREE))
    command = ["unzip", "-tq"] if tool == "unzip" else [sys.executable, "-m", "zipfile", "-t"]
    process = subprocess.run([*command, tmp_path / "x.zip"], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("No errors detected" if tool == "unzip" else "Done testing")


def test_zip64_fields_are_used_where_needed_and_contents_stay_aligned(monkeypatch):
    monkeypatch.setattr(deterministic_zip, "ZIP64_SIZE_LIMIT", 1000)
    content = zip_bytes(THREE)
    assert content.count(b"PK\6\6") == content.count(b"PK\6\7") == 1  # the directory starts after byte 1000
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        small, large, last = archive.infolist()
        assert {name: archive.read(name) for name in archive.namelist()} == THREE
    assert [entry.extract_version for entry in (small, large, last)] == [20, 45, 45]
    assert (small.extra, large.extra[:4], last.extra[:4]) == (b"", b"\1\0\x10\0", b"\1\0\x08\0")
    name, extra = struct.unpack_from("<2H", content, large.header_offset + 26)
    assert (large.header_offset + 30 + name + extra) % 64 == 0


def test_unnecessary_zip64_fields_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as lowered:
        lowered.setattr(deterministic_zip, "ZIP64_SIZE_LIMIT", 1)
        (tmp_path / "x.zip").write_bytes(zip_bytes(THREE))
    with pytest.raises(deterministic_zip.ZipMalformed):
        read(tmp_path / "x.zip")


def test_a_content_with_a_wrong_size_is_refused(golden):
    with pytest.raises(deterministic_zip.ZipMalformed) as caught:
        deterministic_zip.write_zip(io.BytesIO(), [("a", 3, [b"12", b"34"])])
    golden(str(caught.value), "a", "4", "3")


def test_a_content_is_checked_even_if_it_is_not_read(tmp_path):
    content = bytearray(zip_bytes(THREE))
    content[content.index(b"no ASCII")] ^= 1
    (tmp_path / "x.zip").write_bytes(content)
    with (tmp_path / "x.zip").open("rb") as stream, pytest.raises(deterministic_zip.ZipEntryDamaged):
        list(deterministic_zip.read_zip(stream))
