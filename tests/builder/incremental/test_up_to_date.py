"""Whether there is anything to build: every input of a bundle is evaluated again, and what cannot be is a change."""

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
    """A bundle that was built, where it is, and its inputs as the build remembered them."""

    manifest: Path
    out: Path
    cache: Cache
    inputs: up_to_date.RecordedInputs
    entry: CacheEntry


@pytest.fixture
def done(tmp_path):
    """A build with an input of every kind that does not depend on the machine's settings."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "factor.txt").write_text("2")
    (folder / "labels.txt").write_text("a")
    np.savez(folder / "data.npz", x=np.ones((2, 4), np.float32))
    path = project(folder, READS, assets=["labels.txt"], parity={"data": "data.npz"})
    packager.build(path, tmp_path / "out")
    cache = open_cache()
    texts = [file.read_text().partition("\n")[2] for file in (cache.folder / "projects").glob("??/*")]
    (record,) = [one for one in map(json.loads, texts) if "folder_name" in one]
    files = {name: Path(file) for name, file in record["files"].items()}
    inputs = up_to_date.RecordedInputs(record["inputs"], files, folder)
    entry = look_up(cache, CacheKey("bundle", inputs.values))
    return Built(path, tmp_path / "out", cache, inputs, entry)


def noticed(built, values):
    """Whether these inputs are seen to be others than those that there are now."""
    return not up_to_date.are_unchanged(replace(built.inputs, values=values), built.cache.file_digest)


def remembered(built, values):
    """What a build with these inputs, in the place of the real one, is found to be by the next."""
    bundle = CacheKey("bundle", values)
    files = {name: built.out / "net-1.0.0" / name for name in list_files(built.out / "net-1.0.0")}
    put(built.cache, bundle, built.entry, files)
    up_to_date.remember_build(built.cache, built.manifest, "net-1.0.0", bundle, built.inputs.files)
    return up_to_date.find_up_to_date(built.cache, built.manifest, built.out)


def test_every_input_of_a_bundle_is_evaluated_again_but_for_what_follows_from_one_that_is(done):
    values = done.inputs.values
    assert {name.partition(":")[0] for name in values if "." not in name.partition(":")[0]} == {
        "asset", "checkpoint", "code", "cores", "importable", "machine", "manifest", "package", "packager", "python",
        "read", "template", "tool",
    }  # fmt: skip
    assert "parity.data" in values
    assert not noticed(done, values)
    missed = {name for name in values if not noticed(done, {**values, name: f"{values[name]} "})}
    # Fields follow from the manifest's digest, and the digest of our code from its times, which `again` compares.
    fields = {name for name in values if name.startswith(("manifest.", "checkpoint.", "model."))}
    assert missed == {"packager", *fields}


@pytest.mark.parametrize("name", ["weather", "weather:today", "checkpoint.mtime", "code:nowhere", "model.mtime"])
def test_an_input_that_nothing_can_evaluate_is_a_change(done, name):
    values = done.inputs.values
    assert remembered(done, values) == ("net-1.0.0", done.entry)
    assert remembered(done, {**values, name: "sunny"}) is None


def test_fields_of_a_manifest_whose_digest_is_not_recorded_are_a_change(done):
    values = {name: value for name, value in done.inputs.values.items() if name != "manifest"}
    assert noticed(done, values)


def test_a_setting_that_has_come_and_a_template_that_was_not_there_are_changes(done, monkeypatch):
    values = done.inputs.values
    assert noticed(done, {name: value for name, value in values.items() if name != "template:README.md.j2"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    environment.collect_machine.cache_clear()
    try:
        assert noticed(done, values)
        assert not noticed(done, {**values, "environment:ONEDNN_MAX_CPU_ISA": "AVX2"})
    finally:
        environment.collect_machine.cache_clear()


def test_a_checkpoint_that_only_a_server_has_is_the_one_that_is_pinned(done):
    values, files = done.inputs.values, {**done.inputs.files}
    del files["checkpoint"]
    remote = replace(done, inputs=replace(done.inputs, files=files))
    assert noticed(remote, values)  # without a pin
    section = {**json.loads(values["manifest.checkpoint"]), "sha256": values["checkpoint"]}
    assert not noticed(remote, {**values, "manifest.checkpoint": json.dumps(section)})
