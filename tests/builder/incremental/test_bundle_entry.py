"""A cached entry is held against the inputs: whoever can write one cannot change what is shipped unnoticed."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
from projects import LINEAR, project

import packager
from packager.builder.incremental.bundle_entry import check_bundle_entry
from packager.builder.incremental.store import CacheEntry, CacheKey, look_up, put
from packager.builder.lockfile import read_lockfile
from packager.bundle.fingerprint import list_files
from packager.common.cache import open_cache
from packager.common.hashing import sha256_file


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a project that has an asset, the bundle that was built from it, and the cache that this filled."""
    root = tmp_path_factory.mktemp("original")
    folder = root / "project"
    folder.mkdir()
    (folder / "labels.txt").write_text("cat\ndog\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKAGER_CACHE", str(root / "cache"))
        packager.build(project(folder, LINEAR, assets=["labels.txt"]), root / "out", lock="write")
    return root


@pytest.fixture
def built(original, tmp_path, monkeypatch):
    """The manifest of a copy of that project, which is found in a copy of the cache, and a copy of its bundle."""
    monkeypatch.setenv("PACKAGER_CACHE", str(tmp_path / "cache"))
    for name in ("project", "out", "cache"):
        shutil.copytree(original / name, tmp_path / name)
    path = tmp_path / "project/package.yaml"
    result = packager.build(path, tmp_path / "out", lock="require")
    assert result.cached
    return path, result.bundle


def bundle_entry(cache):
    """The only bundle in the cache: its key and entry."""
    texts = [file.read_bytes().partition(b"\n")[2] for file in (cache.folder / "actions").glob("??/*")]
    (content,) = [content for content in map(json.loads, texts) if content["stage"] == "bundle"]
    key = CacheKey("bundle", content["inputs"])
    return key, look_up(cache, key)


def forge(changes, folder):
    """Write the bundle's entry with other contents of some files, as somebody who has the cache's key can."""
    cache = open_cache()
    key, entry = bundle_entry(cache)
    digests, paths = dict(entry.files), {name: cache.object_path(sha256) for name, sha256 in entry.files.items()}
    for name, content in changes.items():
        path = folder / f"forged {hashlib.sha256(content).hexdigest()}"
        path.write_bytes(content)
        digests[name], paths[name] = sha256_file(path), path
    put(cache, key, replace(entry, files=digests), paths)


def contents(bundle):
    return {path: (bundle / path).read_bytes() for path in list_files(bundle)}


def change_config(bundle, section, **changes):
    config = json.loads((bundle / "config.json").read_text())
    return json.dumps({**config, section: {**config[section], **changes}}).encode()


FORGERIES = {
    "an asset": lambda bundle: {"assets/labels.txt": b"dog\ncat\n"},
    "one more asset": lambda bundle: {"assets/more.txt": b"more"},
    "a file beside the model": lambda bundle: {"sitecustomize.py": b"evil()"},
    "a file outside": lambda bundle: {"../../escaped": b"evil()"},
    "a model that config.json does not name": lambda bundle: {"model.onnx": b"evil"},
    "a different checkpoint": lambda bundle: {
        "config.json": change_config(bundle, "source", checkpoint_sha256="0" * 64)
    },
    "a different manifest": lambda bundle: {"config.json": change_config(bundle, "source", manifest_sha256="0" * 64)},
    "an artifact outside": lambda bundle: {
        "config.json": change_config(bundle, "artifacts", onnx={"path": "../../x", "sha256": "0" * 64}),
    },
    "a list": lambda bundle: {"config.json": b"[]"},
    "deep nesting": lambda bundle: {"config.json": b"[" * 100_000},
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_entry_is_not_used(built, tmp_path, forgery):
    path, bundle = built
    before = contents(bundle)
    forge(forgery(bundle), tmp_path)
    cache = open_cache()
    key, entry = bundle_entry(cache)
    assert check_bundle_entry(key, entry, cache.object_path(entry.files["config.json"])) is None
    again = packager.build(path, tmp_path / "a" / "b")
    assert not again.cached
    assert contents(again.bundle) == before
    assert not list(tmp_path.rglob("escaped"))


def test_a_forged_model_differs_from_the_lockfile(built, tmp_path):
    """What no input decides is held against package.lock: its digests are compared with the files themselves."""
    path, bundle = built
    forge(
        {
            "model.onnx": b"evil",
            "config.json": change_config(
                bundle, "artifacts", onnx={"path": "model.onnx", "sha256": hashlib.sha256(b"evil").hexdigest()}
            ),
        },
        tmp_path,
    )
    with pytest.raises(packager.errors.LockDrifted) as caught:
        packager.build(path, tmp_path / "elsewhere", lock="require")
    assert "model.onnx" in caught.value.why


def test_what_a_record_says_about_the_bundle_is_not_believed(built, tmp_path):
    path, bundle = built
    cache = open_cache()
    key, entry = bundle_entry(cache)
    claims = {"fingerprint": "h1:evil", "parity": {"onnx": "pass"}, "lock": {"checkpoint": "0" * 64}}
    files = {name: cache.object_path(sha256) for name, sha256 in entry.files.items()}
    put(cache, key, CacheEntry({**entry.record, **claims}, entry.files), files)
    expected = (bundle / "FINGERPRINT").read_text().strip()
    for out in (bundle.parent, tmp_path / "elsewhere"):
        result = packager.build(path, out)
        assert (result.cached, result.fingerprint) == (True, expected)
        assert result.parity == json.loads((bundle / "config.json").read_text())["parity"]
    lock = read_lockfile(path.with_suffix(".lock"))
    packager.build(path, tmp_path / "third", lock="write")
    assert read_lockfile(path.with_suffix(".lock")) == lock
