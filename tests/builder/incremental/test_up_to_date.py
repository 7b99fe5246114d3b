"""Whether there is anything to build: all inputs are evaluated again, and one that cannot be counts as changed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from projects import LINEAR, project

import packager
from packager.builder.incremental import environment, up_to_date
from packager.builder.incremental.store import CacheEntry, CacheKey, look_up, put
from packager.bundle.fingerprint import list_files
from packager.common.cache import Cache, open_cache

READS = "import yaml\nopen(__file__.replace('model.py', 'factor.txt')).close()\n" + LINEAR


@dataclass(frozen=True)
class Built:
    """A build: its manifest and output folder, the cache, and the inputs and entry of its bundle."""

    manifest: Path
    out: Path
    cache: Cache
    inputs: up_to_date.RecordedInputs
    entry: CacheEntry


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build with an input of every kind that does not depend on the machine's settings."""
    root = tmp_path_factory.mktemp("built")
    folder = root / "project"
    folder.mkdir()
    (folder / "factor.txt").write_text("2")
    (folder / "labels.txt").write_text("a")
    np.savez(folder / "data.npz", x=np.ones((2, 4), np.float32))
    path = project(folder, READS, assets=["labels.txt"], parity={"data": "data.npz"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKAGER_CACHE", str(root / "cache"))
        packager.build(path, root / "out")
        cache = open_cache()
    texts = [file.read_text().partition("\n")[2] for file in (cache.folder / "projects").glob("??/*")]
    (record,) = [record for record in map(json.loads, texts) if "folder_name" in record]
    files = {name: Path(file) for name, file in record["files"].items()}
    inputs = up_to_date.RecordedInputs(record["inputs"], files, folder)
    entry = look_up(cache, CacheKey("bundle", inputs.values))
    return Built(path, root / "out", cache, inputs, entry)


def is_change(built, values):
    """Return whether these values of the inputs differ from the present ones."""
    return not up_to_date.are_unchanged(replace(built.inputs, values=values), built.cache.file_digest)


def find_with_values(built, values):
    """Remember the build as if its inputs had had these values, and return what the next build finds."""
    bundle = CacheKey("bundle", values)
    files = {name: built.out / "net-1.0.0" / name for name in list_files(built.out / "net-1.0.0")}
    put(built.cache, bundle, built.entry, files)
    up_to_date.remember_build(built.cache, built.manifest, "net-1.0.0", bundle, built.inputs.files)
    return up_to_date.find_up_to_date(built.cache, built.manifest, built.out)


def test_every_input_of_a_bundle_is_evaluated_again_unless_it_follows_from_one_that_is(built):
    values = built.inputs.values
    assert {name.partition(":")[0] for name in values if "." not in name.partition(":")[0]} == {
        "asset", "checkpoint", "code", "cores", "importable", "machine", "manifest", "package", "packager", "python",
        "read", "template", "tool",
    }  # fmt: skip
    assert "parity.data" in values
    assert not is_change(built, values)
    missed = {name for name in values if not is_change(built, {**values, name: f"{values[name]} "})}
    # Fields follow from the manifest's digest, and the digest of packager's code from file times compared before.
    fields = {name for name in values if name.startswith(("manifest.", "checkpoint.", "model."))}
    assert missed == {"packager", *fields}


@pytest.mark.parametrize("name", ["weather", "weather:today", "checkpoint.mtime", "code:nowhere", "model.mtime"])
def test_an_input_of_an_unknown_kind_counts_as_changed(built, name):
    values = built.inputs.values
    found = find_with_values(built, values)
    assert found is not None
    assert (found.name, found.summary) == ("net-1.0.0", built.entry.record["summary"])
    assert find_with_values(built, {**values, name: "sunny"}) is None


def test_manifest_fields_without_the_manifests_digest_count_as_changed(built):
    values = {name: value for name, value in built.inputs.values.items() if name != "manifest"}
    assert is_change(built, values)


def test_a_new_cpu_setting_and_a_new_template_count_as_changes(built, monkeypatch):
    values = built.inputs.values
    assert is_change(built, {name: value for name, value in values.items() if name != "template:README.md.j2"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    environment.collect_machine.cache_clear()
    try:
        assert is_change(built, values)
        assert not is_change(built, {**values, "environment:ONEDNN_MAX_CPU_ISA": "AVX2"})
    finally:
        environment.collect_machine.cache_clear()


def test_a_remote_checkpoint_is_unchanged_if_it_is_the_pinned_one(built):
    values, files = built.inputs.values, {**built.inputs.files}
    del files["checkpoint"]
    remote = replace(built, inputs=replace(built.inputs, files=files))
    assert is_change(remote, values)  # without a pin
    section = {**json.loads(values["manifest.checkpoint"]), "sha256": values["checkpoint"]}
    assert not is_change(remote, {**values, "manifest.checkpoint": json.dumps(section)})
