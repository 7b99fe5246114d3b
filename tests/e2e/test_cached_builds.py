"""Builds that find something in the cache give the bytes of a build without it, and notice every change.

Which stage depends on which input is in tests/builder/incremental/test_keys.py.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import architectures
import numpy as np
import projects
import pytest
import torch
import yaml
from messages import mentions
from projects import LINEAR, package, project, python

import packager
from packager.bundle.fingerprint import list_files
from packager.common.cache import Cache
from packager.common.hashing import sha256_file
from packager.common.progress import Note
from packager.errors import (
    CacheDiffers,
    CheckpointDigestWrong,
    InputChanged,
    LockDrifted,
    LockSchemaUnknown,
    render_error,
)

SHA256 = hashlib.sha256

CODE = (
    "import sys, json\nfrom packager.builder.api import build\nresult = build(sys.argv[1], sys.argv[2])\n"
    "print(json.dumps({'cached': result.cached, 'modules': sorted(sys.modules)}))"
)


STATE = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}


@pytest.fixture
def linear(tmp_path):
    """The manifest of a small project that was never built."""
    return project(tmp_path / "project", LINEAR)


@pytest.fixture(scope="session")
def first_build(tmp_path_factory):
    """A folder with a small project, the bundle that was built from it, and the cache that this filled."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKAGER_CACHE", str(folder / "cache"))
        packager.build(project(folder / "project", LINEAR), folder / "out")
    return folder


@pytest.fixture
def cached(first_build, tmp_path, cache_folder):
    """The manifest of a project that was built before: a copy of `first_build`, with the bundle in `out`."""
    for name, target in (("project", tmp_path / "project"), ("out", tmp_path / "out"), ("cache", cache_folder)):
        shutil.copytree(first_build / name, target, dirs_exist_ok=True)
    path = tmp_path / "project/package.yaml"
    assert packager.build(path, tmp_path / "out").cached  # which remembers where it is now
    return path


def change(path, **sections):
    document = yaml.safe_load(path.read_text())
    document.update(sections)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def contents(bundle):
    return {path: (bundle / path).read_bytes() for path in list_files(bundle)}


def list_run_stages(result):
    """Return the stages that ran, of those that the cache may hold."""
    return {explanation.stage for explanation in result.explanation if not explanation.cached}


def get_reasons(result):
    return {explanation.stage: explanation.reasons for explanation in result.explanation}


def equals_uncached(path, tmp_path, result):
    """Return whether a build without the cache gives the same bytes."""
    uncached = packager.build(path, tmp_path / "uncached", cache="off")
    return contents(uncached.bundle) == contents(result.bundle)


def collect_notes(notes):
    """Return a listener that appends the text of every note to a list."""
    return lambda event: notes.append(event.message) if isinstance(event, Note) else None


# -- nothing to do --------------------------------------------------------------------------


def test_an_unchanged_project_is_not_built_again_and_nothing_heavy_is_imported(cached, tmp_path):
    before = contents(tmp_path / "out/net-1.0.0")
    # The first process to see it from this environment has only the cache to go by, the second its own memory.
    for _ in range(2):
        answer = projects.python(CODE, cached, tmp_path / "out")
        assert answer.returncode == 0, answer.stderr
        process = json.loads(answer.stdout)
        assert process["cached"]
    assert not {"torch", "onnx", "onnxruntime", "numpy", "pydantic", "yaml", "jinja2", "rich"} & {*process["modules"]}
    assert contents(tmp_path / "out/net-1.0.0") == before


def test_a_cached_build_returns_the_result_of_the_first(linear, tmp_path):
    first = packager.build(linear, tmp_path / "out")
    second = packager.build(linear, tmp_path / "out")
    assert (first.cached, second.cached) == (False, True)
    for name in ("bundle", "archive", "fingerprint", "parity", "facts"):
        assert getattr(first, name) == getattr(second, name)
    assert second.as_json()["stages"] == [{"name": "bundle", "cached": True, "seconds": 0.0}]
    assert [str(explanation) for explanation in second.explanation] == ["bundle: cached"]


@pytest.mark.parametrize("damage", ["changed", "added", "removed", "gone"])
def test_a_damaged_bundle_is_restored_from_the_cache(cached, tmp_path, damage):
    bundle = tmp_path / "out/net-1.0.0"
    before = contents(bundle)
    if damage == "changed":
        (bundle / "README.md").write_text("mine")
    elif damage == "added":
        (bundle / "more").write_text("mine")
    elif damage == "removed":
        (bundle / "model.ts").unlink()
    else:
        shutil.rmtree(bundle)
    second = packager.build(cached, tmp_path / "out")
    assert second.cached
    assert contents(second.bundle) == before
    assert packager.verify(second.bundle, trust_program=True).ok


def test_a_second_output_folder_gets_the_bundle_from_the_cache(cached, tmp_path):
    second = packager.build(cached, tmp_path / "two")
    assert second.cached
    assert contents(tmp_path / "out/net-1.0.0") == contents(second.bundle)


def test_a_copy_of_the_project_is_found_in_the_cache(cached, tmp_path):
    copy = shutil.copytree(cached.parent, tmp_path / "copy")
    assert packager.build(copy / "package.yaml", tmp_path / "out").cached


def test_without_the_cache_everything_is_built_and_nothing_is_cached(linear, tmp_path, cache_folder):
    for _ in range(2):
        assert not packager.build(linear, tmp_path / "out", cache="off").cached
    assert list(cache_folder.iterdir()) == []


# -- something changed ----------------------------------------------------------------------


def test_a_new_description_needs_no_torch(cached, tmp_path):
    change(cached, description="Different")
    answer = json.loads(projects.python(CODE, cached, tmp_path / "out").stdout)
    assert not answer["cached"]
    assert not {"torch", "onnx", "onnxsim"} & set(answer["modules"])
    result = packager.build(cached, tmp_path / "out")
    assert equals_uncached(cached, tmp_path, result)


@pytest.mark.parametrize(
    ("section", "stages"),
    [
        ({"parity": {"samples": 40}}, {"reference", "torchscript parity", "onnx parity", "bundle"}),
        ({"export": {"opset": 18}}, {"onnx", "onnx parity", "bundle"}),
        (
            {"torchscript": {"method": "script"}},
            {"torchscript", "torchscript parity", "onnx", "onnx parity", "bundle"},
        ),
    ],
    ids=["samples", "opset", "method"],
)
def test_a_changed_field_runs_only_the_stages_that_read_it(cached, tmp_path, section, stages):
    change(cached, **section)
    result = packager.build(cached, tmp_path / "out")
    assert list_run_stages(result) == stages
    assert equals_uncached(cached, tmp_path, result)


def test_real_inputs_explicit_tolerances_and_decisions_come_back_from_the_cache(cached, tmp_path):
    np.savez(cached.parent / "real.npz", x=np.ones((5, 4), np.float32))
    tolerance = {"atol": 1e-5, "rtol": 1e-4}
    parity = {"decisions": {"output_0": "argmax"}, "tolerance": tolerance, "data": "real.npz", "seed": 4}
    change(cached, parity=parity)
    result = packager.build(cached, tmp_path / "out")
    assert {"reference", "onnx parity", "torchscript parity"} <= list_run_stages(result)
    change(cached, description="Different")  # now the cases come from the cache too
    second = packager.build(cached, tmp_path / "out")
    assert list_run_stages(second) == {"bundle"}
    assert equals_uncached(cached, tmp_path, second)


STEEP = LINEAR.replace("return self.layer(x)", "return torch.sin(20000.0 * self.layer(x))")


def test_a_cached_program_still_tells_whether_the_module_makes_decisions(tmp_path):
    """The outputs are so steep that a nudge moves them by half their size: only a module with decisions is nudged."""
    path = project(tmp_path / "project", STEEP)
    packager.build(path, tmp_path / "out")
    change(path, parity={"samples": 40})
    result = packager.build(path, tmp_path / "out")
    assert {"trace", "export"}.isdisjoint(result.stages)
    assert equals_uncached(path, tmp_path, result)


@pytest.mark.slow
@pytest.mark.parametrize("parity", [{"samples": 60}, {"seed": 1}, {"decisions": {"scores": "rank"}}], ids=str)
def test_redrawn_and_extra_cases_come_back_from_the_cache(tmp_path, parity):
    image = {"image": {**architectures.DETECTOR.inputs["image"], "range": [0, 1]}}  # constant images: ties for topk
    path = architectures.write(replace(architectures.DETECTOR, inputs=image), tmp_path / "project")
    packager.build(path, tmp_path / "out")
    change(path, parity=parity)
    result = packager.build(path, tmp_path / "out")
    record = json.loads((result.bundle / "evidence/parity.json").read_text())
    assert any("where a tie decides" in note for note in record["not_checked"])
    assert any(case["name"] >= "1000" for case in record["cases"])
    change(path, parity=parity, description="Different")
    again = packager.build(path, tmp_path / "out")
    assert list_run_stages(again) == {"bundle"}
    assert equals_uncached(path, tmp_path, again)


def test_a_change_of_a_file_that_the_code_reads_or_of_the_weights_is_noticed(tmp_path):
    text = LINEAR.replace(
        "class Net", "FACTOR = float(open(__file__.replace('model.py', 'factor.txt')).read())\n\n\nclass Net"
    ).replace("self.layer(x)", "self.layer(x) * FACTOR")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/factor.txt").write_text("2")
    path = project(tmp_path / "project", text)
    results = [packager.build(path, tmp_path / "out")]
    assert packager.build(path, tmp_path / "out").cached
    (tmp_path / "project/factor.txt").write_text("3")
    results.append(packager.build(path, tmp_path / "out"))
    assert get_reasons(results[1])["reference"][0].startswith("read:factor.txt: ")
    torch.save({"layer.weight": torch.ones(3, 4), "layer.bias": torch.ones(3)}, path.parent / "best.pt")
    results.append(packager.build(path, tmp_path / "out"))
    assert get_reasons(results[2])["onnx"][0].startswith("checkpoint: ")
    assert len({result.fingerprint for result in results}) == 3
    assert all({"reference", "torchscript", "onnx"} <= list_run_stages(result) for result in results)


@pytest.mark.slow
def test_a_model_whose_trace_was_rejected_is_built_the_same_with_the_cache(tmp_path):
    text = LINEAR.replace(
        "return self.layer(x)", "y = self.layer(x)\n        return y if x.sum() > 0 else -y"
    )  # the trace keeps one side, so the cases decide that the module is scripted
    path = project(tmp_path / "project", text, torchscript={"method": "auto"})
    packager.build(path, tmp_path / "out")
    change(path, description="Different")
    result = packager.build(path, tmp_path / "out")
    assert list_run_stages(result) == {"bundle"}
    change(path, parity={"seed": 3})
    result = packager.build(path, tmp_path / "out")
    assert {"onnx", "torchscript"} <= list_run_stages(result)
    assert equals_uncached(path, tmp_path, result)


def test_a_model_that_keeps_a_table_between_calls_is_built_the_same_with_the_cache(tmp_path):
    lines = (
        "if self.table is None or self.table.shape[0] < x.shape[0]:",
        "    self.table = torch.arange(x.shape[0], dtype=torch.float32)[:, None]",
        "return self.layer(x) + self.table[: x.shape[0]]",
    )
    text = LINEAR.replace("return self.layer(x)", "\n        ".join(lines))
    text = text.replace("nn.Linear(4, 3)", "nn.Linear(4, 3)\n        self.table = None")
    path = project(tmp_path / "project", text, dims={"batch": {"max": 64}})
    packager.build(path, tmp_path / "out")
    for section, cached_stage in (
        ({"export": {"opset": 18}}, "reference"),
        ({"parity": {"samples": 20}}, "torchscript"),
    ):
        change(path, **section)
        result = packager.build(path, tmp_path / "out")
        assert cached_stage not in list_run_stages(result)
        assert equals_uncached(path, tmp_path, result)


@pytest.mark.slow
def test_a_branch_that_shows_late_is_built_the_same_when_only_the_fallback_is_cached(tmp_path):
    text = LINEAR.replace("return self.layer(x)", "y = self.layer(x)\n        return -y if x.max() > 9 else y")
    path = project(tmp_path / "project", text)
    packager.build(path, tmp_path / "out")
    change(path, optimize={"level": "basic"})
    result = packager.build(path, tmp_path / "out")
    assert list_run_stages(result) == {"onnx", "bundle"}
    stages = json.loads((result.bundle / "evidence/parity.json").read_text())["stages"]
    exporters = [stage["name"] for stage in stages if stage["name"].startswith("export: ")]
    order = ("torchscript, from the trace", "torch-export", "torchscript, from the script")
    assert exporters == [f"export: {exporter}" for exporter in order]
    assert equals_uncached(path, tmp_path, result)


@pytest.mark.slow
def test_a_model_whose_output_shapes_show_late_is_built_the_same_with_the_cache(tmp_path):
    text = LINEAR.replace("return self.layer(x)", "return self.layer(x)[x[:, 0] > 0.01]")  # all rows, most times
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 4], "range": [0, 1]}}
    path = project(tmp_path / "project", text, inputs=inputs, dims={"batch": {"max": 3}})
    packager.build(path, tmp_path / "out")
    change(path, optimize={"level": "basic"})
    result = packager.build(path, tmp_path / "out")
    assert list_run_stages(result) == {"onnx", "onnx parity", "bundle"}
    assert equals_uncached(path, tmp_path, result)


def test_a_pin_is_checked_even_if_everything_is_cached(cached, tmp_path):
    change(cached, checkpoint={"path": "best.pt", "sha256": "0" * 64})
    with pytest.raises(CheckpointDigestWrong):
        packager.build(cached, tmp_path / "out")


# -- a cache that cannot be trusted ---------------------------------------------------------


def test_damaged_files_in_the_cache_are_noticed_and_built_again(cached, tmp_path, cache_folder):
    bundle = tmp_path / "out/net-1.0.0"
    before = contents(bundle)
    for path in (cache_folder / "builds-1/objects").glob("[0-9a-f][0-9a-f]/*"):
        path.write_bytes(b"damaged" + path.read_bytes()[7:])
    shutil.rmtree(bundle)
    second = packager.build(cached, tmp_path / "out")
    assert not second.cached
    assert contents(second.bundle) == before
    shutil.rmtree(bundle)
    assert packager.build(cached, tmp_path / "out").cached


def test_damaged_records_in_the_cache_are_noticed(cached, tmp_path, cache_folder):
    for kind in ("actions", "projects", "digests"):
        for path in (cache_folder / "builds-1" / kind).glob("[0-9a-f][0-9a-f]/*"):
            path.write_bytes(path.read_bytes()[:-3])
    assert not packager.build(cached, tmp_path / "out").cached
    assert packager.build(cached, tmp_path / "out").cached


@pytest.mark.slow
def test_verifying_the_cache_builds_again_and_compares(cached, tmp_path, cache_folder):
    assert not packager.build(cached, tmp_path / "out", cache="verify").cached
    for path in (cache_folder / "builds-1/actions").glob("[0-9a-f][0-9a-f]/*"):
        content = json.loads(path.read_bytes().partition(b"\n")[2])
        if content["stage"] == "onnx":
            content["record"]["artifact"]["nodes"] += 1
            Cache(cache_folder).write_record(path, content)
    with pytest.raises(CacheDiffers) as differs:
        packager.build(cached, tmp_path / "out", cache="verify")
    assert differs.value.why == "onnx"
    packager.build(cached, tmp_path / "out", cache="verify")


def test_a_build_reports_an_unusable_cache_and_goes_on_without_it(linear, tmp_path, monkeypatch, golden):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACKAGER_CACHE", str(tmp_path / "file"))
    notes = []
    result = packager.build(linear, tmp_path / "out", listener=collect_notes(notes))
    assert packager.verify(result.bundle, trust_program=True).ok
    (note,) = notes
    golden(note, tmp_path / "file")


def test_a_build_reports_a_full_disk_under_the_cache_and_goes_on(linear, tmp_path, monkeypatch, golden):
    def add_object(self, source, sha256, digest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Cache, "add_object", add_object)
    notes = []
    result = packager.build(linear, tmp_path / "out", listener=collect_notes(notes))
    assert packager.verify(result.bundle, trust_program=True).ok
    (note,) = notes
    golden(note)


class CountedHash:
    """A SHA-256 that counts how often each digest is computed."""

    def __init__(self, counts, content=b""):
        self.counts, self.hash = counts, SHA256(content)

    def update(self, content):
        self.hash.update(content)

    def hexdigest(self):
        self.counts[self.hash.hexdigest()] += 1
        return self.hash.hexdigest()

    def digest(self):
        return self.hash.digest()


@pytest.mark.parametrize("cache", ["use", "off"])
def test_no_large_file_is_hashed_twice_in_a_cold_build(linear, tmp_path, monkeypatch, cache):
    counts = Counter()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", lambda content=b"", **_: CountedHash(counts, content))
        bundle = packager.build(linear, tmp_path / "out", cache=cache).bundle
    files = [linear.parent / "best.pt", bundle / "model.onnx", bundle / "model.ts"]
    assert [counts[sha256_file(file)] for file in files] == [1, 1, 1]
    assert packager.verify(bundle, trust_program=True).ok
    assert cache == "off" or packager.build(linear, tmp_path / "again").cached  # what was not hashed is intact


# -- changed during the build ---------------------------------------------------------------


def replace_at_trace(path, content):
    """Return a listener that lets a different process replace a file when the trace begins.

    The file is not overwritten: weights are mapped, and reading a page that was cut off is a bus error.
    """

    def listen(event):
        if getattr(event, "stage", "") == "trace":
            command = ["sh", "-c", 'cat > "$0.new" && mv "$0.new" "$0"', path]
            subprocess.run(command, input=content, check=True)

    return listen


def test_a_manifest_that_changes_during_the_build_is_reported(linear, tmp_path):
    notes, listen = [], replace_at_trace(linear, linear.read_bytes() + b"description: later\n")

    def listen_and_collect(event):
        listen(event)
        collect_notes(notes)(event)

    result = packager.build(linear, tmp_path / "out", listener=listen_and_collect)
    mentions(notes, linear)
    assert json.loads((result.bundle / "config.json").read_text())["description"] == ""
    assert not packager.build(linear, tmp_path / "out").cached


@pytest.mark.parametrize("name", ["best.pt", "model.py"])
def test_a_checkpoint_or_code_that_changes_during_the_build_is_refused(linear, tmp_path, name):
    path = linear.parent / name
    with pytest.raises(InputChanged) as caught:
        packager.build(linear, tmp_path / "out", listener=replace_at_trace(path, path.read_bytes() + b"\n"))
    mentions(caught.value.message, name)
    assert not (tmp_path / "out").exists()


# -- the lockfile ---------------------------------------------------------------------------


def test_a_locked_build_must_equal_the_one_that_wrote_the_lockfile(linear, tmp_path):
    packager.build(linear, tmp_path / "out", lock="write")
    locked = json.loads((linear.parent / "package.lock").read_text())
    assert locked["code"].keys() == {"model"}
    assert locked["artifacts"].keys() == {"config.json", "model.onnx", "model.ts"}
    assert packager.build(linear, tmp_path / "out", lock="require").cached
    packager.build(linear, tmp_path / "out", lock="require", cache="off")
    (linear.parent / "model.py").write_text(LINEAR + "# changed\n")
    with pytest.raises(LockDrifted) as drifted:
        packager.build(linear, tmp_path / "new", lock="require")
    assert [line.partition(":")[0] for line in drifted.value.why.splitlines()] == ["code model"]
    assert not (tmp_path / "new").exists()


def test_a_locked_build_names_the_inputs_that_differ_before_it_imports_torch(linear, tmp_path):
    (linear.parent / "scales.txt").write_text("1.0")
    (linear.parent / "pieces").mkdir()
    (linear.parent / "pieces/__init__.py").write_text("from pathlib import Path\n")
    reading = "from pieces import Path\nPath(__file__).with_name('scales.txt').read_text()"
    source = LINEAR.replace("import torch", f"import torch\n{reading}", 1)
    (linear.parent / "model.py").write_text(source)
    packager.build(linear, tmp_path / "out", lock="write")
    lock = json.loads((linear.parent / "package.lock").read_text())
    assert lock["code"].keys() == {"model", "pieces", "scales.txt"}
    code = """
import sys
import packager
from packager.errors import LockDrifted
try:
    packager.build(sys.argv[1], sys.argv[2], lock="require")
except LockDrifted as drifted:
    print([line.partition(":")[0] for line in drifted.why.splitlines()], "torch" in sys.modules)
"""
    changes = {
        "code model": lambda: (linear.parent / "model.py").write_text(source + "# changed\n"),
        "code pieces": lambda: (linear.parent / "pieces/__init__.py").write_text(
            "from pathlib import Path  # changed\n"
        ),
        "code scales.txt": lambda: (linear.parent / "scales.txt").write_text("2.0"),
        "checkpoint": lambda: shutil.copy(tmp_path / "out/net-1.0.0/model.onnx", linear.parent / "best.pt"),
        "manifest": lambda: change(linear, description="Different"),
        "toolchain torch": lambda: (linear.parent / "package.lock").write_text(
            json.dumps({**lock, "toolchain": {**lock["toolchain"], "torch": "1.0.0"}})
        ),
    }
    files = {path: path.read_bytes() for path in linear.parent.rglob("*") if path.is_file()}
    for name, make_change in changes.items():
        make_change()
        assert python(code, linear, tmp_path / "new").stdout == f"['{name}'] False\n"
        for path, content in files.items():
            path.write_bytes(content)
    packager.build(linear, tmp_path / "new", lock="require", cache="off")


def test_a_lockfile_without_the_manifest_says_nothing_about_it(cached, tmp_path):
    packager.build(cached, tmp_path / "out", lock="write")
    path = cached.parent / "package.lock"
    lock = json.loads(path.read_text())
    del lock["manifest"]
    path.write_text(json.dumps(lock))
    packager.build(cached, tmp_path / "out", lock="require")


def test_a_build_that_writes_the_lockfile_says_where_and_what_it_pins(cached, tmp_path, golden):
    notes = []
    packager.build(cached, tmp_path / "out", lock="write", listener=collect_notes(notes))
    tools = len(json.loads((cached.parent / "package.lock").read_text())["toolchain"])
    mentions(notes[-1], f"{tools} versions")
    golden(notes[-1].replace(f"{tools} versions", "<tools> versions"), cached.parent / "package.lock")


def test_every_build_reports_how_it_differs_from_the_lockfile(cached, tmp_path):
    packager.build(cached, tmp_path / "out", lock="write")
    change(cached, description="Different")
    notes = []
    for _ in range(2):
        packager.build(cached, tmp_path / "out", listener=collect_notes(notes))
    drifted = [f"differs from package.lock: {name}" for name in ("manifest", "artifact config.json", "fingerprint")]
    assert [": ".join(note.split(": ")[:2]) for note in notes] == drifted * 2


def test_an_edited_lockfile_is_noticed_even_if_nothing_else_changed(cached, tmp_path, golden):
    packager.build(cached, tmp_path / "out", lock="write")
    assert packager.build(cached, tmp_path / "out").cached
    lock = cached.parent / "package.lock"
    lock.write_text(lock.read_text().replace('"schema": 1', '"schema": 3'))
    with pytest.raises(LockSchemaUnknown) as caught:
        packager.build(cached, tmp_path / "out")
    assert caught.value.exit_status == 2
    golden(render_error(caught.value).splitlines()[0], "error[lock-schema-unknown]", lock, "3", "1")


# -- the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_explains_each_stage_on_stderr(linear, tmp_path):
    package("build", linear, "-o", tmp_path / "out")
    change(linear, export={"opset": 18})
    answer = package("build", linear, "-o", tmp_path / "out", "--explain", "--json")
    lines = [line for line in answer.stderr.splitlines() if line.startswith("explain: ")]
    assert lines[:4] == [
        "explain: reference: cached",
        "explain: torchscript: cached",
        "explain: torchscript parity: cached",
        "explain: onnx: export.opset: 20 → 18",
    ]
    stages = {stage["name"]: stage["cached"] for stage in json.loads(answer.stdout)["stages"]}
    assert stages["reference"] and stages["torchscript"] and not stages["onnx"]


def test_the_cache_can_be_inspected_and_emptied(cached, cache_folder, golden):
    info = json.loads(package("cache", "info", "--json").stdout)
    assert info["folder"] == str(cache_folder / "builds-1")
    assert info["actions"]["files"] == 6
    size = sum(info[kind]["bytes"] for kind in ("actions", "objects", "projects", "digests"))
    assert package("cache", "info").stdout.splitlines()[0] == f"folder     {cache_folder}/builds-1"
    assert json.loads(package("cache", "clean", "--json").stdout) == {"freed_bytes": size}
    golden(package("cache", "clean").stdout, "0")


def test_contradicting_flags_are_refused(linear, golden):
    answer = package("build", linear, "--no-cache", "--verify-cache")
    assert answer.returncode == 2
    golden(answer.stderr.splitlines()[0], "error[usage]")


# -- inputs that are easily forgotten -------------------------------------------------------


def test_an_asset_that_links_to_a_different_file_is_noticed(linear, tmp_path):
    for number in "12":
        (linear.parent / f"l{number}.txt").write_text(number)
    (linear.parent / "labels.txt").symlink_to("l1.txt")
    change(linear, assets=["labels.txt"])
    packager.build(linear, tmp_path / "out")
    (linear.parent / "labels.txt").unlink()
    (linear.parent / "labels.txt").symlink_to("l2.txt")
    result = packager.build(linear, tmp_path / "out")
    assert (result.bundle / "assets/labels.txt").read_text() == "2"


def test_modules_of_the_same_name_in_different_folders_are_told_apart(tmp_path):
    text = "import sys, os\nsys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))\n" + (
        LINEAR.replace("import torch\n", "import torch\nimport common_to_both\n", 1).replace(
            "self.layer(x)", "self.layer(x) * common_to_both.S"
        )
    )
    results = []
    for number in "12":
        folder = tmp_path / number
        folder.mkdir()
        (folder / "common_to_both.py").write_text(f"S = {number}.0\n")
        results.append(packager.build(project(folder / "project", text, state=STATE), tmp_path / f"out{number}"))
        sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    assert [result.cached for result in results] == [False, False]
    assert results[0].fingerprint != results[1].fingerprint


def test_a_module_that_was_missing_before_is_noticed(tmp_path):
    text = "try:\n    from fast import S\nexcept ImportError:\n    S = 1.0\n" + LINEAR.replace(
        "self.layer(x)", "self.layer(x) * S"
    )
    path = project(tmp_path / "project", text)
    packager.build(path, tmp_path / "out", lock="write")
    (path.parent / "fast.py").write_text("S = 2.0\n")
    result = packager.build(path, tmp_path / "out")
    assert not result.cached
    assert equals_uncached(path, tmp_path, result)
    with pytest.raises(LockDrifted):
        packager.build(path, tmp_path / "new", lock="require")


def test_code_may_change_the_working_directory_in_a_build_with_relative_paths(linear, tmp_path, monkeypatch):
    (linear.parent / "model.py").write_text("import os\nos.chdir('/')\n" + LINEAR)
    monkeypatch.chdir(linear.parent)
    result = packager.build("package.yaml", "out")
    assert packager.verify(linear.parent / "out/net-1.0.0", trust_program=True).ok
    assert result.bundle == Path("out/net-1.0.0")


GENERATES = """
import importlib.util
import os
import sys
import tempfile


def generated(text):
    if {once}:
        path = os.path.join(tempfile.gettempdir(), "generated.py")
        if not os.path.exists(path):
            open(path, "w").write(text)
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
            file.write(text)
        path = file.name
    spec = importlib.util.spec_from_file_location("generated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["generated"] = module
    return module
"""


@pytest.mark.parametrize(
    ("once", "check"), [(True, False), (False, False), pytest.param(False, True, marks=pytest.mark.slow)]
)
def test_code_that_generates_modules_is_found_in_the_cache_and_gives_the_same_bytes(tmp_path, monkeypatch, once, check):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))  # of the process that `check` starts
    text = LINEAR.replace("self.layer(x)", "scale(self.layer(x))")
    text += "\n\nscale = generated('def scale(x):\\n    return 2 * x\\n').scale\n"
    path = project(tmp_path / "project", "from helper import generated\n" + text, state=STATE)
    (path.parent / "helper.py").write_text(GENERATES.format(once=once))

    def build(**options):
        monkeypatch.delitem(sys.modules, "generated", raising=False)  # as in a process of its own
        return packager.build(path, tmp_path / "out", **options)

    first = build()
    assert len(list(temporary.glob("*.py"))) == 1
    config = json.loads((first.bundle / "config.json").read_text())
    second = build()
    assert second.cached and second.fingerprint == first.fingerprint
    assert build(cache="off", check=check).fingerprint == first.fingerprint  # although the module is there already
    for module in temporary.glob("*.py"):
        module.unlink()
    assert build().cached
    (path.parent / "helper.py").write_text(GENERATES.format(once=once) + "# changed\n")
    changed = build()
    assert not changed.cached
    code = json.loads((changed.bundle / "config.json").read_text())["source"]["code_sha256"]
    assert code != config["source"]["code_sha256"]


PATH_CHANGES = {
    "inserted": "sys.path.insert(0, LIB)",
    "in place of the project": "sys.path[0] = LIB",
    "a new list": "sys.path = [LIB, *sys.path]",
    "another working directory": "sys.path.insert(0, LIB)\nos.chdir(LIB)",
}


@pytest.mark.parametrize("statement", PATH_CHANGES.values(), ids=PATH_CHANGES)
def test_code_that_changes_the_import_path_is_cached_and_a_change_of_its_helper_is_noticed(tmp_path, statement):
    library = tmp_path / "library"
    library.mkdir()
    (library / "scaling_helper.py").write_text("SCALE = 1.0\n")
    head = f"import os, sys\nLIB = {str(library)!r}\n{statement}\nfrom scaling_helper import SCALE\n"
    text = head + LINEAR.replace("self.layer(x)", "self.layer(x) * SCALE")
    path = project(tmp_path / "project", text, state=STATE)
    search, entries, directory = sys.path, list(sys.path), os.getcwd()
    first = packager.build(path, tmp_path / "out")
    assert sys.path is search
    assert (sys.path, os.getcwd()) == (entries, directory)
    assert packager.build(path, tmp_path / "out").cached
    assert packager.build(path, tmp_path / "elsewhere").cached
    (library / "scaling_helper.py").write_text("SCALE = 20.0\n")
    changed = packager.build(path, tmp_path / "out")
    assert not changed.cached
    assert changed.fingerprint != first.fingerprint


def test_code_that_changes_the_import_path_is_found_in_the_cache_by_a_different_process(tmp_path):
    (tmp_path / "library").mkdir()
    head = "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', 'library'))\n"
    text = head + "from scaling_helper import SCALE\n" + LINEAR.replace("self.layer(x)", "self.layer(x) * SCALE")
    path = project(tmp_path / "project", text, state=STATE)

    def cached_in_a_different_process():
        built = projects.python(CODE, path, tmp_path / "out")
        assert built.returncode == 0, built.stderr
        return json.loads(built.stdout.splitlines()[-1])["cached"]

    for scale in (1.0, 20.0):
        (tmp_path / "library/scaling_helper.py").write_text(f"SCALE = {scale}\n")
        assert not packager.build(path, tmp_path / "out").cached
        assert cached_in_a_different_process()


@pytest.mark.parametrize("name", ["data.npz", "labels.txt"])
def test_real_inputs_or_an_asset_that_change_during_the_build_are_refused(linear, tmp_path, name):
    np.savez(linear.parent / "data.npz", x=np.ones((2, 4), np.float32))
    (linear.parent / "labels.txt").write_text("a")
    change(linear, parity={"data": "data.npz"}, assets=["labels.txt"])
    path = linear.parent / name
    with pytest.raises(InputChanged, match=name):
        packager.build(linear, tmp_path / "out", listener=replace_at_trace(path, path.read_bytes() + b"\n"))


def test_a_code_file_dated_in_the_future_counts_as_unchanged(linear, tmp_path):
    later = linear.parent / "model.py"
    os.utime(later, (4_000_000_000, 4_000_000_000))
    packager.build(linear, tmp_path / "out")


def test_a_file_that_the_code_writes_for_itself_counts_as_unchanged(tmp_path):
    text = (
        "from pathlib import Path\nmade = Path(__file__).with_name('made.txt')\n"
        "new = made.with_suffix('.new')\nnew.write_text('1')\nnew.replace(made)\nmade.read_text()\n" + LINEAR
    )
    path = project(tmp_path / "project", text)
    packager.build(path, tmp_path / "out")
    packager.build(path, tmp_path / "out")


def test_a_bundle_whose_cached_files_vanish_during_the_restore_is_built_again(cached, tmp_path, monkeypatch):
    bundle = tmp_path / "out/net-1.0.0"
    before = contents(bundle)
    (bundle / "README.md").write_text("mine")
    monkeypatch.setattr(Cache, "object_path", lambda self, sha256: self.folder / "objects/00/gone")
    second = packager.build(cached, tmp_path / "out")
    assert not second.cached
    assert contents(second.bundle) == before


def test_an_unreadable_lockfile_can_be_written_again(linear, tmp_path):
    (linear.parent / "package.lock").write_text("<<<<<<< HEAD\n")
    packager.build(linear, tmp_path / "out", lock="write")
    packager.build(linear, tmp_path / "out", lock="require")
