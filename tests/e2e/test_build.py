"""From a manifest to a bundle in its place, or to nothing at all."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import metadata

import jsonschema
import numpy as np
import projects
import pytest
import safetensors.numpy
import traces
from messages import carries, mentions
from projects import FLOATS, LINEAR, package, project, python

import packager
from packager.builder.vet import vet
from packager.bundle.fingerprint import list_files
from packager.cli.schemas import generate_schema
from packager.common.progress import Note
from packager.errors import (
    AssetNotFound,
    DataDoesNotFit,
    ExportFailed,
    ForwardFailed,
    OutputRefused,
    ParityFailed,
    TorchScriptFailed,
    WeightsNotExercised,
    render_error,
)


def returning(*lines):
    """Return a module of one linear layer whose forward() ends in these lines; `y` is the output of the layer."""
    return LINEAR.replace("return self.layer(x)", "\n        ".join(["y = self.layer(x)", *lines]))


def parity_of(bundle):
    return json.loads((bundle / "evidence/parity.json").read_text())


def config_of(bundle):
    return json.loads((bundle / "config.json").read_text())


def stages_of(bundle):
    return {stage["name"]: stage for stage in parity_of(bundle)["stages"]}


def predict(bundle, **inputs):
    return packager.load(bundle, fallback=False).run(inputs)


# -- the bundle -----------------------------------------------------------------------------


def test_the_bundle_has_the_documented_layout(built):
    assert built.bundle.name == "digits-cnn-1.0.0"
    assert list_files(built.bundle) == [
        "README.md",
        "assets/labels.txt",
        "config.json",
        "evidence/bom.cdx.json",
        "evidence/build.json",
        "evidence/golden.safetensors",
        "evidence/parity.intoto.json",
        "evidence/parity.json",
        "evidence/provenance.intoto.json",
        "model.onnx",
        "model.ts",
    ]
    assert os.listdir(built.bundle.parent) == [built.bundle.name]
    assert (built.bundle / "FINGERPRINT").read_text() == built.fingerprint + "\n"
    assert re.fullmatch(r"h1:[A-Za-z0-9+/]{43}=", built.fingerprint)


def test_sha256sum_accepts_the_bundle(built):
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=built.bundle, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == 11


@pytest.mark.parametrize(("name", "path"), [("config", "config.json"), ("parity", "evidence/parity.json")])
def test_the_records_match_their_schemas(built, name, path):
    jsonschema.validate(json.loads((built.bundle / path).read_text()), generate_schema(name))


def test_config_json_describes_the_bundle(built, digits):
    from packager.common.hashing import sha256_file

    config = config_of(built.bundle)
    assert (config["schema"], config["name"], config["version"]) == (1, "digits-cnn", "1.0.0")
    assert config["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8], "range": [0, 1]}]
    assert config["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert config["dims"] == {"batch": {"min": 1, "max": 16}}
    assert config["parity"] == {"onnx": "pass", "torchscript": "pass"}
    assert config["assets"] == ["labels.txt"]
    assert config["source"]["manifest_sha256"] == sha256_file(digits)
    assert config["source"]["checkpoint_sha256"] == sha256_file(digits.parent / "best.pt")
    assert (config["source"]["architecture"], config["source"]["parameters"]) == ("DigitsCNN", 1650)
    onnx, script = config["artifacts"]["onnx"], config["artifacts"]["torchscript"]
    assert (onnx["path"], onnx["sha256"]) == ("model.onnx", sha256_file(built.bundle / "model.onnx"))
    assert (script["path"], script["sha256"]) == ("model.ts", sha256_file(built.bundle / "model.ts"))
    assert onnx["opset"] == 20
    assert script["method"] == "trace"


def test_parity_json_records_the_comparison(built):
    parity = parity_of(built.bundle)
    assert parity["verdict"] == "pass"
    assert {16, 1, 2} <= {case["sizes"]["batch"] for case in parity["cases"]}
    assert parity["tolerance"]["logits"]["kind"] == "measured"
    for backend in parity["backends"].values():
        assert backend["verdict"] == "pass"
        errors = backend["outputs"]["logits"]
        assert 0 <= errors["of_limit"] <= 1
        assert errors["max_abs"] < 1e-4
        assert errors["cosine"] > 0.999
        assert backend["worst"]["output"] == "logits"
    names = list(stages_of(built.bundle))
    assert names == [
        "export: torchscript, from the trace", "simplify", "fuse", "optimize",
        "torchscript: trace", "torchscript: trace, freeze, fold, optimize for inference",
    ]  # fmt: skip
    golden = safetensors.numpy.load_file(built.bundle / "evidence/golden.safetensors")
    for case in parity["cases"]:
        assert case["golden"]
        assert golden[f"{case['name']}/output/logits"].shape == tuple(case["outputs"]["logits"]["shape"])


def test_the_readme_shows_how_to_use_the_bundle(built):
    text = (built.bundle / "README.md").read_text()
    for part in ("# digits-cnn 1.0.0", "packager.load", "logits", "image", "package verify", "sha256sum -c SHA256SUMS"):
        assert part in text
    assert "None" not in text


def test_the_readme_names_the_distribution_that_made_it_and_has_no_links(built):
    text = (built.bundle / "README.md").read_text()
    version = json.loads((built.bundle / "config.json").read_text())["source"]["toolchain"]["packager"]
    assert version == metadata.version("torch-packager")
    assert f"\nA bundle made by torch-packager {version} from a PyTorch checkpoint. It was compared with " in text
    assert f"\npip install torch_packager-{version}-py3-none-any.whl " in text
    assert "://" not in text


def test_the_result_can_be_printed_as_json(built):
    record = json.loads(json.dumps(built.as_json()))
    assert set(record) == {"bundle", "archive", "fingerprint", "cached", "stages", "parity", "not_compared", "notes"}
    assert record["bundle"] == str(built.bundle)
    assert record["fingerprint"] == built.fingerprint
    assert record["parity"] == {"onnx": "pass", "torchscript": "pass"}
    assert (record["archive"], record["cached"]) == (None, False)
    assert all(set(stage) == {"name", "cached", "seconds"} and stage["seconds"] >= 0 for stage in record["stages"])


def test_nothing_in_the_bundle_reveals_the_machine_it_was_built_on(built, digits):
    assert traces.find_traces(built.bundle, digits.parent, built.bundle.parent) == []


# -- reproducible ---------------------------------------------------------------------------

BUILD = (
    "import sys, packager\n"
    "print(packager.build(sys.argv[1], sys.argv[2], cache='off').fingerprint)\n"
)  # fmt: skip


@pytest.mark.slow
def test_a_different_process_folder_hash_seed_and_time_zone_give_the_same_fingerprint(built, digits, tmp_path):
    elsewhere = shutil.copytree(digits.parent, tmp_path / "else where")
    environment = {
        **os.environ, "PYTHONHASHSEED": "4711", "TZ": "Pacific/Auckland", "USER": "somebody", "LANG": "C",
        "HOME": str(tmp_path),
    }  # fmt: skip
    done = python(BUILD, "package.yaml", tmp_path / "other" / "deep", cwd=elsewhere, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == built.fingerprint + "\n"


def test_a_second_build_in_one_process_gives_the_same_bytes_and_replaces_the_first(tmp_path):
    path = project(tmp_path, LINEAR)
    first = packager.build(path, tmp_path / "out")
    before = {path: (first.bundle / path).read_bytes() for path in list_files(first.bundle)}
    second = packager.build(path, tmp_path / "out", cache="off")
    assert second.fingerprint == first.fingerprint
    assert {path: (second.bundle / path).read_bytes() for path in list_files(second.bundle)} == before


# -- exporters ------------------------------------------------------------------------------


def test_a_model_that_the_first_exporter_cannot_express_goes_to_the_second(tmp_path):
    path = project(tmp_path, returning("return torch.heaviside(y, torch.tensor(0.5))"))
    events = []
    built = packager.build(path, tmp_path / "out", listener=events.append)
    stages = stages_of(built.bundle)
    first = stages["export: torchscript, from the trace"]
    assert (first["kept"], first["verdict"]) == (False, "not-checked")
    mentions(first["reason"], "UnsupportedOperatorError", "aten::heaviside")
    assert stages["export: torch-export"]["kept"]
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any(carries(note, "torchscript, from the trace") and "Unsupported" in note for note in notes)
    assert set(np.unique(predict(built.bundle, x=np.ones((3, 4), np.float32))["output_0"])) <= {0.0, 0.5, 1.0}


BRANCH = returning("if x.sum() > 0:", "    return y", "return y - 100")


def test_a_branch_on_data_is_kept_by_scripting_the_module(tmp_path):
    events = []
    built = packager.build(project(tmp_path, BRANCH), tmp_path / "out", listener=events.append)
    config, stages = config_of(built.bundle), stages_of(built.bundle)
    assert config["artifacts"]["torchscript"]["method"] == "script"
    assert stages["export: torchscript, from the script"]["kept"]
    assert not stages["torchscript: trace"]["kept"]
    assert stages["torchscript: trace"]["verdict"] == "fail"
    notes = [event.message for event in events if isinstance(event, Note)]
    (note,) = [note for note in notes if carries(note, "model.py:13")]
    mentions(note, "output_0")
    x = np.ones((2, 4), np.float32)
    high, low = predict(built.bundle, x=x)["output_0"], predict(built.bundle, x=-x)["output_0"]
    assert high.max() > -10 > low.max()


def test_a_module_whose_trace_is_wrong_and_whose_script_fails_names_both_causes_once(tmp_path, golden):
    text = returning("if x.sum() > 0:", "    y = y - 100", "return y + sum([float(i) for i in map(float, range(2))])")
    events = []
    with pytest.raises(ParityFailed) as caught:
        packager.build(project(tmp_path, text), tmp_path / "out", listener=events.append)
    graph, export, trace, script = caught.value.problems
    assert [problem.where for problem in caught.value.problems] == [
        "model.py:14",
        "model.py:13",
        None,
        "model.py:15",
    ]
    mentions(graph.message, "torchscript, from the trace", "output_0[")
    mentions(export.message, "torch-export", "GuardOnDataDependentSymNode")
    mentions(trace.message, "fallback", "output_0[")
    golden(script.message, "fallback", "RuntimeError", "__float__")
    golden(caught.value.hint, "model.py:13", "torch.where", "export.required: false")
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len([note for note in notes if carries(note, "scripting the module instead")]) == 1


def test_a_hint_does_not_suggest_a_setting_that_is_already_made(tmp_path, golden):
    settings = {"torchscript": {"method": "none"}, "export": {"exporter": "torchscript"}}
    for text, error, facts in ((BRANCH, ParityFailed, ("model.py:13", "torch.where")), (NEITHER, ExportFailed, ())):
        with pytest.raises(error) as caught:
            packager.build(project(tmp_path / error.code, text, **settings), tmp_path / "out")
        golden(caught.value.hint, *facts, "torchscript.method: auto", "export.required: false")


def test_output_of_a_failing_torch_export_does_not_reach_the_user(tmp_path):
    done = package("build", project(tmp_path, BRANCH, export={"exporter": "torch-export"}), "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "def forward" not in done.stderr
    assert len(done.stderr.splitlines()) < 20


def test_a_model_that_torch_export_cannot_express_names_the_cause_and_the_line_once(tmp_path):
    path = project(tmp_path, BRANCH, export={"exporter": "torch-export"})
    with pytest.raises(ExportFailed) as caught:
        packager.build(path, tmp_path / "out")
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert problem.where == "model.py:13"
    mentions(problem.message, "torch-export", "GuardOnDataDependentSymNode")
    assert not (tmp_path / "out").exists()


NEITHER = returning("z = y * 2", "return torch.lgamma(z)")


def test_a_model_that_no_exporter_can_express_names_each_cause_and_the_users_line(tmp_path, golden):
    path = project(tmp_path, NEITHER)
    with pytest.raises(ExportFailed) as caught:
        packager.build(path, tmp_path / "out")
    trace, module, export = caught.value.problems
    assert trace.where == "model.py:14"
    mentions(trace.message, "torchscript, from the trace", "UnsupportedOperatorError", "aten::lgamma")
    mentions(module.message, "torchscript, from the module", "UnsupportedOperatorError", "lgamma")
    mentions(export.message, "torch-export", "DispatchError", "<OpOverload(op='prims.lgamma'")
    assert not any("\n" in problem.message for problem in caught.value.problems)
    golden(caught.value.hint, "export.required: false")
    assert not (tmp_path / "out").exists()


def test_an_opset_that_the_model_cannot_be_converted_to_is_refused_rather_than_replaced(tmp_path, golden):
    text = returning("return nn.functional.layer_norm(y, (3,))")  # an operator since opset 17
    with pytest.raises(ExportFailed) as caught:
        packager.build(project(tmp_path, text, export={"opset": 14, "exporter": "torch-export"}), tmp_path / "out")
    golden(caught.value.problems[0].message, "torch-export", "RuntimeError", "18", "export.opset", "14")


def test_the_graph_has_the_requested_opset(tmp_path):
    built = packager.build(project(tmp_path, LINEAR, export={"opset": 17}), tmp_path / "out")
    assert config_of(built.bundle)["artifacts"]["onnx"]["opset"] == 17


def test_torchscript_ships_alone_if_no_exporter_works_and_onnx_is_not_required(tmp_path, golden):
    built = packager.build(project(tmp_path, NEITHER, export={"required": False}), tmp_path / "out")
    assert built.parity == {"onnx": "not-checked", "torchscript": "pass"}
    assert config_of(built.bundle)["artifacts"]["onnx"] is None
    assert "model.onnx" not in list_files(built.bundle)
    report = packager.verify(built.bundle, trust_program=True)
    assert report.ok
    (line,) = report.notes
    golden(line)
    loaded = packager.load(built.bundle, fingerprint=built.fingerprint)
    assert loaded.backend == "torchscript"
    assert loaded(x=np.ones((5, 4), np.float32))["output_0"].shape == (5, 3)


def test_onnx_ships_alone_if_the_manifest_asks_for_no_torchscript(tmp_path, golden):
    settings = {"torchscript": {"method": "none"}, "optimize": {"simplify": False, "level": "none"}}
    built = packager.build(project(tmp_path, LINEAR, **settings), tmp_path / "out")
    assert built.parity == {"onnx": "pass", "torchscript": "not-checked"}
    assert "model.ts" not in list_files(built.bundle)
    assert list(stages_of(built.bundle)) == ["export: torchscript, from the trace"]
    assert packager.verify(built.bundle, trust_program=True).ok


def test_a_module_that_cannot_be_scripted_as_requested_is_refused(tmp_path, golden):
    text = returning("return sum(y * one for one in (1.0, 2.0) if type(one).__name__ == 'float')")
    with pytest.raises(TorchScriptFailed) as caught:
        packager.build(project(tmp_path, text, torchscript={"method": "script"}), tmp_path / "out")
    assert caught.value.problems[0].where == "model.py:13"
    golden(caught.value.hint, "torchscript.method: auto")


# -- dims that became fixed -----------------------------------------------------------------


def test_a_dim_that_a_trace_fixes_is_caught_and_the_module_scripted(tmp_path):
    built = packager.build(project(tmp_path, returning("return y.reshape(int(x.shape[0]), -1)")), tmp_path / "out")
    assert config_of(built.bundle)["artifacts"]["torchscript"]["method"] == "script"
    for rows in (1, 2, 9, 33):
        assert predict(built.bundle, x=np.ones((rows, 4), np.float32))["output_0"].shape == (rows, 3)


FIXED = returning("rows = int(x.shape[0])", "factor = {2: 1.0}.get(rows, 1.0) * len([0] * rows)", "return y * factor")


def test_a_dim_that_stays_fixed_is_refused(tmp_path):
    path = project(tmp_path, FIXED, torchscript={"method": "trace"})
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "out")
    assert caught.value.exit_status == 1
    mentions(caught.value.problems[0].message, "PyTorch")
    assert not (tmp_path / "out").exists()


# -- parity ---------------------------------------------------------------------------------

STRICT = {"tolerance": {"atol": 0, "rtol": 0}}
ROUNDING = returning("for _ in range(20):", "    y = torch.sin(y * 1.7) + torch.exp(-y * y)", "return y")


@pytest.mark.slow
def test_a_parity_failure_is_located_and_leaves_the_old_bundle_intact(tmp_path, golden):
    path = project(tmp_path, ROUNDING)
    old = packager.build(path, tmp_path / "out")
    settings = {"export": {"exporter": "torchscript"}, "torchscript": {"method": "trace"}}
    path = project(tmp_path, ROUNDING, parity=STRICT, **settings)
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "out")
    assert caught.value.exit_status == 1
    golden(caught.value.message)
    assert re.search(r"output_0\[\d+, \d\]\D*\d+\D*PyTorch.* -?\d\.\d+.* -?\d", render_error(caught.value))
    assert os.listdir(tmp_path / "out") == ["net-1.0.0"]
    assert packager.verify(old.bundle, fingerprint=old.fingerprint).ok
    with pytest.raises(ParityFailed):
        packager.build(path, tmp_path / "new")
    assert not (tmp_path / "new").exists() or os.listdir(tmp_path / "new") == []


def test_outputs_of_every_kind_pass(tmp_path):
    text = returning(
        "return {'float': y, 'half': y.half(), 'double': y.double(), 'index': y.argmax(1), 'flag': y > 0,",
        "        'small': y.argmax(1).to(torch.uint8), 'total': y.sum(), 'bad': torch.log(y), 'nested': [y + 1]}",
    )
    built = packager.build(project(tmp_path, text), tmp_path / "out")
    outputs = config_of(built.bundle)["outputs"]
    assert [(output["name"], output["dtype"], output["shape"]) for output in outputs] == [
        ("float", "float32", ["batch", 3]),
        ("half", "float16", ["batch", 3]),
        ("double", "float64", ["batch", 3]),
        ("index", "int64", ["batch"]),
        ("flag", "bool", ["batch", 3]),
        ("small", "uint8", ["batch"]),
        ("total", "float32", []),
        ("bad", "float32", ["batch", 3]),
        ("nested.0", "float32", ["batch", 3]),
    ]
    kinds = {name: tolerance["kind"] for name, tolerance in parity_of(built.bundle)["tolerance"].items()}
    assert kinds["index"] == kinds["flag"] == kinds["small"] == "exact"
    assert kinds["float"] == "measured"
    arrays = predict(built.bundle, x=np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32))
    assert [str(array.dtype) for array in arrays.values()] == [output["dtype"] for output in outputs]
    assert np.isnan(arrays["bad"]).any()


def test_a_forward_with_extra_arguments_is_vetted_and_passes(tmp_path):
    text = LINEAR.replace("forward(self, x)", "forward(self, x, *rest, scale=2.0, **kwargs)")
    path = project(tmp_path, text.replace("return self.layer(x)", "return scale * self.layer(x)"))
    assert vet(path).outputs[0]["shape"] == ("batch", 3)
    built = packager.build(path, tmp_path / "out")
    assert built.parity == {"onnx": "pass", "torchscript": "pass"}
    assert built.facts["torchscript"].endswith(", trace")


def test_inputs_of_several_dtypes_with_two_dynamic_dims_pass(tmp_path):
    inputs = {
        "x": {"dtype": "float64", "shape": ["batch", "length", 4]},
        "ids": {"dtype": "int32", "shape": ["batch", "length"], "range": [0, 7]},
        "mask": {"dtype": "bool", "shape": ["batch", "length"]},
        "scale": {"dtype": "float16", "shape": [], "range": [1, 2]},
    }
    text = LINEAR.replace("forward(self, x)", "forward(self, x, ids, mask, scale)").replace(
        "return self.layer(x)",
        "y = self.layer(x.float()) * scale.float() + ids[..., None]\n"
        "        return (y * mask[..., None]).sum(1), ids * 2",
    )
    settings = {"dims": {"length": {"min": 1, "max": 12}}, "outputs": ["pooled", "twice"]}
    built = packager.build(project(tmp_path, text, inputs=inputs, **settings), tmp_path / "out")
    outputs = config_of(built.bundle)["outputs"]
    assert [output["shape"] for output in outputs] == [["batch", 3], ["batch", "length"]]
    assert {case["sizes"]["length"] for case in parity_of(built.bundle)["cases"]} >= {1, 2, 12}


def test_real_inputs_are_a_case_of_their_own(tmp_path):
    np.savez(tmp_path / "real.npz", x=np.full((6, 4), 1000.0, np.float32))
    built = packager.build(project(tmp_path, LINEAR, parity={"data": "real.npz"}), tmp_path / "out")
    case = next(case for case in parity_of(built.bundle)["cases"] if case["name"] == "data")
    assert (case["sizes"], case["fill"], case["golden"]) == ({"batch": 6}, "data", True)


# -- where it goes --------------------------------------------------------------------------


def test_a_target_that_is_not_a_bundle_is_refused_before_any_work(tmp_path, golden):
    path = project(tmp_path, LINEAR)
    (tmp_path / "out" / "net-1.0.0").mkdir(parents=True)
    (tmp_path / "out" / "net-1.0.0" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputRefused) as caught:
        packager.build(path, tmp_path / "out")
    golden(render_error(caught.value), "error[output-refused]", tmp_path / "out" / "net-1.0.0")
    assert (tmp_path / "out" / "net-1.0.0" / "thesis.tex").read_text() == "years of work"


def test_force_replaces_a_folder_that_is_not_a_bundle(tmp_path):
    path = project(tmp_path, LINEAR)
    (tmp_path / "out" / "net-1.0.0").mkdir(parents=True)
    (tmp_path / "out" / "net-1.0.0" / "other").touch()
    built = packager.build(path, tmp_path / "out", force=True)
    assert packager.verify(built.bundle, trust_program=True).ok
    assert os.listdir(tmp_path / "out") == ["net-1.0.0"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    path = project(tmp_path, LINEAR)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputRefused) as caught:
        packager.build(path, tmp_path / "out")
    assert caught.value.exit_status == 2
    assert (tmp_path / "out").read_text() == "a file"


def test_assets_keep_their_paths_and_missing_ones_are_named(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "vocab.txt").write_bytes(b"one\r\ntwo\n")
    path = project(tmp_path, LINEAR, assets=["data/deep/vocab.txt", "model.py"])
    built = packager.build(path, tmp_path / "out")
    assert (built.bundle / "assets/data/deep/vocab.txt").read_bytes() == b"one\r\ntwo\n"
    assert config_of(built.bundle)["assets"] == ["data/deep/vocab.txt", "model.py"]
    path = project(tmp_path, LINEAR, assets=["model.py", "gone.txt"])
    with pytest.raises(AssetNotFound) as caught:
        packager.build(path, tmp_path / "new")
    assert caught.value.where == f"{path}:16: assets.1"
    assert not (tmp_path / "new").exists()


# -- killed, and a full disk ----------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_build_leaves_the_old_bundle_intact_and_the_next_one_cleans_up(tmp_path):
    path = projects.digits(tmp_path / "project")
    out = tmp_path / "out"
    old = packager.build(path, out)
    document = path.read_text()
    path.write_text(document.replace("assets:", "description: another\nassets:"))
    code = BUILD.replace("cache='off'", "cache='off', listener=tell")
    code = (
        "import sys\ndef tell(event):\n    print(type(event).__name__, getattr(event, 'stage', ''), flush=True)\n"
        + code
    )
    for moment in ("StageStarted trace", "StageFinished reference", "StageFinished onnx", "StageStarted bundle"):
        child = subprocess.Popen(
            [sys.executable, "-c", code, path, out], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        for line in child.stdout:
            if line.startswith(moment):
                os.kill(child.pid, signal.SIGKILL)
                break
        child.wait()
        child.stdout.close()
        assert child.returncode == -signal.SIGKILL, moment
        report = packager.verify(out / "digits-cnn-1.0.0", trust_program=True)
        assert report.ok
        visible = [name for name in os.listdir(out) if not name.startswith(".")]
        assert visible == ["digits-cnn-1.0.0"]
        if moment != "StageStarted bundle":  # after which the new one may be in place already
            assert report.fingerprint == old.fingerprint
    new = packager.build(path, out)
    assert os.listdir(out) == ["digits-cnn-1.0.0"]
    assert new.fingerprint != old.fingerprint


LIMITED = (
    "import os, resource, signal, sys\n"
    "os.environ['PYTHONDONTWRITEBYTECODE'] = '1'\n"  # Python 3.11 would leave half of it for all processes to come
    "sys.dont_write_bytecode = True\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "import packager\n"
    "from packager.errors import render_error\n"
    "limit = int(sys.argv[3])\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
    "try:\n"
    "    packager.build(sys.argv[1], sys.argv[2])\n"
    "except packager.PackagerError as error:\n"
    "    print(render_error(error)); sys.exit(error.exit_status)\n"
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 5000, 9000, 9500])
def test_a_full_disk_is_an_error_of_the_user_and_nothing_is_left_behind(digits, tmp_path, limit):
    done = python(LIMITED, digits, tmp_path / "out", limit)
    assert done.returncode == 2, done.stderr[-2000:]
    mentions(done.stdout, "error[output-refused]")
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_an_empty_disk_device_is_refused(tmp_path):
    path = project(tmp_path, LINEAR)
    done = package("build", path, "-o", "/dev/null/out")
    assert done.returncode == 2
    mentions(done.stderr, "error[output-refused]", "/dev/null/out")


@pytest.mark.slow
def test_a_terminated_build_cleans_up_and_says_so(digits, tmp_path):
    command = [sys.executable, "-m", "packager", "build", digits, "-o", tmp_path / "made/out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr.readline().startswith("import")
        child.terminate()
        errors = child.stderr.read()
    assert (child.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    assert os.listdir(tmp_path) == []


# -- limits, masks, ties and what lies beside a project ------------------------------------------


def test_the_path_by_which_a_manifest_is_named_changes_no_byte(tmp_path, monkeypatch):
    path = project(tmp_path / "p")
    (path.parent / "sub").mkdir()
    monkeypatch.chdir(path.parent / "sub")
    names = ["../package.yaml", "../../p/package.yaml", str(path), str(path.parent / "sub/../package.yaml")]
    results = [packager.build(name, tmp_path / str(number), cache="off") for number, name in enumerate(names)]
    assert len({result.fingerprint for result in results}) == 1, results


@pytest.mark.parametrize("name", ["nope.npz", "a folder"])
def test_missing_real_inputs_are_refused_before_anything_is_built(tmp_path, name, golden):
    path = project(tmp_path / "p", parity={"data": name})
    (path.parent / "a folder").mkdir()
    with pytest.raises(DataDoesNotFit) as caught:
        packager.build(path, tmp_path / "dist")
    golden(caught.value.why, path.parent / name)
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("exporter", ["torchscript", "torch-export"])
@pytest.mark.parametrize("limits", [{"min": 8, "max": 8}, {"min": 0, "max": 8}])
def test_a_dim_of_a_single_size_or_of_size_zero_passes(tmp_path, exporter, limits):
    path = project(tmp_path / "p", dims={"batch": limits}, export={"exporter": exporter})
    bundle = packager.build(path, tmp_path / "dist").bundle
    rows = np.ones((limits["min"], 4), np.float32)
    assert predict(bundle, x=rows)["output_0"].shape == (limits["min"], 3)


MASKED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, ids, mask):
        return self.encoder(self.table(ids), src_key_padding_mask=~mask)[:, 0]
"""
MASKED_INPUTS = {
    "ids": {"dtype": "int64", "shape": ["batch", "seq"], "range": [0, 20]},
    "mask": {"dtype": "bool", "shape": ["batch", "seq"]},
}


def test_a_mask_with_rows_of_zeros_that_forward_refuses_is_tested_without_them_and_reported(tmp_path, golden):
    path = project(tmp_path / "p", MASKED, inputs=MASKED_INPUTS, dims={"seq": {"max": 16}})
    events = []
    bundle = packager.build(path, tmp_path / "dist", listener=events.append).bundle
    (left_out,) = [item for item in parity_of(bundle)["not_checked"] if "mask" in item]
    golden(left_out, "forward()")
    assert any(left_out in event.message for event in events if isinstance(event, Note))
    fills = [case["fill"] for case in parity_of(bundle)["cases"]]
    assert "low, unmasked" in fills and "low" not in fills


def test_ids_that_are_padding_alone_are_left_out_where_the_fast_path_of_an_encoder_refuses_them(tmp_path, golden):
    text = MASKED.replace("ids, mask)", "ids)").replace("~mask", "ids == 0")
    inputs = {"ids": MASKED_INPUTS["ids"]}
    path = project(tmp_path / "p", text, inputs=inputs, dims={"seq": {"max": 16}}, torchscript={"method": "none"})
    bundle = packager.build(path, tmp_path / "dist").bundle
    (left_out,) = [item for item in parity_of(bundle)["not_checked"] if "padding" in item]
    golden(left_out, "nn.TransformerEncoder")
    fills = [case["fill"] for case in parity_of(bundle)["cases"]]
    assert "low" not in fills and "high" in fills


def test_a_build_that_no_weight_has_an_effect_on_is_refused(tmp_path):
    text = LINEAR.replace("def forward(self, x)", "def forward(self, x, mask)")
    inputs = {**FLOATS, "mask": {"dtype": "int64", "shape": ["batch"], "range": [0, 1]}}
    path = project(tmp_path / "p", text.replace("self.layer(x)", "self.layer(x) * mask[:, None]"), inputs=inputs)
    with pytest.raises(WeightsNotExercised):
        packager.build(path, tmp_path / "dist")


def test_a_module_that_rounds_and_refuses_float64_is_not_refused_for_having_no_gradient(tmp_path):
    lines = ["assert x.dtype == torch.float32", "return torch.round(y * 10)"]
    assert packager.build(project(tmp_path / "p", returning(*lines)), tmp_path / "dist").parity["onnx"] == "pass"


SENSITIVE = {
    "the tail of a sigmoid": ("nn.Linear(4, 3)", "torch.sigmoid(self.layer(x) - 12)", FLOATS),
    "constant audio": (
        "nn.Sequential(nn.Conv1d(1, 16, 10, 5), nn.GroupNorm(16, 16), nn.GELU(), nn.Conv1d(16, 4, 3))",
        "self.layer(x[:, None]).mean(2)",
        {"x": {"dtype": "float32", "shape": ["batch", 800], "range": [-1, 1]}},
    ),
    "images of zeros": (
        "nn.Sequential(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, eps=1e-12), nn.ReLU(), nn.Conv2d(16, 4, 3))",
        "self.layer(x).amax((2, 3))",
        {"x": {"dtype": "float32", "shape": ["batch", 3, 16, 16], "range": [0, 1]}},
    ),
    "underflow": ("nn.Linear(4, 3)", "self.layer(x) * 1e-30 * 1e-30", FLOATS),
}


@pytest.mark.parametrize("name", SENSITIVE)
def test_a_right_model_is_not_refused_for_what_its_own_arithmetic_amplifies(tmp_path, name):
    layer, expression, inputs = SENSITIVE[name]
    text = LINEAR.replace("nn.Linear(4, 3)", layer).replace("self.layer(x)", expression)
    path = project(tmp_path / "p", text, inputs=inputs)
    result = packager.build(path, tmp_path / "dist")
    assert packager.verify(result.bundle, trust_program=True).ok
    cases = parity_of(result.bundle)["cases"]
    assert sum("random" in case["fill"] for case in cases) >= 3


def test_a_range_that_forward_refuses_is_an_error_even_beside_a_mask(tmp_path):
    beyond = {**MASKED_INPUTS, "ids": {**MASKED_INPUTS["ids"], "range": [-1, 20]}}
    path = project(tmp_path / "p", MASKED, inputs=beyond, dims={"seq": {"max": 16}})
    with pytest.raises(ForwardFailed):
        packager.build(path, tmp_path / "dist")


ROUNDED = """
import torch
from torch import nn


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return torch.round(x)

    @staticmethod
    def backward(context, gradient):
        return gradient


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return Rounded.apply(self.layer(x))
"""


@pytest.mark.parametrize("method", ["trace", "script"])
def test_a_program_that_is_demanded_and_cannot_be_saved_is_refused_without_a_comparison(tmp_path, method):
    with pytest.raises(TorchScriptFailed) as caught:
        packager.build(project(tmp_path / "p", ROUNDED, torchscript={"method": method}), tmp_path / "dist")
    (problem,) = caught.value.problems
    mentions(problem.message, method, "RuntimeError", "Rounded")


@pytest.mark.slow
def test_inputs_named_like_operators_are_exported_by_both_exporters(tmp_path):
    text = LINEAR.replace("forward(self, x)", "forward(self, linear, mean)")
    text = text.replace("return self.layer(x)", "return self.layer(linear) - mean.mean(0)")
    inputs = {name: {"dtype": "float32", "shape": ["batch", size]} for name, size in (("linear", 4), ("mean", 3))}
    for exporter in ("torchscript", "torch-export"):
        path = project(tmp_path / exporter, text, inputs=inputs, export={"exporter": exporter})
        packager.build(path, tmp_path / "dist")


@pytest.mark.parametrize(("inner", "reported"), [("width", True), (8, False)])
def test_sizes_that_float32_rounds_differently_are_reported_as_unchecked_if_the_size_is_dynamic(
    tmp_path, inner, reported
):
    text = LINEAR.replace("return self.layer(x)", "return nn.functional.interpolate(self.layer(x), scale_factor=0.7)")
    inputs = {"x": {"dtype": "float32", "shape": ["batch", inner, 4]}}
    dims = {"width": {"min": 4, "max": 32}} if reported else {}
    path = project(tmp_path / "p", text, inputs=inputs, dims={"batch": {"max": 4}, **dims})
    notes = parity_of(packager.build(path, tmp_path / "dist").bundle)["not_checked"]
    rounded = [note for note in notes if "float32" in note and carries(note, "model.py:12")]
    assert len(rounded) == reported


def scaled_lengths(folder, shape, *, largest, signature="self, x", **sections):
    """Write a project whose second output has ceil(1.1 × length) elements: float32 has other numbers for 50 or 400."""
    text = LINEAR.replace("import torch", "import math\n\nimport torch", 1).replace("self, x", signature)
    scaled = f"x.new_zeros(math.ceil(x.shape[{shape.index('length')}] * 1.1))"
    text = text.replace("return self.layer(x)", f"return self.layer(x), {scaled}")
    inputs = {"x": {"dtype": "float32", "shape": shape}}
    return project(folder, text, inputs=inputs, dims={"length": {"min": 8, "max": largest}}, **sections)


@pytest.mark.parametrize("shape", [["length", 4], ["batch", "length", 4]])
def test_a_size_that_torch_export_rounds_in_float32_is_reported_as_unchecked(tmp_path, shape):
    sections = {"export": {"exporter": "torch-export"}, "torchscript": {"method": "none"}}
    path = scaled_lengths(tmp_path / "p", shape, largest=397, **sections)
    notes = parity_of(packager.build(path, tmp_path / "dist").bundle)["not_checked"]
    assert [note for note in notes if "float32" in note and carries(note, "model.py:14")]


def test_a_wrong_size_leads_to_the_line_that_computes_it(tmp_path):
    sections = {"signature": "self, x, **options", "export": {"exporter": "torchscript"}}  # that cannot be scripted
    with pytest.raises(ParityFailed) as caught:
        packager.build(scaled_lengths(tmp_path / "p", ["length", 4], largest=400, **sections), tmp_path / "dist")
    mentions(caught.value.hint, "model.py:14", "compute it with integers")


RANKER = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(50, 8)

    def forward(self, user, items):
        scores = torch.einsum("bd,bkd->bk", self.users(user), self.items(items))
        return scores, scores.argsort(dim=1, descending=True)
"""


def test_the_order_of_equal_scores_is_not_compared(tmp_path):
    ids = {"dtype": "int64", "range": [0, 50]}
    inputs = {"user": {**ids, "shape": ["batch"]}, "items": {**ids, "shape": ["batch", 40]}}
    built = packager.build(project(tmp_path / "p", RANKER, inputs=inputs), tmp_path / "dist")
    assert built.parity == {"onnx": "pass", "torchscript": "pass"}


@pytest.mark.slow  # importing it takes seconds
def test_a_lightning_module_is_built_without_its_trainer(tmp_path):
    text = LINEAR.replace("import torch\n", "import pytorch_lightning\nimport torch\n")
    text = text.replace("nn.Module", "pytorch_lightning.LightningModule")
    built = packager.build(project(tmp_path / "p", text), tmp_path / "dist")
    assert config_of(built.bundle)["artifacts"]["torchscript"]["method"] == "trace"


HALF = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(50, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.half()

    def forward(self, ids):
        return self.layer(self.embedding(ids)).mean(1)
"""


@pytest.mark.slow
def test_a_model_on_which_onnxruntime_crashes_is_refused_and_built_in_float32(tmp_path):
    inputs = {"ids": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 50]}}
    manifest = project(tmp_path / "p", HALF, inputs=inputs, dims={"length": {"max": 8}})
    with pytest.raises(ExportFailed) as caught:
        packager.build(manifest, tmp_path / "dist")
    assert carries(render_error(caught.value), "onnxruntime crashed: SIGSEGV; model.dtype: float32 may avoid it")
    manifest.write_text(manifest.read_text().replace("  entry:", "  dtype: float32\n  entry:", 1))
    assert packager.build(manifest, tmp_path / "dist").bundle.exists()
