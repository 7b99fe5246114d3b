"""The cache folder: damage is noticed, and upkeep deletes nothing that is in use or belongs to the user."""

import hashlib
import json
import os
import shutil
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
    """All files but the key, which the cache keeps for as long as it exists."""
    return sorted(path for path in cache.folder.rglob("*") if path.is_file() and path != cache.folder / "key")


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("level", ["cache", "cache/builds-1"])
def test_every_folder_must_be_the_users_own(tmp_path, level):
    Cache(tmp_path / "cache")
    os.chown(tmp_path / level, os.geteuid() + 1, -1)
    with pytest.raises(CacheUnavailable, match="belongs to a different user"):
        Cache(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_link_of_a_different_user_to_a_folder_of_this_one_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "mine")
    Cache(tmp_path / "cache")
    os.chown(tmp_path / "cache", os.geteuid() + 1, -1, follow_symlinks=False)
    with pytest.raises(CacheUnavailable, match="symbolic link of a different user"):
        Cache(tmp_path / "cache")


@pytest.mark.parametrize("level", ["cache", "cache/builds-1"])
def test_a_folder_that_others_may_write_to_is_unavailable(tmp_path, level, golden):
    Cache(tmp_path / "cache")
    (tmp_path / level).chmod(0o770)
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / level)


def test_a_link_in_place_of_its_folder_is_unavailable(tmp_path, golden):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/builds-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / "cache")


def test_only_the_user_may_read_what_is_in_it(cache, tmp_path):
    before = os.umask(0)
    try:
        add_entry(cache, tmp_path)
        cache.trim()
        cache.make_folder(cache.incoming_folder("http://example.com/m.pt"))
    finally:
        os.umask(before)
    paths = [cache.folder.parent, cache.folder, *cache.folder.rglob("*")]
    assert len(paths) > 10
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_a_folder_in_it_that_others_may_write_to_is_not_written(cache, tmp_path, golden):
    add_entry(cache, tmp_path)
    (cache.folder / "objects").chmod(0o777)
    with pytest.raises(OSError) as caught:
        add_entry(reopen(cache), tmp_path, b"more weights")
    golden(caught.value.strerror, cache.folder)


# -- links that somebody planted ------------------------------------------------------------


@pytest.fixture
def precious(tmp_path):
    """A folder that a planted link leads to, with files named as in a cache."""
    for name in ("ab/" + "a" * 64, "letter.txt", "new/tmp123", "a" * 64, "below/" + "a" * 64):
        path = tmp_path / "precious" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
        os.utime(path, (1, 1))
    return tmp_path / "precious"


def replace_by_link(path, target):
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(target)


def snapshot(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "planted",
    [
        "objects", "objects/new", "objects/ab", "objects/new/folder", "downloads", "downloads/new",
        "downloads/ab/" + "b" * 64, "downloads/new/" + "c" * 64, "downloads/new/" + "c" * 64 + "/files",
    ],
)  # fmt: skip
def test_nothing_is_deleted_or_touched_through_a_planted_link(cache, tmp_path, precious, planted):
    add_entry(cache, tmp_path)
    before = snapshot(precious)
    replace_by_link(cache.folder / planted, precious)
    reopened = reopen(cache)
    assert not reopened.has_object("a" * 64)  # it is damaged, and would be deleted
    reopened.delete(reopened.object_path("a" * 64))
    reopened.trim(max_bytes=0, max_age_seconds=0)
    reopened.clear()
    assert snapshot(precious) == before


def test_nothing_is_written_through_a_planted_link(cache, tmp_path, precious):
    sha256 = hashlib.sha256(b"weights").hexdigest()
    before = snapshot(precious)
    replace_by_link(cache.folder / "objects" / sha256[:2], precious)
    with pytest.raises(OSError, match="symbolic link"):
        add_entry(cache, tmp_path)
    replace_by_link(cache.folder / "trimmed", precious / "letter.txt")
    cache.trim()
    assert snapshot(precious) == before


def test_folders_that_a_link_is_deep_in_are_deleted_and_the_link_is_not_followed(cache, precious):
    folder = cache.incoming_folder("http://example.com/m.pt")
    deep = folder.joinpath(*["d"] * 200)
    cache.make_folder(deep)
    (deep / "link").symlink_to(precious)
    before = snapshot(precious)
    assert cache.clear() > 0
    assert not folder.exists()
    assert snapshot(precious) == before


def test_a_link_that_was_planted_as_an_entry_is_deleted_itself(cache, tmp_path, precious):
    add_entry(cache, tmp_path)
    link = cache.object_path("a" * 64)
    replace_by_link(link, precious / "letter.txt")
    assert not reopen(cache).has_object("a" * 64)
    assert not link.is_symlink()
    assert (precious / "letter.txt").exists()


def test_a_pipe_in_place_of_a_file_is_not_waited_for(cache, tmp_path):
    sha256 = add_entry(cache, tmp_path)
    for path in (cache.object_path(sha256), cache._named_path("projects", sha256)):
        path.unlink()
        os.mkfifo(path)
    reopened = reopen(cache)
    assert not reopened.has_object(sha256)
    assert reopened.load_record(sha256) is None


# -- records that somebody else wrote -------------------------------------------------------


def test_a_record_with_a_digest_of_its_own_is_not_believed(cache):
    cache.save_record("one", {"a": 1})
    (path,) = [path for path in list_files(cache) if "projects" in path.parts]
    text = json.dumps({"a": 2}).encode()
    path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    assert reopen(cache).load_record("one") is None
    assert not path.exists()


def test_a_record_under_the_name_of_a_different_one_is_not_believed(cache):
    cache.save_record("one", {"a": 1})
    cache.save_record("two", {"a": 2})
    shutil.copyfile(cache._named_path("projects", "one"), cache._named_path("projects", "two"))
    assert cache.load_record("two") is None
    assert cache.load_record("one") == {"a": 1}


def test_a_record_of_a_different_cache_is_not_believed(cache, tmp_path):
    other = Cache(tmp_path / "other")
    for each in (cache, other):
        each.save_record("one", {"a": 1})
    shutil.copyfile(other._named_path("projects", "one"), cache._named_path("projects", "one"))
    assert cache.load_record("one") is None


@pytest.mark.parametrize("change", ["readable by others", "a link", "too short", "absent"])
def test_a_key_that_others_may_know_is_replaced_and_its_records_count_no_more(cache, tmp_path, change):
    cache.save_record("one", {"a": 1})
    key = cache.folder / "key"
    content = key.read_bytes()
    if change == "readable by others":
        key.chmod(0o644)
    elif change == "too short":
        key.write_bytes(content[:8])
    else:
        key.rename(tmp_path / "key")
        if change == "a link":
            key.symlink_to(tmp_path / "key")
    reopened = reopen(cache)
    assert reopened.load_record("one") is None
    assert (key.is_symlink(), len(key.read_bytes()), key.stat().st_mode & 0o777) == (False, 32, 0o600)
    assert key.read_bytes() != content
    reopened.save_record("one", {"a": 2})
    assert reopen(cache).load_record("one") == {"a": 2}


def test_a_folder_that_is_not_writable_is_unavailable(tmp_path, monkeypatch, golden):
    Cache(tmp_path / "cache")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / "cache")
