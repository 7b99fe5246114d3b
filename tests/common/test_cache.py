"""The cache folder: damage is noticed, and upkeep deletes nothing that is in use or belongs to the user."""

import os
import time
from pathlib import Path

import pytest

from packager.common import cache as cache_module
from packager.common.cache import Cache, CacheUnavailable
from packager.common.hashing import sha256_file


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def reopen(cache):
    """The same folder without what this process remembers of it."""
    return Cache(cache.folder.parent)


def add_entry(cache, folder, content=b"weights"):
    """Add one object and one record; return the digest of the object, which is the record's name too."""
    path = folder / "out.bin"
    path.write_bytes(content)
    sha256 = sha256_file(path)
    cache.add_object(path, sha256)
    cache.save_record(sha256, {"answer": 42})
    path.unlink()
    return sha256


def list_files(cache):
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


# -- objects, records, digests --------------------------------------------------------------


def test_a_file_that_changes_while_it_is_being_cached_is_dropped(cache, tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"new")
    with pytest.raises(OSError, match=r"out\.bin"):
        cache.add_object(path, "0" * 64)
    assert list_files(cache) == []


def test_a_damaged_object_is_deleted(cache, tmp_path):
    sha256 = add_entry(cache, tmp_path)
    cache.object_path(sha256).write_bytes(b"weightz")
    reopened = reopen(cache)
    assert not reopened.has_object(sha256)
    assert not cache.object_path(sha256).exists()


def test_a_record_is_found_by_its_name(cache):
    cache.save_record("one", {"a": [1, 2]})
    assert reopen(cache).load_record("one") == {"a": [1, 2]}
    assert cache.load_record("two") is None


def test_a_record_that_cannot_be_renamed_leaves_nothing_behind(cache, monkeypatch):
    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        cache.save_record("one", {"a": [1, 2]})
    assert list_files(cache) == []


def set_old_times(path):
    """Make a file old enough for its times to be trusted."""
    old = time.time() - 100
    os.utime(path, (old, old))


def test_a_digest_is_remembered_until_the_file_changes(cache, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    set_old_times(path)
    monkeypatch.setattr(cache_module, "_MTIME_SETTLE_NS", 0)
    sha256 = cache.file_digest(path)
    monkeypatch.setattr(cache_module, "sha256_file", lambda path: "read again")
    assert cache.file_digest(path) == sha256
    for change in (
        lambda: path.write_bytes(b"two"),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: (path.rename(tmp_path / "gone"), path.write_bytes(b"two")),
    ):
        change()
        assert cache.file_digest(path) == "read again"


def test_a_file_that_was_only_just_written_is_hashed_each_time(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    cache.file_digest(path)
    assert not list((cache.folder / "digests").glob("[0-9a-f][0-9a-f]/*"))


# -- upkeep ---------------------------------------------------------------------------------


def test_old_entries_are_trimmed_first_and_then_the_least_recently_used(cache, tmp_path):
    digests = [add_entry(cache, tmp_path, bytes([number]) * 1000) for number in range(5)]
    now = time.time()
    for path in list_files(cache):
        os.utime(path, (now, now))
    for number in (1, 3):
        os.utime(cache.object_path(digests[number]), (now - 100 * number, now - 100 * number))
    cache.trim_now(now, max_bytes=1 << 30, max_age_seconds=250)
    assert [reopen(cache).has_object(sha256) for sha256 in digests] == [True, True, True, False, True]
    used = sum(path.stat().st_size for path in list_files(cache))
    cache.trim_now(now, max_bytes=used - 500, max_age_seconds=250)
    assert [reopen(cache).has_object(sha256) for sha256 in digests] == [True, False, True, False, True]


def test_files_that_the_cache_did_not_write_are_never_touched(tmp_path):
    """A user may point PACKAGER_CACHE to a folder that has files of its own."""
    foreign = [tmp_path / "objects/ab/mesh.obj", tmp_path / "projects/thesis/chapter1.tex", tmp_path / "actions/x/y"]
    foreign += [tmp_path / "builds-1/objects/ab/mesh.obj", tmp_path / "builds-1/projects/thesis/chapter1.tex"]
    for path in foreign:
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1, 1))
    cache = Cache(tmp_path)
    add_entry(cache, tmp_path)
    cache.trim_now(time.time(), max_bytes=0, max_age_seconds=0)
    cache.clear()
    assert all(path.exists() for path in foreign)
    assert sum(count for count, _ in cache.usage().values()) == 0


def test_it_is_trimmed_once_a_day(cache, tmp_path):
    add_entry(cache, tmp_path)
    cache.trim(max_age_seconds=-1)
    assert list_files(cache) == [cache.folder / "trimmed"]
    add_entry(reopen(cache), tmp_path)
    cache.trim(max_age_seconds=-1)
    assert len(list_files(cache)) == 3


def test_use_keeps_an_entry_from_being_trimmed(cache, tmp_path):
    sha256 = add_entry(cache, tmp_path)
    long_ago = time.time() - 1_000_000
    for path in list_files(cache):
        os.utime(path, (long_ago, long_ago))
    cache_module.touch_entry(cache.object_path(sha256))
    cache.trim_now(time.time(), max_bytes=1 << 30, max_age_seconds=500_000)
    assert list_files(cache) == [cache.object_path(sha256)]


def test_clearing_empties_it_and_returns_the_bytes_freed(cache, tmp_path):
    add_entry(cache, tmp_path)
    held = sum(path.stat().st_size for path in list_files(cache))
    assert sum(size for _, size in cache.usage().values()) == held
    assert cache.clear() == held
    assert list_files(cache) == []
    add_entry(cache, tmp_path)


# -- its folder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PACKAGER_CACHE": "/somewhere"}, Path("/somewhere")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/packager")),
        ({}, Path.home() / ".cache/packager"),
    ],
)
def test_the_folder_is_the_users_choice_or_the_platforms(environment, expected, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_module.default_cache_folder(environment) == expected


def test_a_folder_that_cannot_be_created_is_unavailable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnavailable, match="Not a directory"):
        Cache(tmp_path / "file" / "cache")


def test_a_folder_that_belongs_to_a_different_user_is_unavailable(tmp_path, monkeypatch, golden):
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / "cache")


def test_a_folder_that_is_not_writable_is_unavailable(tmp_path, monkeypatch, golden):
    Cache(tmp_path / "cache")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / "cache")
