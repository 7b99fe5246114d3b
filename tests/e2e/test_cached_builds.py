"""Builds that find something in the cache: what is done again, what is not, and that it makes no difference."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import architectures
import numpy as np
import projects
import pytest
import torch
import yaml
from messages import mentions
from projects import LINEAR, package, project

import packager
from packager.bundle.fingerprint import list_files
from packager.errors import CacheDiffers, CheckpointDigestWrong, InputChanged, LockDrifted

CODE = (
    "import sys, json\nfrom packager.builder.api import build\nresult = build(sys.argv[1], sys.argv[2])\n"
    "print(json.dumps({'cached': result.cached, 'modules': sorted(sys.modules)}))"
)


STATE = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}


@pytest.fixture
def linear(tmp_path):
    return project(tmp_path / "project", LINEAR)


def change(path, **sections):
    document = yaml.safe_load(path.read_text())
    document.update(sections)
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def contents(bundle):
    return {path: (bundle / path).read_bytes() for path in list_files(bundle)}


def done(result):
    """The stages that were not found in the cache, of those that can be."""
    return {one.stage for one in result.explanation if not one.cached}


def reasons(result):
    return {one.stage: one.reasons for one in result.explanation}


def as_without_cache(path, tmp_path, result):
    """Whether a build without the cache gives the same bytes."""
    plain = packager.build(path, tmp_path / "plain", cache="off")
    return contents(plain.bundle) == contents(result.bundle)


# -- nothing to do --------------------------------------------------------------------------


def test_a_second_build_of_the_same_imports_nothing_and_gives_the_same(linear, tmp_path):
    first = packager.build(linear, tmp_path / "out")
    before = contents(first.bundle)
    answer = projects.python(CODE, linear, tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    # The first process to see it from this environment has only the cache to go by, the second its own memory.
    assert found["cached"]
    found = json.loads(projects.python(CODE, linear, tmp_path / "out").stdout)
    assert found["cached"]
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "pydantic", "yaml", "jinja2", "rich"}
    assert not heavy & set(found["modules"])
    assert contents(first.bundle) == before


def test_a_second_build_says_the_same(linear, tmp_path):
    first = packager.build(linear, tmp_path / "out")
    second = packager.build(linear, tmp_path / "out")
    assert (first.cached, second.cached) == (False, True)
    for name in ("bundle", "archive", "fingerprint", "parity", "facts"):
        assert getattr(first, name) == getattr(second, name)
    assert second.as_json()["stages"] == [{"name": "bundle", "cached": True, "seconds": 0.0}]
    assert [str(one) for one in second.explanation] == ["bundle: cached"]


@pytest.mark.parametrize("damage", ["changed", "added", "removed", "gone"])
def test_a_bundle_that_is_not_what_was_built_is_restored(linear, tmp_path, damage):
    first = packager.build(linear, tmp_path / "out")
    before = contents(first.bundle)
    if damage == "changed":
        (first.bundle / "README.md").write_text("mine")
    elif damage == "added":
        (first.bundle / "more").write_text("mine")
    elif damage == "removed":
        (first.bundle / "model.ts").unlink()
    else:
        shutil.rmtree(first.bundle)
    second = packager.build(linear, tmp_path / "out")
    assert second.cached
    assert contents(second.bundle) == before
    assert packager.verify(second.bundle).ok


def test_another_output_folder_gets_the_bundle_from_the_cache(linear, tmp_path):
    first = packager.build(linear, tmp_path / "one")
    second = packager.build(linear, tmp_path / "two")
    assert second.cached
    assert contents(first.bundle) == contents(second.bundle)


def test_the_same_project_in_another_folder_is_found(linear, tmp_path):
    packager.build(linear, tmp_path / "out")
    copy = shutil.copytree(linear.parent, tmp_path / "copy")
    assert packager.build(copy / "package.yaml", tmp_path / "out").cached


def test_without_the_cache_everything_is_built_and_nothing_is_kept(linear, tmp_path, cache_folder):
    for _ in range(2):
        assert not packager.build(linear, tmp_path / "out", cache="off").cached
    assert list(cache_folder.iterdir()) == []


# -- something changed ----------------------------------------------------------------------


def test_a_description_assembles_again_and_needs_no_torch(linear, tmp_path):
    packager.build(linear, tmp_path / "out")
    change(linear, description="Another")
    answer = json.loads(projects.python(CODE, linear, tmp_path / "out").stdout)
    assert not answer["cached"]
    assert not {"torch", "onnx", "onnxsim"} & set(answer["modules"])
    result = packager.build(linear, tmp_path / "out")
    assert as_without_cache(linear, tmp_path, result)


@pytest.mark.parametrize(
    ("section", "redone", "why"),
    [
        ({"parity": {"seed": 1}}, {"reference", "torchscript", "onnx"}, ("reference", "parity.seed: 0 → 1")),
        ({"parity": {"samples": 40}}, {"reference"}, ("reference", "parity.samples: 8 → 40")),
        ({"export": {"opset": 18}}, {"onnx"}, ("onnx", "export.opset: 20 → 18")),
        ({"optimize": {"level": "basic"}}, {"onnx"}, ("onnx", "optimize.level: extended → basic")),
        ({"torchscript": {"method": "script"}}, {"torchscript", "onnx"}, ("onnx", "torchscript.method: auto → script")),
        ({"metadata": {"a": 1}}, set(), ("bundle", 'manifest.metadata: {} → {"a": 1}')),
    ],
)
def test_a_field_does_the_stages_again_that_read_it_and_no_others(linear, tmp_path, section, redone, why):
    packager.build(linear, tmp_path / "out")
    change(linear, **section)
    result = packager.build(linear, tmp_path / "out")
    made = {stage for stage in done(result) if not stage.endswith(" parity")} - {"bundle"}
    assert made == redone
    assert why[1] in reasons(result)[why[0]]
    assert as_without_cache(linear, tmp_path, result)


@pytest.mark.parametrize(
    "parity",
    [
        {"decisions": {"output_0": "argmax"}},
        {"tolerance": {"atol": 1e-5, "rtol": 1e-4}},
        {"data": "real.npz", "seed": 4},
    ],
    ids=["decisions", "tolerance", "data"],
)
def test_what_the_gate_is_told_judges_again_and_the_bundle_is_the_one_without_the_cache(linear, tmp_path, parity):
    np.savez(linear.parent / "real.npz", x=np.ones((5, 4), np.float32))
    packager.build(linear, tmp_path / "out")
    change(linear, parity=parity)
    result = packager.build(linear, tmp_path / "out")
    assert {"reference", "onnx parity", "torchscript parity"} <= done(result)
    change(linear, parity=parity, description="Another")  # now the cases come from the cache too
    again = packager.build(linear, tmp_path / "out")
    assert done(again) == {"bundle"}
    assert as_without_cache(linear, tmp_path, again)


STEEP = LINEAR.replace("return self.layer(x)", "return torch.sin(20000.0 * self.layer(x))")


def test_whether_a_module_decides_is_known_of_a_program_that_comes_from_the_cache(tmp_path):
    """A nudge moves this one by half its size: only what takes decisions is nudged."""
    path = project(tmp_path / "project", STEEP)
    packager.build(path, tmp_path / "out")
    change(path, parity={"samples": 40})
    result = packager.build(path, tmp_path / "out")
    assert {"trace", "export"}.isdisjoint(result.stages)
    assert as_without_cache(path, tmp_path, result)


@pytest.mark.slow
@pytest.mark.parametrize("parity", [{"samples": 60}, {"seed": 1}, {"decisions": {"scores": "rank"}}], ids=str)
def test_cases_that_were_drawn_anew_or_beyond_the_grid_come_back_from_the_cache(tmp_path, parity):
    image = {"image": {**architectures.DETECTOR.inputs["image"], "range": [0, 1]}}  # constant images: ties for topk
    path = architectures.write(replace(architectures.DETECTOR, inputs=image), tmp_path / "project")
    packager.build(path, tmp_path / "out")
    change(path, parity=parity)
    result = packager.build(path, tmp_path / "out")
    record = json.loads((result.bundle / "evidence/parity.json").read_text())
    assert any("where a tie decides" in one for one in record["not_checked"])
    assert any(case["name"] >= "1000" for case in record["cases"])
    change(path, parity=parity, description="Another")
    again = packager.build(path, tmp_path / "out")
    assert done(again) == {"bundle"}
    assert as_without_cache(path, tmp_path, again)


def test_artifacts_are_judged_on_new_cases_without_being_made_again(linear, tmp_path):
    packager.build(linear, tmp_path / "out")
    change(linear, parity={"samples": 40})
    result = packager.build(linear, tmp_path / "out")
    assert {"export", "trace"}.isdisjoint(result.stages)
    assert done(result) == {"reference", "torchscript parity", "onnx parity", "bundle"}


def test_new_weights_do_everything_again(linear, tmp_path):
    first = packager.build(linear, tmp_path / "out")
    torch.save({"layer.weight": torch.ones(3, 4), "layer.bias": torch.ones(3)}, linear.parent / "best.pt")
    result = packager.build(linear, tmp_path / "out")
    assert {"reference", "torchscript", "onnx"} <= done(result)
    assert result.fingerprint != first.fingerprint
    assert reasons(result)["onnx"][0].startswith("checkpoint: ")


def test_another_line_in_a_file_that_the_code_reads_does_everything_again(tmp_path):
    text = LINEAR.replace(
        "class Net", "FACTOR = float(open(__file__.replace('model.py', 'factor.txt')).read())\n\n\nclass Net"
    ).replace("self.layer(x)", "self.layer(x) * FACTOR")
    (tmp_path / "project").mkdir()
    (tmp_path / "project/factor.txt").write_text("2")
    path = project(tmp_path / "project", text)
    first = packager.build(path, tmp_path / "out")
    assert packager.build(path, tmp_path / "out").cached
    (tmp_path / "project/factor.txt").write_text("3")
    second = packager.build(path, tmp_path / "out")
    assert not second.cached
    assert second.fingerprint != first.fingerprint
    assert reasons(second)["reference"][0].startswith("read:factor.txt: ")


@pytest.mark.slow
def test_a_model_whose_first_choice_was_not_proven_is_built_the_same_with_the_cache(tmp_path):
    text = LINEAR.replace(
        "return self.layer(x)", "y = self.layer(x)\n        return y if x.sum() > 0 else -y"
    )  # the trace keeps one side, so the samples decide that the module is scripted
    path = project(tmp_path / "project", text, torchscript={"method": "auto"})
    packager.build(path, tmp_path / "out")
    change(path, description="Another")
    result = packager.build(path, tmp_path / "out")
    assert done(result) == {"bundle"}
    change(path, parity={"seed": 3})
    result = packager.build(path, tmp_path / "out")
    assert {"onnx", "torchscript"} <= done(result)
    assert as_without_cache(path, tmp_path, result)


@pytest.mark.parametrize("section", [{"export": {"opset": 18}}, {"parity": {"samples": 20}}])
def test_a_model_that_keeps_a_table_from_call_to_call_is_built_the_same_with_the_cache(tmp_path, section):
    lines = (
        "if self.table is None or self.table.shape[0] < x.shape[0]:",
        "    self.table = torch.arange(x.shape[0], dtype=torch.float32)[:, None]",
        "return self.layer(x) + self.table[: x.shape[0]]",
    )
    text = LINEAR.replace("return self.layer(x)", "\n        ".join(lines))
    text = text.replace("nn.Linear(4, 3)", "nn.Linear(4, 3)\n        self.table = None")
    path = project(tmp_path / "project", text, dims={"batch": {"max": 64}})
    packager.build(path, tmp_path / "out")
    change(path, **section)
    result = packager.build(path, tmp_path / "out")
    assert "reference" not in done(result) or "torchscript" not in done(result)
    assert as_without_cache(path, tmp_path, result)


@pytest.mark.slow
def test_a_branch_that_shows_late_is_built_the_same_where_only_the_fallback_comes_from_the_cache(tmp_path):
    text = LINEAR.replace("return self.layer(x)", "y = self.layer(x)\n        return -y if x.max() > 9 else y")
    path = project(tmp_path / "project", text)
    packager.build(path, tmp_path / "out")
    change(path, optimize={"level": "basic"})
    result = packager.build(path, tmp_path / "out")
    assert done(result) == {"onnx", "bundle"}
    stages = json.loads((result.bundle / "evidence/parity.json").read_text())["stages"]
    tried = [one["name"] for one in stages if one["name"].startswith("export: ")]
    ways = ("torchscript, from the trace", "torch-export", "torchscript, from the script")
    assert tried == [f"export: {way}" for way in ways]
    assert as_without_cache(path, tmp_path, result)


@pytest.mark.slow
def test_a_model_whose_shapes_are_known_late_is_built_the_same_with_the_cache(tmp_path):
    text = LINEAR.replace("return self.layer(x)", "return self.layer(x)[x[:, 0] > 0.01]")  # all rows, most times
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 4], "range": [0, 1]}}
    path = project(tmp_path / "project", text, inputs=inputs, dims={"batch": {"max": 3}})
    packager.build(path, tmp_path / "out")
    change(path, optimize={"level": "basic"})
    result = packager.build(path, tmp_path / "out")
    assert done(result) == {"onnx", "onnx parity", "bundle"}
    assert as_without_cache(path, tmp_path, result)


def test_a_pin_is_held_against_the_checkpoint_also_where_all_is_cached(linear, tmp_path):
    packager.build(linear, tmp_path / "out")
    change(linear, checkpoint={"path": "best.pt", "sha256": "0" * 64})
    with pytest.raises(CheckpointDigestWrong):
        packager.build(linear, tmp_path / "out")


# -- a cache that cannot be trusted ---------------------------------------------------------


def test_a_damaged_cache_is_noticed_and_built_anew(linear, tmp_path, cache_folder):
    first = packager.build(linear, tmp_path / "out")
    before = contents(first.bundle)
    for path in (cache_folder / "builds-1/objects").glob("[0-9a-f][0-9a-f]/*"):
        path.write_bytes(b"damaged" + path.read_bytes()[7:])
    shutil.rmtree(first.bundle)
    second = packager.build(linear, tmp_path / "out")
    assert not second.cached
    assert contents(second.bundle) == before
    shutil.rmtree(first.bundle)
    assert packager.build(linear, tmp_path / "out").cached


def test_records_that_are_damaged_are_noticed_too(linear, tmp_path, cache_folder):
    packager.build(linear, tmp_path / "out")
    for kind in ("actions", "projects", "digests"):
        for path in (cache_folder / "builds-1" / kind).glob("[0-9a-f][0-9a-f]/*"):
            path.write_bytes(path.read_bytes()[:-3])
    assert not packager.build(linear, tmp_path / "out").cached
    assert packager.build(linear, tmp_path / "out").cached


@pytest.mark.slow
def test_verifying_the_cache_builds_anew_and_compares(linear, tmp_path, cache_folder):
    packager.build(linear, tmp_path / "out")
    assert not packager.build(linear, tmp_path / "out", cache="verify").cached
    for path in (cache_folder / "builds-1/actions").glob("[0-9a-f][0-9a-f]/*"):
        rest = json.loads(path.read_bytes().partition(b"\n")[2])
        if rest["stage"] == "onnx":
            rest["record"]["artifact"]["nodes"] += 1
            from packager.common.cache import write_record

            write_record(path, rest)
    with pytest.raises(CacheDiffers) as differs:
        packager.build(linear, tmp_path / "out", cache="verify")
    assert differs.value.why == "onnx"
    packager.build(linear, tmp_path / "out", cache="verify")


def test_a_cache_that_cannot_be_used_is_told_and_done_without(linear, tmp_path, monkeypatch, golden):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACKAGER_CACHE", str(tmp_path / "file"))
    answer = package("build", linear, "-o", tmp_path / "out")
    assert answer.returncode == 0
    golden(answer.stderr.splitlines()[0], tmp_path / "file")


def test_a_cache_whose_disk_is_full_is_told_and_the_bundle_is_built(linear, tmp_path, monkeypatch, golden):
    from packager.common.cache import Cache

    def full(self, source, sha256):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Cache, "add_object", full)
    told = []
    result = packager.build(linear, tmp_path / "out", listener=lambda event: told.append(getattr(event, "message", "")))
    assert packager.verify(result.bundle).ok
    (note,) = [message for message in told if message]
    golden(note)


# -- changed meanwhile ----------------------------------------------------------------------


def touching(path, what):
    """A listener that lets another process exchange a file when the trace begins.

    Not by cutting it: weights are mapped, and whoever reads a page that is gone gets a bus error.
    """

    def listen(event):
        if getattr(event, "stage", "") == "trace":
            # In the place of the old file: that is mapped, and cutting it short would end this process.
            replace_it = ["sh", "-c", 'cat > "$0.new" && mv "$0.new" "$0"', path]
            subprocess.run(replace_it, input=what, check=True)

    return listen


def test_a_manifest_that_changes_meanwhile_is_told(linear, tmp_path):
    told = []
    changed = linear.read_bytes() + b"description: later\n"

    def listen(event):
        touching(linear, changed)(event)
        told.append(getattr(event, "message", ""))

    result = packager.build(linear, tmp_path / "out", listener=listen)
    mentions(told, linear)
    assert json.loads((result.bundle / "config.json").read_text())["description"] == ""
    assert not packager.build(linear, tmp_path / "out").cached


@pytest.mark.parametrize("name", ["best.pt", "model.py"])
def test_a_checkpoint_or_code_that_changes_meanwhile_is_refused(linear, tmp_path, name):
    path = linear.parent / name
    with pytest.raises(InputChanged) as caught:
        packager.build(linear, tmp_path / "out", listener=touching(path, path.read_bytes() + b"\n"))
    mentions(caught.value.message, name)
    assert not (tmp_path / "out").exists()


# -- the lock -------------------------------------------------------------------------------


def test_a_locked_build_is_the_one_that_was_locked(linear, tmp_path):
    packager.build(linear, tmp_path / "out", lock="write")
    locked = json.loads((linear.parent / "package.lock").read_text())
    assert locked["code"].keys() == {"model"}
    assert locked["artifacts"].keys() == {"config.json", "model.onnx", "model.ts"}
    assert packager.build(linear, tmp_path / "out", lock="require").cached
    packager.build(linear, tmp_path / "out", lock="require", cache="off")
    (linear.parent / "model.py").write_text(LINEAR + "# changed\n")
    with pytest.raises(LockDrifted) as drifted:
        packager.build(linear, tmp_path / "new", lock="require")
    assert [line.partition(":")[0] for line in drifted.value.why.splitlines()] == [
        "code model", "artifact config.json", "fingerprint"
    ]  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_a_build_that_differs_from_the_lock_says_so_each_time_and_goes_on(linear, tmp_path):
    packager.build(linear, tmp_path / "out", lock="write")
    change(linear, description="Another")
    told = []
    for _ in range(2):
        packager.build(linear, tmp_path / "out", listener=lambda event: told.append(getattr(event, "message", "")))
    drifted = ["differs from package.lock: artifact config.json", "differs from package.lock: fingerprint"]
    assert [": ".join(one.split(": ")[:2]) for one in told if one] == drifted * 2


def test_a_lock_that_was_edited_is_noticed_where_nothing_else_changed(linear, tmp_path, golden):
    packager.build(linear, tmp_path / "out", lock="write")
    assert packager.build(linear, tmp_path / "out").cached
    lock = linear.parent / "package.lock"
    lock.write_text(lock.read_text().replace('"schema": 1', '"schema": 3'))
    answer = package("build", linear, "-o", tmp_path / "out")
    assert answer.returncode == 2
    golden(answer.stderr.splitlines()[0], "error[lock-schema-unknown]", lock, "3", "1")


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
    stages = {one["name"]: one["cached"] for one in json.loads(answer.stdout)["stages"]}
    assert stages["reference"] and stages["torchscript"] and not stages["onnx"]


def test_the_cache_can_be_looked_at_and_emptied(linear, tmp_path, cache_folder, golden):
    package("build", linear, "-o", tmp_path / "out")
    info = json.loads(package("cache", "info", "--json").stdout)
    assert info["folder"] == str(cache_folder / "builds-1")
    assert info["actions"]["files"] == 6
    held = sum(info[kind]["bytes"] for kind in ("actions", "objects", "projects", "digests"))
    assert package("cache", "info").stdout.splitlines()[0] == f"folder     {cache_folder}/builds-1"
    assert json.loads(package("cache", "clean", "--json").stdout) == {"freed_bytes": held}
    golden(package("cache", "clean").stdout, "0")


def test_flags_that_contradict_each_other_are_refused(linear, golden):
    answer = package("build", linear, "--no-cache", "--verify-cache")
    assert answer.returncode == 2
    golden(answer.stderr.splitlines()[0], "error[usage]")


# -- what decides, and is easily forgotten --------------------------------------------------


def test_a_link_among_the_assets_that_leads_elsewhere_is_noticed(linear, tmp_path):
    for number in "12":
        (linear.parent / f"l{number}.txt").write_text(number)
    (linear.parent / "labels.txt").symlink_to("l1.txt")
    change(linear, assets=["labels.txt"])
    packager.build(linear, tmp_path / "out")
    (linear.parent / "labels.txt").unlink()
    (linear.parent / "labels.txt").symlink_to("l2.txt")
    result = packager.build(linear, tmp_path / "out")
    assert (result.bundle / "assets/labels.txt").read_text() == "2"


def test_code_from_a_folder_on_the_path_is_not_taken_for_that_of_another(tmp_path):
    text = "import sys, os\nsys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))\n" + (
        LINEAR.replace("import torch\n", "import torch\nimport common_to_both\n", 1).replace(
            "self.layer(x)", "self.layer(x) * common_to_both.S"
        )
    )
    found = []
    for number in "12":
        folder = tmp_path / number
        folder.mkdir()
        (folder / "common_to_both.py").write_text(f"S = {number}.0\n")
        state = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)}
        found.append(packager.build(project(folder / "project", text, state=state), tmp_path / f"out{number}"))
        sys.path[:] = [one for one in sys.path if one != str(folder)]
    assert [one.cached for one in found] == [False, False]
    assert found[0].fingerprint != found[1].fingerprint


def test_a_new_module_in_the_place_of_one_that_was_not_there_is_noticed(tmp_path):
    text = "try:\n    from fast import S\nexcept ImportError:\n    S = 1.0\n" + LINEAR.replace(
        "self.layer(x)", "self.layer(x) * S"
    )
    path = project(tmp_path / "project", text)
    packager.build(path, tmp_path / "out", lock="write")
    (path.parent / "fast.py").write_text("S = 2.0\n")
    result = packager.build(path, tmp_path / "out")
    assert not result.cached
    assert as_without_cache(path, tmp_path, result)
    with pytest.raises(LockDrifted):
        packager.build(path, tmp_path / "new", lock="require")


def test_code_that_changes_the_working_directory_is_built_from_a_relative_path(linear, tmp_path, monkeypatch):
    (linear.parent / "model.py").write_text("import os\nos.chdir('/')\n" + LINEAR)
    monkeypatch.chdir(linear.parent)
    result = packager.build("package.yaml", "out")
    assert packager.verify(linear.parent / "out/net-1.0.0").ok
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


@pytest.mark.parametrize("once", [True, False])
def test_code_that_generates_modules_is_found_in_the_cache_and_gives_the_same_bytes(tmp_path, monkeypatch, once):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    text = LINEAR.replace("self.layer(x)", "scale(self.layer(x))")
    text += "\n\nscale = generated('def scale(x):\\n    return 2 * x\\n').scale\n"
    path = project(tmp_path / "project", "from helper import generated\n" + text, state=STATE)
    (path.parent / "helper.py").write_text(GENERATES.format(once=once))

    def build(*options):
        answer = package("build", path, "-o", tmp_path / "out", "--json", *options)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    first, left = build(), sorted(temporary.glob("*.py"))
    assert len(left) == 1
    config = json.loads((Path(first["bundle"]) / "config.json").read_text())
    again = build()
    assert again["cached"] and again["fingerprint"] == first["fingerprint"]
    assert build("--no-cache", "--check")["fingerprint"] == first["fingerprint"]  # the module is there, and not again
    for one in temporary.glob("*.py"):
        one.unlink()
    assert build()["cached"]
    (path.parent / "helper.py").write_text(GENERATES.format(once=once) + "# changed\n")
    changed = build()
    assert not changed["cached"]
    code = json.loads((Path(changed["bundle"]) / "config.json").read_text())["source"]["code_sha256"]
    assert code != config["source"]["code_sha256"]


PATH_CHANGES = {
    "inserted": "sys.path.insert(0, LIB)",
    "in place of the project": "sys.path[0] = LIB",
    "a new list": "sys.path = [LIB, *sys.path]",
    "another working directory": "sys.path.insert(0, LIB)\nos.chdir(LIB)",
}


@pytest.mark.parametrize("statement", PATH_CHANGES.values(), ids=PATH_CHANGES)
def test_code_that_changes_the_path_is_found_in_the_cache_and_a_change_of_its_helper_is_noticed(tmp_path, statement):
    library = tmp_path / "library"
    library.mkdir()
    (library / "scaling_helper.py").write_text("SCALE = 1.0\n")
    head = f"import os, sys\nLIB = {str(library)!r}\n{statement}\nfrom scaling_helper import SCALE\n"
    text = head + LINEAR.replace("self.layer(x)", "self.layer(x) * SCALE")
    path = project(tmp_path / "project", text, state={"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)})
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


def test_code_that_changes_the_path_is_found_in_the_cache_by_another_process(tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library/scaling_helper.py").write_text("SCALE = 1.0\n")
    head = "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', 'library'))\n"
    text = head + "from scaling_helper import SCALE\n" + LINEAR.replace("self.layer(x)", "self.layer(x) * SCALE")
    path = project(tmp_path / "project", text, state={"layer.weight": torch.ones(3, 4), "layer.bias": torch.zeros(3)})

    def cached():
        built = projects.python(CODE, path, tmp_path / "out")
        assert built.returncode == 0, built.stderr
        return json.loads(built.stdout.splitlines()[-1])["cached"]

    assert [cached(), cached()] == [False, True]
    (tmp_path / "library/scaling_helper.py").write_text("SCALE = 20.0\n")
    assert [cached(), cached()] == [False, True]


@pytest.mark.parametrize("name", ["data.npz", "labels.txt"])
def test_real_data_or_an_asset_that_changes_meanwhile_is_refused(linear, tmp_path, name):
    import numpy as np

    np.savez(linear.parent / "data.npz", x=np.ones((2, 4), np.float32))
    (linear.parent / "labels.txt").write_text("a")
    change(linear, parity={"data": "data.npz"}, assets=["labels.txt"])
    path = linear.parent / name
    with pytest.raises(InputChanged, match=name):
        packager.build(linear, tmp_path / "out", listener=touching(path, path.read_bytes() + b"\n"))


def test_a_file_of_the_code_dated_in_the_future_is_no_change(linear, tmp_path):
    later = linear.parent / "model.py"
    os.utime(later, (4_000_000_000, 4_000_000_000))
    packager.build(linear, tmp_path / "out")


def test_a_file_that_the_code_makes_for_itself_is_no_change(tmp_path):
    text = (
        "from pathlib import Path\nmade = Path(__file__).with_name('made.txt')\n"
        "new = made.with_suffix('.new')\nnew.write_text('1')\nnew.replace(made)\nmade.read_text()\n" + LINEAR
    )
    path = project(tmp_path / "project", text)
    packager.build(path, tmp_path / "out")
    packager.build(path, tmp_path / "out")


def test_an_object_that_vanishes_while_a_bundle_is_restored_leaves_the_old_one(linear, tmp_path, monkeypatch):
    first = packager.build(linear, tmp_path / "out")
    before = contents(first.bundle)
    (first.bundle / "README.md").write_text("mine")
    from packager.common.cache import Cache

    monkeypatch.setattr(Cache, "object_path", lambda self, sha256: tmp_path / "gone")
    second = packager.build(linear, tmp_path / "out")
    assert not second.cached
    assert contents(second.bundle) == before


def test_a_lock_that_cannot_be_read_can_be_written_anew(linear, tmp_path):
    (linear.parent / "package.lock").write_text("<<<<<<< HEAD\n")
    packager.build(linear, tmp_path / "out", lock="write")
    packager.build(linear, tmp_path / "out", lock="require")
