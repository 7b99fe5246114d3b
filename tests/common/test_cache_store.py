"""What was built from what: entries that come back whole or not at all, and upkeep that never harms."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.common import cache_store as caches
from packager.common.cache_store import Cache, CacheEntry, CacheKey, CacheUnavailable
from packager.common.hashing import sha256_file

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def kept(cache, folder, *, content=b"weights", inputs=None):
    """An action with one file, in the cache."""
    path = folder / "out.bin"
    path.write_bytes(content)
    action = CacheKey("stage", inputs or {"a": "1"})
    entry = CacheEntry({"answer": 42, "none": None, "list": [1.5, "x"]}, {"out.bin": sha256_file(path)})
    cache.put(action, entry, {"out.bin": path})
    path.unlink()
    return action, entry


def everything(cache):
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


# -- actions --------------------------------------------------------------------------------


def test_what_is_put_is_found_by_its_inputs(cache, tmp_path):
    action, entry = kept(cache, tmp_path)
    assert Cache(cache.folder.parent).look_up(action) == entry
    assert cache.object(entry.files["out.bin"]).read_bytes() == b"weights"
    assert cache.find(CacheKey("stage", {"a": "2"})) is None
    assert cache.find(CacheKey("other", {"a": "1"})) is None


@given(st.dictionaries(TEXT, TEXT, max_size=4), st.dictionaries(TEXT, TEXT, max_size=4))
def test_two_actions_have_one_id_only_where_their_inputs_are_equal(one, other):
    assert (CacheKey("stage", one).id == CacheKey("stage", other).id) == (one == other)


@given(st.dictionaries(TEXT, TEXT, min_size=2, max_size=4))
def test_the_order_of_the_inputs_does_not_matter(inputs):
    assert CacheKey("stage", inputs).id == CacheKey("stage", dict(reversed(inputs.items()))).id


def test_the_order_inside_a_record_comes_back(cache):
    action = CacheKey("stage", {})
    cache.put(action, CacheEntry({"b": 1, "a": {"z": 1, "y": 2}}, {}), {})
    found = Cache(cache.folder.parent).look_up(action)
    assert (list(found.record), list(found.record["a"])) == (["b", "a"], ["z", "y"])


def test_the_digest_of_an_output_says_nothing_of_the_inputs(cache, tmp_path):
    _, one = kept(cache, tmp_path, inputs={"a": "1"})
    _, other = kept(cache, tmp_path, inputs={"a": "2"})
    assert one.digest == other.digest != CacheEntry({}, one.files).digest
    assert len(list((cache.folder / "objects").glob("[0-9a-f][0-9a-f]/*"))) == 1


@pytest.mark.parametrize("position", [0, 10, 70, -2])
@pytest.mark.parametrize("kind", ["actions", "objects"])
def test_one_byte_changed_anywhere_in_an_entry_is_found_and_the_entry_is_gone(cache, tmp_path, kind, position):
    action, _ = kept(cache, tmp_path, content=bytes(100))
    (path,) = (cache.folder / kind).glob("[0-9a-f][0-9a-f]/*")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    fresh = Cache(cache.folder.parent)
    assert fresh.look_up(action) is None
    assert not path.exists()
    assert fresh.look_up(action) is None
    kept(fresh, tmp_path, content=bytes(100))
    assert Cache(cache.folder.parent).look_up(action) is not None


def test_an_object_that_is_gone_makes_its_entry_unknown(cache, tmp_path):
    action, entry = kept(cache, tmp_path)
    cache.object(entry.files["out.bin"]).unlink()
    assert Cache(cache.folder.parent).look_up(action) is None


def test_a_record_of_another_shape_is_unknown(cache):
    action = CacheKey("stage", {"a": "1"})
    caches._write_record(cache._path("actions", action.id), {"nothing": "of use"})
    assert cache.find(action) is None


def test_a_file_that_changes_while_it_is_kept_is_not_kept(cache, tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"new")
    with pytest.raises(OSError, match=r"out\.bin"):
        cache.put(CacheKey("stage", {}), CacheEntry({}, {"out.bin": "0" * 64}), {"out.bin": path})
    assert everything(cache) == []


def test_many_at_once_leave_whole_entries(cache, tmp_path):
    def work(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        own = Cache(cache.folder.parent)
        for round_ in range(10):
            kept(own, folder, content=b"shared", inputs={"round": str(round_)})
            kept(own, folder, content=b"%d" % number, inputs={"number": str(number)})
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(20)))
    fresh = Cache(cache.folder.parent)
    for inputs in [{"round": str(one)} for one in range(10)] + [{"number": str(one)} for one in range(20)]:
        assert fresh.look_up(CacheKey("stage", inputs)) is not None
    assert not list((cache.folder / "objects/new").iterdir())


def test_what_was_hashed_is_printed_where_that_is_asked_for(cache, monkeypatch, capsys):
    monkeypatch.setenv("PACKAGER_DEBUG_HASH", "1")
    action = CacheKey("stage", {"b": "2", "a": 'one "word"'})
    cache.find(action)
    assert capsys.readouterr().err == f'HASH {action.id}\n  stage: stage\n  a: "one \\"word\\""\n  b: "2"\n'


# -- projects and digests -------------------------------------------------------------------


def test_what_is_remembered_is_recalled_by_its_name(cache):
    cache.remember("one", {"a": [1, 2]})
    assert Cache(cache.folder.parent).load_record("one") == {"a": [1, 2]}
    assert cache.recall("two") is None


def settled(path):
    old = time.time() - 100
    os.utime(path, (old, old))


def test_a_digest_is_remembered_until_the_file_is_another(cache, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    monkeypatch.setattr(caches, "_MTIME_SETTLE_NS", 0)
    first = cache.sha256(path)
    monkeypatch.setattr(caches, "sha256_file", lambda path: "read again")
    assert cache.sha256(path) == first
    for change in (
        lambda: path.write_bytes(b"two"),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: (path.rename(tmp_path / "gone"), path.write_bytes(b"two")),
    ):
        change()
        assert cache.sha256(path) == "read again"


def test_a_file_that_was_only_just_written_is_hashed_each_time(cache, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    cache.sha256(path)
    assert not list((cache.folder / "digests").glob("[0-9a-f][0-9a-f]/*"))


# -- upkeep ---------------------------------------------------------------------------------


def test_what_was_not_used_for_long_goes_first_and_the_rest_until_it_fits(cache, tmp_path):
    for number in range(5):
        kept(cache, tmp_path, content=bytes([number]) * 1000, inputs={"n": str(number)})
    now = time.time()
    for path in everything(cache):
        os.utime(path, (now, now))
    for number in (1, 3):
        entry = cache.find(CacheKey("stage", {"n": str(number)}))
        os.utime(cache.object(entry.files["out.bin"]), (now - 100 * number, now - 100 * number))
    cache.trim_now(now, largest=1 << 30, oldest=250)
    found = [
        Cache(cache.folder.parent).look_up(CacheKey("stage", {"n": str(number)})) is not None for number in range(5)
    ]
    assert found == [True, True, True, False, True]
    cache.trim_now(now, largest=sum(path.stat().st_size for path in everything(cache)) - 500, oldest=250)
    found = [
        Cache(cache.folder.parent).look_up(CacheKey("stage", {"n": str(number)})) is not None for number in range(5)
    ]
    assert found == [True, False, True, False, True]


def test_what_is_not_its_own_is_never_touched(tmp_path):
    """A user may point PACKAGER_CACHE to a folder that has files of its own."""
    strangers = [tmp_path / "objects/ab/mesh.obj", tmp_path / "projects/thesis/chapter1.tex", tmp_path / "actions/x/y"]
    strangers += [tmp_path / "builds-1/objects/ab/mesh.obj", tmp_path / "builds-1/projects/thesis/chapter1.tex"]
    for path in strangers:
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1, 1))
    cache = Cache(tmp_path)
    kept(cache, tmp_path)
    cache.trim_now(time.time(), largest=0, oldest=0)
    cache.clear()
    assert all(path.exists() for path in strangers)


def test_it_is_trimmed_once_a_day(cache, tmp_path):
    kept(cache, tmp_path)
    cache.trim(oldest=-1)
    assert everything(cache) == [cache.folder / "trimmed"]
    kept(cache, tmp_path)
    cache.trim(oldest=-1)
    assert len(everything(cache)) == 3


def test_use_keeps_an_entry_from_being_trimmed(cache, tmp_path):
    action, entry = kept(cache, tmp_path)
    long_ago = time.time() - 1_000_000
    for path in everything(cache):
        os.utime(path, (long_ago, long_ago))
    assert Cache(cache.folder.parent).look_up(action) is not None
    cache.trim_now(time.time(), largest=1 << 30, oldest=500_000)
    assert Cache(cache.folder.parent).look_up(action) == entry


def test_cleaning_empties_it_and_says_how_much_that_was(cache, tmp_path):
    kept(cache, tmp_path)
    held = sum(path.stat().st_size for path in everything(cache))
    assert sum(size for _, size in cache.sizes().values()) == held
    assert cache.clean() == held
    assert everything(cache) == []
    kept(cache, tmp_path)


# -- where it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"PACKAGER_CACHE": "/somewhere"}, Path("/somewhere")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/packager")),
        ({}, Path.home() / ".cache/packager"),
    ],
)
def test_the_folder_is_the_one_asked_for_or_the_systems(where, expected, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert caches.default_cache_folder(where) == expected


def test_a_folder_that_cannot_be_made_is_unusable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnavailable, match="Not a directory"):
        Cache(tmp_path / "file" / "cache")


def test_a_folder_that_belongs_to_somebody_else_is_unusable(tmp_path, monkeypatch, golden):
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / "cache")


def test_a_folder_that_may_not_be_written_is_unusable(tmp_path, monkeypatch, golden):
    Cache(tmp_path / "cache")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(CacheUnavailable) as caught:
        Cache(tmp_path / "cache")
    golden(caught.value, tmp_path / "cache")


def test_records_are_json_and_objects_are_the_files_themselves(cache, tmp_path):
    action, entry = kept(cache, tmp_path)
    (path,) = (cache.folder / "actions").glob("[0-9a-f][0-9a-f]/*")
    assert json.loads(path.read_bytes().partition(b"\n")[2])["inputs"] == dict(action.inputs)
    (path,) = (cache.folder / "objects").glob("[0-9a-f][0-9a-f]/*")
    assert (path.name, path.read_bytes()) == (entry.files["out.bin"], b"weights")
