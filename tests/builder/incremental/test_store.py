"""The outcomes of build stages: an entry comes back whole or not at all."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.builder.incremental.store import CacheEntry, CacheKey, look_up, put
from packager.common.cache import Cache
from packager.common.hashing import sha256_file

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def reopen(cache):
    """The same folder without what this process remembers of it."""
    return Cache(cache.folder.parent)


def put_entry(cache, folder, *, content=b"weights", inputs=None):
    """Cache an entry with one file, and return its key and the entry."""
    path = folder / "out.bin"
    path.write_bytes(content)
    key = CacheKey("stage", inputs or {"a": "1"})
    entry = CacheEntry({"answer": 42, "none": None, "list": [1.5, "x"]}, {"out.bin": sha256_file(path)})
    put(cache, key, entry, {"out.bin": path})
    path.unlink()
    return key, entry


def test_an_entry_is_found_by_its_inputs(cache, tmp_path):
    key, entry = put_entry(cache, tmp_path)
    assert look_up(reopen(cache), key) == entry
    assert cache.object_path(entry.files["out.bin"]).read_bytes() == b"weights"
    assert look_up(cache, CacheKey("stage", {"a": "2"})) is None
    assert look_up(cache, CacheKey("other", {"a": "1"})) is None


@given(st.dictionaries(TEXT, TEXT, max_size=4), st.dictionaries(TEXT, TEXT, max_size=4))
def test_two_keys_have_one_id_only_if_their_inputs_are_equal(first, second):
    assert (CacheKey("stage", first).id == CacheKey("stage", second).id) == (first == second)


@given(st.dictionaries(TEXT, TEXT, min_size=2, max_size=4))
def test_the_order_of_the_inputs_does_not_matter(inputs):
    assert CacheKey("stage", inputs).id == CacheKey("stage", dict(reversed(inputs.items()))).id


def test_the_order_inside_a_record_comes_back(cache):
    key = CacheKey("stage", {})
    put(cache, key, CacheEntry({"b": 1, "a": {"z": 1, "y": 2}}, {}), {})
    entry = look_up(reopen(cache), key)
    assert (list(entry.record), list(entry.record["a"])) == (["b", "a"], ["z", "y"])


def test_the_digest_of_an_outcome_does_not_depend_on_the_inputs(cache, tmp_path):
    _, first = put_entry(cache, tmp_path, inputs={"a": "1"})
    _, second = put_entry(cache, tmp_path, inputs={"a": "2"})
    assert first.digest == second.digest != CacheEntry({}, first.files).digest
    assert len(list((cache.folder / "objects").glob("[0-9a-f][0-9a-f]/*"))) == 1


@pytest.mark.parametrize("position", [0, 10, 70, -2])
@pytest.mark.parametrize("kind", ["actions", "objects"])
def test_an_entry_with_one_changed_byte_is_deleted(cache, tmp_path, kind, position):
    key, _ = put_entry(cache, tmp_path, content=bytes(100))
    (path,) = (cache.folder / kind).glob("[0-9a-f][0-9a-f]/*")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    reopened = reopen(cache)
    assert look_up(reopened, key) is None
    assert not path.exists()
    assert look_up(reopened, key) is None
    put_entry(reopened, tmp_path, content=bytes(100))
    assert look_up(reopen(cache), key) is not None


def test_an_entry_whose_file_is_gone_is_unknown(cache, tmp_path):
    key, entry = put_entry(cache, tmp_path)
    cache.object_path(entry.files["out.bin"]).unlink()
    assert look_up(reopen(cache), key) is None


def test_the_files_are_not_checked_unless_they_are_needed(cache, tmp_path):
    key, entry = put_entry(cache, tmp_path)
    cache.object_path(entry.files["out.bin"]).unlink()
    assert look_up(reopen(cache), key, files=False) == entry


def test_a_record_of_a_different_shape_is_unknown(cache):
    key = CacheKey("stage", {"a": "1"})
    cache.write_record(cache.action_path(key.id), {"nothing": "of use"})
    assert look_up(cache, key) is None


def test_concurrent_writers_leave_whole_entries(cache, tmp_path):
    def write_entries(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        reopened = reopen(cache)
        for repetition in range(10):
            put_entry(reopened, folder, content=b"shared", inputs={"repetition": str(repetition)})
            put_entry(reopened, folder, content=b"%d" % number, inputs={"number": str(number)})
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(write_entries, range(20)))
    reopened = reopen(cache)
    for inputs in [{"repetition": str(number)} for number in range(10)] + [{"number": str(n)} for n in range(20)]:
        assert look_up(reopened, CacheKey("stage", inputs)) is not None
    assert not list((cache.folder / "objects/new").iterdir())


def test_the_hashed_text_is_printed_on_request(cache, monkeypatch, capsys):
    monkeypatch.setenv("PACKAGER_DEBUG_HASH", "1")
    key = CacheKey("stage", {"b": "2", "a": 'one "word"'})
    look_up(cache, key)
    assert capsys.readouterr().err == f'HASH {key.id}\n  stage: stage\n  a: "one \\"word\\""\n  b: "2"\n'


def test_records_are_json_and_objects_are_the_files_themselves(cache, tmp_path):
    key, entry = put_entry(cache, tmp_path)
    (path,) = (cache.folder / "actions").glob("[0-9a-f][0-9a-f]/*")
    assert json.loads(path.read_bytes().partition(b"\n")[2])["inputs"] == dict(key.inputs)
    (path,) = (cache.folder / "objects").glob("[0-9a-f][0-9a-f]/*")
    assert (path.name, path.read_bytes()) == (entry.files["out.bin"], b"weights")


def test_looking_an_entry_up_keeps_it_from_being_trimmed(cache, tmp_path):
    key, entry = put_entry(cache, tmp_path)
    long_ago = time.time() - 1_000_000
    for path in cache.folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert look_up(reopen(cache), key) is not None
    cache.trim_now(time.time(), max_bytes=1 << 30, max_age_seconds=500_000)
    assert look_up(reopen(cache), key) == entry
