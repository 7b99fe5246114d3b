"""Which files a process opens: read, written, and named by a relative path."""

import os
import tempfile

import pytest

from packager.model.file_accesses import normalize_path, record_file_accesses


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "read.txt").write_text("1")
    return tmp_path


def test_a_file_is_recorded_with_its_status_when_it_is_first_read(folder):
    before = (folder / "read.txt").stat()
    with record_file_accesses([]) as accesses:
        (folder / "read.txt").read_text()
        (folder / "read.txt").write_text("22")
        (folder / "read.txt").read_text()
    assert accesses.read[f"{folder}/read.txt"] == (1, before.st_mtime_ns, before.st_ino)
    assert f"{folder}/read.txt" in accesses.written
    assert f"{folder}/read.txt" not in accesses.relative


def test_a_file_that_was_written_first_is_not_read(folder):
    with record_file_accesses([folder / "excluded.txt"]) as accesses:
        (folder / "new.txt").write_text("1")
        (folder / "new.txt").read_text()
        (folder / "new.txt").rename("renamed.txt")
        open("renamed.txt").close()
        with tempfile.TemporaryFile(dir=folder), pytest.raises(FileExistsError):
            (folder / "read.txt").open("x").close()
    assert accesses.read.keys() & {f"{folder}/{name}.txt" for name in ("new", "renamed", "read")} == set()
    assert {f"{folder}/{name}.txt" for name in ("new", "renamed", "excluded")} <= accesses.written
    assert f"{folder}/read.txt" not in accesses.written


def test_a_relative_path_is_recorded_as_such(folder):
    with record_file_accesses([]) as accesses:
        open("read.txt").close()
    assert f"{folder}/read.txt" in accesses.relative
    assert f"{folder}/read.txt" in accesses.read


def test_nothing_is_recorded_outside_the_block(folder):
    with record_file_accesses([]) as accesses:
        pass
    (folder / "read.txt").read_text()
    assert (accesses.read, accesses.written) == ({}, set())


def test_two_dots_behind_a_link_lead_to_the_parent_of_its_target(folder):
    (folder / "elsewhere/inner").mkdir(parents=True)
    os.symlink(folder / "elsewhere/inner", folder / "link")
    assert normalize_path("link/../read.txt") == f"{folder}/elsewhere/read.txt"
    assert normalize_path("./link/read.txt") == f"{folder}/link/read.txt"
