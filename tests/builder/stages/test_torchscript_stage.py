"""The fallback: TorchScript, else an exported program, else ONNX alone, which the bundle says wherever it is read."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import carries, mentions
from projects import LINEAR, environment_without_torch, package, project, python, reseal

import packager
from packager.builder.results import LeftOut, describe_left_out
from packager.builder.stages import torchscript_stage
from packager.common.hashing import sha256_file
from packager.common.progress import Note
from packager.errors import BackendUnavailable, ExportFailed, NotABundle, ParityFailed, TorchScriptFailed
from packager.export import exported_program

NO_CODE = "y = y * sum([float(value) for value in map(float, range(2))])"  # torch.jit.script rejects map()
SPARSEMAX = """
import torch
from torch import nn


class Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ordered = torch.sort(x, descending=True, dim=-1).values
        total = ordered.cumsum(-1) - 1
        rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        count = (rank * ordered > total).sum(-1, keepdim=True)
        return torch.clamp(x - total.gather(-1, count - 1) / count.to(x.dtype), min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = Sparsemax.apply(self.layer(x))
        return y
"""
"""It can be traced, and no program with Python code in it can be saved."""


def returning(*lines):
    return LINEAR.replace("return self.layer(x)", "\n        ".join(["y = self.layer(x)", *lines]))


NOT_TRACED = returning(
    NO_CODE,
    "q = torch.stack([y, y + x[:, :3]], 1)[:, None]",
    "assert (q.shape[2] / 1).is_integer()",
    "return nn.functional.scaled_dot_product_attention(q, q, q)",
)
"""In a trace, a size is a tensor, which has no `is_integer`."""
BRANCH = returning("return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, (y,))")
"""torch.jit knows no torch.cond."""
TRACED_WRONG = returning(NO_CODE, "return y * torch.sym_float(x.shape[0])")
"""A trace fixes the batch; torch.export keeps it."""
NO_FALLBACK = SPARSEMAX.replace("return y\n", "return y if y.sum() > -1000 else y - 1\n")
"""It can be exported to ONNX from the trace alone: the branch, which always goes one way, stops torch.export."""


def build(folder, source, **sections):
    """Build a project; return the result and the notes."""
    events = []
    built = packager.build(project(folder / "project", source, **sections), folder / "out", listener=events.append)
    return built, [event.message for event in events if isinstance(event, Note)]


def read(bundle, name="config.json"):
    return json.loads((bundle / name).read_text())


def outputs_of_one_row(bundle):
    return packager.load(bundle)(x=np.ones((1, 4), np.float32))["output_0"]


def stages_of(bundle):
    return {stage["name"]: stage["verdict"] for stage in read(bundle, "evidence/parity.json")["stages"]}


@pytest.fixture
def broken(exported, tmp_path):
    """Return a copy of the bundle with an exported program, whose ONNX model does not load."""
    bundle = Path(shutil.copytree(exported[0].bundle, tmp_path / "copy" / "net-1.0.0"))
    (bundle / "model.onnx").write_bytes(b"not a model")
    reseal(bundle)
    return bundle


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Build a bundle whose fallback is an exported program."""
    return build(tmp_path_factory.mktemp("exported"), SPARSEMAX)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Build a bundle without a fallback."""
    return build(tmp_path_factory.mktemp("alone"), NO_FALLBACK)


# -- an exported program --------------------------------------------------------------------


def test_a_program_that_torchscript_cannot_save_is_shipped_as_an_exported_program(exported):
    built, notes = exported
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "pass"}
    config, parity = read(built.bundle), read(built.bundle, "evidence/parity.json")
    assert config["artifacts"]["torchscript"] is None
    assert config["artifacts"]["torch-export"]["path"] == "model.pt2"
    assert config["parity"] == built.parity
    assert config["left_out"]["torchscript"]["verdict"] == "not-checked"
    assert set(config["left_out"]) == {"torchscript"}
    assert (built.bundle / "model.pt2").exists() and not (built.bundle / "model.ts").exists()
    backend = parity["backends"]["torch-export"]
    assert backend["verdict"] == "pass" and backend["outputs"]["output_0"]["max_abs"] < 1e-6
    assert stages_of(built.bundle)["torch-export: exported program"] == "pass"
    (note,) = [note for note in notes if carries(note, "exported program")]
    mentions(note, "Sparsemax", "TorchScript")
    for text in (config["left_out"]["torchscript"]["reason"], parity["backends"]["torchscript"]["reason"]):
        assert text.count("Sparsemax") == 1
    mentions((built.bundle / "README.md").read_text(), "model.pt2", "exported program", "Sparsemax")
    mentions(built.facts["torch-export"], "exported program")


def test_an_exported_program_is_replayed_by_verify(exported):
    report = packager.verify(exported[0].bundle, trust_program=True)
    assert report.ok
    assert report.parity == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "pass"}
    (note,) = report.notes
    mentions(note, "torchscript", "not in this bundle", "Sparsemax")


def test_an_exported_program_is_loaded_where_onnx_is_not(exported, broken, caplog):
    x = np.random.default_rng(0).random((7, 4), dtype=np.float32)
    expected = packager.load(exported[0].bundle)(x=x)["output_0"]
    with caplog.at_level(logging.WARNING, logger="packager"):
        loaded = packager.load(broken, selftest=True, trust_program=True)
    assert loaded.backend == "torch-export"
    mentions(caplog.records[-1].getMessage(), "net-1.0.0", "torch.export", "onnxruntime")
    np.testing.assert_allclose(loaded(x=x)["output_0"], expected, atol=1e-6)
    with pytest.raises(BackendUnavailable) as caught:
        packager.load(broken, fallback=False)
    mentions(caught.value.hint, "fallback=True")


def test_an_exported_program_that_holds_more_than_a_program_is_not_loaded(broken):
    (broken / "model.pt2").write_bytes((broken / "model.pt2").read_bytes() + b"more")
    reseal(broken)
    with pytest.raises(BackendUnavailable) as caught:
        packager.load(broken, trust_program=True)
    mentions(caught.value.why, "onnxruntime", "torch.export", "archive")


def test_a_changed_exported_program_fails_the_replay(exported, tmp_path):
    bundle = Path(shutil.copytree(exported[0].bundle, tmp_path / "copy" / "net-1.0.0"))
    other, _ = build(tmp_path, SPARSEMAX.replace("y = Sparsemax", "y = 2 * Sparsemax"))
    shutil.copy(other.bundle / "model.pt2", bundle)
    config = read(bundle)
    config["artifacts"]["torch-export"]["sha256"] = sha256_file(bundle / "model.pt2")
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    report = packager.verify(bundle, trust_program=True)
    assert report.parity == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "fail"}
    assert not report.ok
    sections = {section.name: section.differences for section in packager.diff(exported[0].bundle, bundle).sections}
    assert [difference.where for difference in sections["torchscript"]] == ["model.pt2.sha256"]


def test_without_torch_an_exported_program_is_not_checked_and_not_loaded(exported, broken, tmp_path):
    code = (
        "import sys, json, packager\n"
        "print(json.dumps(packager.verify(sys.argv[1], trust_program=True).as_json()))\n"
        "try:\n"
        "    packager.load(sys.argv[2], trust_program=True)\n"
        "except packager.PackagerError as error:\n"
        "    print(json.dumps([error.why, error.hint]))\n"
    )
    done = python(code, exported[0].bundle, broken, env=environment_without_torch(tmp_path / "without"))
    assert done.returncode == 0, done.stderr
    report, (why, hint) = map(json.loads, done.stdout.splitlines())
    assert report["ok"]
    assert report["parity"] == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "not-checked"}
    mentions(report["notes"][-1], "torch-export", "torch is not installed")
    mentions(why, "torch.export", "torch")
    assert hint == "pip install torch"


def test_another_process_and_folder_give_the_same_exported_program(tmp_path):
    path = project(tmp_path / "project", SPARSEMAX)
    built = packager.build(path, tmp_path / "out", cache="off", check=True)
    assert built.parity["torch-export"] == "pass"


def test_an_exported_program_from_the_cache_is_checked_on_new_cases(tmp_path):
    build(tmp_path, SPARSEMAX)
    built, _ = build(tmp_path, SPARSEMAX, parity={"samples": 40})
    assert {"reference", "torchscript", "onnx"} <= set(built.stages)
    assert not {"trace", "export"} & set(built.stages)
    assert packager.verify(built.bundle, trust_program=True).parity["torch-export"] == "pass"
    built, _ = build(tmp_path, SPARSEMAX, parity={"samples": 40}, description="Different")
    assert set(built.stages) == {"reference", "torchscript", "onnx", "bundle"}
    assert built.recalled == {"reference", "torchscript", "onnx"}
    fresh = packager.build(tmp_path / "project/package.yaml", tmp_path / "fresh", cache="off")
    assert fresh.fingerprint == built.fingerprint


def test_a_module_that_can_be_neither_traced_nor_scripted_ships_onnx_and_an_exported_program(tmp_path):
    built, notes = build(tmp_path, NOT_TRACED)
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "pass"}
    stages = stages_of(built.bundle)
    assert stages["export: torch-export"] == "pass"
    assert (stages["torchscript: trace"], stages["torchscript: script"]) == ("not-checked", "not-checked")
    mentions(next(note for note in notes if carries(note, "exported program")), "trace", "is_integer", "script")
    unchecked = read(built.bundle, "evidence/parity.json")["not_checked"]
    assert len([item for item in unchecked if carries(item, "traced")]) == 1
    assert not [note for note in notes if carries(note, "control flow")]
    assert packager.verify(built.bundle, trust_program=True).ok


def test_a_branch_on_data_is_kept_by_both_artifacts(tmp_path):
    built, _ = build(tmp_path, BRANCH)
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "pass"}
    assert packager.verify(built.bundle, trust_program=True).ok


def test_the_causes_of_a_failed_trace_and_of_a_failed_export_are_all_named(tmp_path):
    source = NOT_TRACED.replace("return nn", "q = torch.lgamma(4 + q)\n        return nn")
    with pytest.raises(ExportFailed) as caught:
        build(tmp_path, source)
    trace, script, export = (problem.message for problem in caught.value.problems)
    mentions(trace, "torchscript, from the trace", "is_integer")
    mentions(script, "torchscript, from the script", "__float__")
    mentions(export, "torch-export", "lgamma")


def test_a_wrong_trace_is_left_out_with_its_verdict(tmp_path):
    built, notes = build(tmp_path, TRACED_WRONG)
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked", "torch-export": "pass"}
    config = read(built.bundle)
    assert config["left_out"]["torchscript"]["verdict"] == "fail"
    mentions(config["left_out"]["torchscript"]["reason"], "trace", "parity", "script")
    why = read(built.bundle, "evidence/parity.json")["backends"]["torchscript"]["reason"]
    mentions(why, "trace", "does not pass", "case", "script")
    mentions(next(note for note in notes if carries(note, "exported program")), "trace", "does not pass", "case")
    readme = (built.bundle / "README.md").read_text()
    assert "- torchscript, wrong: the trace does not pass" in readme
    for rows in (1, 2, 9):
        x = np.ones((rows, 4), np.float32)
        outputs = packager.load(built.bundle)(x=x)["output_0"]
        np.testing.assert_allclose(outputs, rows * outputs_of_one_row(built.bundle)[[0] * rows], rtol=1e-5)


# -- ONNX alone -----------------------------------------------------------------------------


def test_onnx_ships_alone_where_no_fallback_is_proven(alone):
    built, notes = alone
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked"}
    config = read(built.bundle)
    assert config["artifacts"]["onnx"] is not None
    assert config["artifacts"]["torchscript"] is None and "torch-export" not in config["artifacts"]
    assert {kind: entry["verdict"] for kind, entry in config["left_out"].items()} == {
        "torchscript": "not-checked",
        "torch-export": "not-checked",
    }
    assert not {"model.ts", "model.pt2"} & {path.name for path in built.bundle.iterdir()}
    note = next(note for note in notes if carries(note, "alone"))
    mentions(built.facts["fallback"], "none", "Sparsemax", "GuardOnDataDependentSymNode")
    for text in (note, (built.bundle / "README.md").read_text()):
        mentions(text, "fallback", "Sparsemax", "GuardOnDataDependentSymNode")
    assert packager.verify(built.bundle, trust_program=True).ok


class Scaled(torch.nn.Module):
    """A module whose outputs are one percent too large."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) * 1.01


def test_a_build_exports_the_module_once_for_the_fallback_and_for_onnx(tmp_path, monkeypatch):
    export, calls = torch.export.export, []

    def count(*arguments, **options):
        calls.append(options["strict"])
        return export(*arguments, **options)

    monkeypatch.setattr(torch.export, "export", count)
    built, _ = build(tmp_path, SPARSEMAX, export={"exporter": "torch-export"})
    assert built.parity == {"onnx": "pass", "torch-export": "pass", "torchscript": "not-checked"}
    assert calls == [False]


def test_a_module_that_cannot_be_exported_is_not_exported_again_for_onnx(tmp_path, monkeypatch):
    export, calls = torch.export.export, []

    def fail(*arguments, **options):
        calls.append(options.get("strict"))
        if len(calls) > 2:  # torch.onnx captures the module in its own ways
            return export(*arguments, **options)
        raise ValueError("no way to export this")

    monkeypatch.setattr(torch.export, "export", fail)
    built, notes = build(tmp_path, SPARSEMAX, export={"exporter": "torch-export"})
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked"}
    mentions("\n".join(notes), "no way to export this")
    assert calls[:2] == [False, True] and len(calls) == 3


def test_an_exported_program_that_is_wrong_is_left_out_with_its_verdict(tmp_path, monkeypatch):
    export = exported_program.export

    def export_scaled(project, module, inputs):
        return export(project, Scaled(module), inputs)

    monkeypatch.setattr(exported_program, "export", export_scaled)
    built, notes = build(tmp_path, SPARSEMAX)
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked"}
    config = read(built.bundle)
    assert config["left_out"]["torch-export"] == {
        "verdict": "fail",
        "reason": "the exported program does not pass the parity check",
    }
    assert "torch-export" not in config["artifacts"]
    assert not (built.bundle / "model.pt2").exists()
    assert stages_of(built.bundle)["torch-export: exported program"] == "fail"
    mentions(next(note for note in notes if carries(note, "alone")), "the exported program does not pass", "PyTorch")
    assert "- torch-export, wrong: the exported program does not pass" in (built.bundle / "README.md").read_text()
    assert packager.verify(built.bundle, trust_program=True).ok
    rebuilt, _ = build(tmp_path, SPARSEMAX, description="Different")
    assert rebuilt.recalled == {"reference", "torchscript", "onnx"}


def test_a_branch_on_a_size_that_every_artifact_fixes_is_refused_with_each_verdict(tmp_path):
    path, events = project(tmp_path, returning(NO_CODE, "return y * 2 if x.shape[0] == 1 else y")), []
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "out", listener=events.append)
    mentions(
        "\n".join(problem.message for problem in caught.value.problems), "from the trace", "torch-export", "script"
    )
    mentions(caught.value.hint, "export.required: false", "fallback")
    notes = [event.message for event in events if isinstance(event, Note)]
    mentions("\n".join(notes), "the trace does not pass", "the exported program does not pass")
    assert not (tmp_path / "out").exists()


FRAMES = """
import math

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 3, 4, 4)

    def forward(self, x):
        frames = math.ceil((x.shape[-1] - 4) / 4) + sum(map(len, "x"))
        return self.layer(nn.functional.pad(x, (0, frames * 4 - x.shape[-1])))
"""
"""It pads its last frame, as audio codecs do, and cannot be scripted, because it calls map()."""
AUDIO = {"x": {"dtype": "float32", "shape": ["batch", 1, "samples"]}}


BY_METHOD = pytest.mark.parametrize(
    ("method", "check"),
    [("auto", False), *(pytest.param(method, True, marks=pytest.mark.slow) for method in ("auto", "trace"))],
)
"""The second build, in a process of its own, takes as long as the rest."""


@BY_METHOD
def test_sizes_that_forward_rounds_are_traced_where_the_trace_is_wrong_without_them(tmp_path, method, check):
    path = project(tmp_path / "p", FRAMES, inputs=AUDIO, dims={"samples": {"min": 4}}, torchscript={"method": method})
    events = []
    bundle = packager.build(path, tmp_path / "out", listener=events.append, check=check).bundle
    assert any(carries(event.message, "forward() rounds") for event in events if isinstance(event, Note))
    stages = json.loads((bundle / "evidence/parity.json").read_text())["stages"]
    assert [stage["verdict"] for stage in stages if stage["name"] == "torchscript: trace"] == ["fail", "pass"]
    assert json.loads((bundle / "config.json").read_text())["artifacts"]["torchscript"]["method"] == "trace"
    onnx, fallback = packager.load(bundle, fallback=False), torch.jit.load(bundle / "model.ts")
    for size in (4, 5, 8, 29):
        x, shape = np.ones((2, 1, size), np.float32), (2, 3, -(-size // 4))
        assert onnx.run({"x": x})["output_0"].shape == fallback(torch.from_numpy(x))[0].shape == shape


WINDOW = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3, 11))

    def forward(self, x):
        reach, length = sum(map(len, ["xxxxx"])), x.shape[-1]
        table, margin = self.table, max(length - reach - 1, 0)
        if margin > 0:
            table = nn.functional.pad(table, (margin, margin))
        start = max(reach + 1 - length, 0)
        return table[..., start : start + 2 * length - 1] * x.sum(-1, keepdim=True)
"""
"""It makes a table of positions as long as its input needs, with a branch that short inputs do not take: as VITS."""


@BY_METHOD
def test_a_branch_that_most_sizes_take_is_traced_at_larger_sizes(tmp_path, method, check):
    path = project(tmp_path / "p", WINDOW, inputs=AUDIO, dims={"samples": {"min": 4}}, torchscript={"method": method})
    bundle = packager.build(path, tmp_path / "out", check=check).bundle
    record = json.loads((bundle / "evidence/parity.json").read_text())
    verdicts = {stage["name"]: stage["verdict"] for stage in record["stages"]}
    assert verdicts["export: torchscript, from the trace"] == "fail"
    assert verdicts["export: torchscript, from a trace at larger sizes"] == "pass"
    assert any("model.py:14" in item for item in record["not_checked"])
    assert json.loads((bundle / "config.json").read_text())["artifacts"]["torchscript"]["method"] == "trace"
    onnx, fallback = packager.load(bundle, fallback=False), torch.jit.load(bundle / "model.ts")
    for size in (4, 5, 6, 7, 29):
        x = np.ones((2, 1, size), np.float32)
        expected = fallback(torch.from_numpy(x))[0].numpy()
        assert expected.shape == (2, 3, 2 * size - 1)
        np.testing.assert_allclose(onnx.run({"x": x})["output_0"], expected, rtol=1e-4, atol=1e-5)
    assert packager.verify(bundle, trust_program=True).ok


def test_inspect_says_that_there_is_no_fallback_and_why(alone, exported):
    text = package("inspect", alone[0].bundle).stdout
    mentions(" ".join(text.split()), "fallback", "none", "Sparsemax", "GuardOnDataDependentSymNode")
    text = package("inspect", exported[0].bundle).stdout
    mentions(" ".join(text.split()), "torch-export", "model.pt2", "torchscript left out")
    assert "runs only where ONNX loads" not in text


def test_a_bundle_without_a_fallback_that_does_not_load_says_why_there_is_none(alone, tmp_path):
    bundle = Path(shutil.copytree(alone[0].bundle, tmp_path / "net-1.0.0"))
    (bundle / "model.onnx").write_bytes(b"not a model")
    reseal(bundle)
    with pytest.raises(BackendUnavailable) as caught:
        packager.load(bundle)
    mentions(caught.value.why, "onnxruntime", "no fallback", "Sparsemax", "GuardOnDataDependentSymNode")


@pytest.mark.parametrize("left_out", [None, [], {"torchscript": "x"}, {"torchscript": {}}, {"onnx": {"reason": "x"}}])
def test_a_malformed_reason_is_refused_by_verify_and_does_not_crash_the_loader(alone, tmp_path, left_out):
    bundle = Path(shutil.copytree(alone[0].bundle, tmp_path / "net-1.0.0"))
    (bundle / "config.json").write_text(json.dumps({**read(bundle), "left_out": left_out}))
    reseal(bundle)
    assert not packager.verify(bundle, trust_program=True).ok
    if left_out != {"onnx": {"reason": "x"}}:
        with pytest.raises(NotABundle):
            packager.load(bundle)


@pytest.mark.parametrize("entry", [{}, {"path": "model.pt2"}, {"path": "gone", "sha256": "0" * 64}, "model.pt2"])
def test_a_malformed_entry_for_an_exported_program_is_refused(exported, tmp_path, entry):
    bundle = Path(shutil.copytree(exported[0].bundle, tmp_path / "net-1.0.0"))
    config = read(bundle)
    (bundle / "config.json").write_text(
        json.dumps({**config, "artifacts": {**config["artifacts"], "torch-export": entry}})
    )
    reseal(bundle)
    report = packager.verify(bundle, trust_program=True)
    assert not report.ok
    assert report.parity == {"onnx": "not-checked", "torchscript": "not-checked", "torch-export": "not-checked"}


def test_two_bundles_differ_in_why_they_have_no_fallback(alone, exported):
    sections = {item.name: item.differences for item in packager.diff(exported[0].bundle, alone[0].bundle).sections}
    where = [difference.where for difference in sections["torchscript"]]
    assert where == ["model.pt2", "left_out.torch-export"]


def test_a_bundle_without_a_fallback_is_restored_from_the_cache(tmp_path):
    build(tmp_path, NO_FALLBACK)
    built, _ = build(tmp_path, NO_FALLBACK, description="Different")
    assert built.recalled == {"reference", "torchscript", "onnx"}
    fresh = packager.build(tmp_path / "project/package.yaml", tmp_path / "fresh", cache="off")
    assert fresh.fingerprint == built.fingerprint


# -- a fallback that the manifest demands, or none at all ------------------------------------


def test_a_trace_that_is_demanded_and_cannot_be_saved_is_an_error(tmp_path):
    with pytest.raises(TorchScriptFailed) as caught:
        build(tmp_path, SPARSEMAX, torchscript={"method": "trace"})
    mentions(caught.value.problems[0].message, "trace", "Sparsemax")
    mentions(caught.value.hint, "torchscript.method: auto")
    assert not (tmp_path / "out").exists()


def test_a_trace_that_is_demanded_and_wrong_is_an_error(tmp_path):
    with pytest.raises(ParityFailed) as caught:
        build(tmp_path, TRACED_WRONG, torchscript={"method": "trace"})
    mentions(caught.value.problems[0].message, "the trace does not pass", "case")
    mentions(caught.value.hint, "torchscript.method: auto")


def test_no_fallback_is_tried_or_explained_if_the_manifest_asks_for_none(tmp_path):
    built, notes = build(tmp_path, SPARSEMAX, torchscript={"method": "none"})
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked"}
    assert "left_out" not in read(built.bundle)
    assert not [note for note in notes if carries(note, "fallback")]
    assert "no fallback" not in (built.bundle / "README.md").read_text()


@pytest.mark.parametrize("required", [True, False])
def test_a_model_with_neither_a_graph_nor_a_fallback_is_refused(tmp_path, required):
    source = NO_FALLBACK.replace("return torch.clamp(", "return torch.lgamma(4 + x) + torch.clamp(")
    with pytest.raises(ExportFailed) as caught:
        build(tmp_path, source, export={"required": required})
    text = "\n".join(problem.message for problem in caught.value.problems)
    mentions(
        text, "torchscript, from the trace", "torch-export", "fallback", "Sparsemax", "GuardOnDataDependentSymNode"
    )
    mentions(caught.value.hint, "export.required: false")
    assert not (tmp_path / "out").exists()


def test_an_exported_program_ships_alone_if_no_exporter_works_and_onnx_is_not_required(tmp_path):
    source = SPARSEMAX.replace("return torch.clamp(", "return torch.lgamma(4 + x) + torch.clamp(")
    built, notes = build(tmp_path, source, export={"required": False})
    assert built.parity == {"onnx": "not-checked", "torchscript": "not-checked", "torch-export": "pass"}
    mentions(next(note for note in notes if carries(note, "export.required")), "exported program")
    loaded = packager.load(built.bundle, fingerprint=built.fingerprint)
    assert loaded.backend == "torch-export"
    assert loaded(x=np.ones((5, 4), np.float32))["output_0"].shape == (5, 3)
    assert packager.verify(built.bundle, trust_program=True).ok


# -- the words ------------------------------------------------------------------------------


def test_a_cause_that_two_forms_share_is_given_once_and_a_measured_one_only_where_asked():
    entries = [
        LeftOut("torchscript", "trace", "not-checked", "no code:"),
        LeftOut("torchscript", "script", "not-checked", "no code:"),
        LeftOut("torch-export", "exported program", "fail", "y[0]: 1 for 2", "model.py:3", ("model.py:3",)),
    ]
    frozen = "; data-dependent control flow was fixed at trace time in model.py:3: it may be the cause"
    text = f"trace and script: no code; the exported program does not pass: y[0]: 1 for 2{frozen}"
    assert describe_left_out(entries) == text
    assert describe_left_out(entries, measured=False) == text.replace(": 1 for 2", "").replace(
        ": y[0]", " the parity check"
    )


@pytest.mark.parametrize("is_large", [False, True])
def test_the_weights_of_a_large_model_are_not_packed_a_second_time(tmp_path, monkeypatch, is_large):
    if is_large:
        monkeypatch.setattr(torchscript_stage, "_MAX_OPTIMIZED_BYTES", 4 * (4 * 3 + 3) - 1)
    bundle = packager.build(project(tmp_path), tmp_path / "out").bundle
    artifact = json.loads((bundle / "config.json").read_text())["artifacts"]["torchscript"]
    assert artifact["optimize_for_inference"] == (not is_large)
    stages = json.loads((bundle / "evidence/parity.json").read_text())["stages"]
    forms = [stage["name"] for stage in stages if "freeze" in stage["name"]]
    assert [("optimize for inference" in form) for form in forms] == [not is_large]
    assert packager.verify(bundle, trust_program=True).ok
