"""The differences between two bundles: real ones that were built, changed or damaged."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import projects
import pytest
import torch
from messages import mentions
from onnx import numpy_helper
from projects import package, python, reseal

import packager
from packager.bundle.fingerprint import regular_file_digest
from packager.cli.main import _run_command, cli
from packager.differences import Difference, DiffReport, Section, Side
from packager.differences import diff as diff_of_bundles
from packager.errors import BundleSchemaUnknown, ModelUnreadable, NotABundle, render_error

SECTIONS = ["identity", "signature", "graph", "weights", "torchscript", "parity", "toolchain", "metadata"]


@pytest.fixture(scope="session")
def retrained(digits, tmp_path_factory):
    """Build the same project with three weights changed in its checkpoint."""
    folder = tmp_path_factory.mktemp("retrained")
    state = torch.load(digits.parent / "best.pt", weights_only=True)
    state["classify.1.weight"][0, :3] += 0.5
    return packager.build(projects.digits(folder / "project", state=state), folder / "out").bundle


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """Build a bundle with a different description, signature, opset and optimization, without TorchScript."""
    folder = tmp_path_factory.mktemp("other")
    manifest = projects.digits(
        folder / "project",
        version="1.1.0",
        description="Handwritten digits\nof a different kind",
        license="MIT",
        authors=["Ada"],
        metadata={"dataset": {"name": "digits", "rows": 1797}},
        dims={"batch": {"min": 1, "max": 32}},
        outputs=["scores"],
        assets=[],
        export={"opset": 17},
        optimize={"simplify": True, "level": "none"},
        torchscript={"method": "none"},
        parity={"tolerance": {"atol": 1e-4, "rtol": 1e-3}},
    )
    return packager.build(manifest, folder / "out").bundle


@pytest.fixture
def command(capsys, monkeypatch):
    """Return a function that runs `package diff` in this process: arguments → (exit status, stdout, stderr)."""

    def run(*arguments):
        arguments = ["diff", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", ["package", *arguments])
        status = _run_command(cli)
        return status, *capsys.readouterr()

    return run


def section(report, name):
    return next(section for section in report.sections if section.name == name)


def differences(report, name):
    """Return the values before and after of the differences of a section, by path."""
    return {field.where: (field.before, field.after) for field in section(report, name).differences}


def text_of(report, name):
    """Return the lines of a section, without its title."""
    paragraphs = [paragraph.splitlines() for paragraph in "\n".join(report.lines()).split("\n\n")]
    return next((lines for title, *lines in paragraphs if title == name), [])


def config_of(bundle):
    return json.loads((bundle / "config.json").read_text())


# -- equal bundles --------------------------------------------------------------------------


def test_a_copy_is_the_same(command, built, bundle, golden):
    side = Side("digits-cnn", "1.0.0", built.fingerprint)
    assert packager.diff(built.bundle, bundle) == DiffReport(side, side, tuple(map(Section, SECTIONS)))
    status, out, err = command(built.bundle, bundle)
    assert (status, err) == (0, "")
    golden(out, "1.0.0", built.fingerprint, "digits", "cnn")


def test_equal_bundles_as_json(built, bundle):
    process = package("diff", built.bundle, bundle, "--json")
    assert (process.returncode, process.stderr) == (0, "")
    side = {"name": "digits-cnn", "version": "1.0.0", "fingerprint": built.fingerprint, "damage": []}
    sections = {name: {"differences": [], "not_compared": None} for name in SECTIONS}
    assert json.loads(process.stdout) == {"same": True, "before": side, "after": side, "sections": sections}


def test_two_equal_bundles_are_compared_without_onnx_or_torch(built, bundle):
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\nimport packager\n"
        "report = packager.diff(sys.argv[1], sys.argv[2])\n"
        "assert report.same and not any(section.not_compared for section in report.sections)\n"
        "heavy = {'onnx', 'torch', 'packager.builder.api', 'packager.differences.onnx_model'}\n"
        "assert not [name for name in heavy if sys.modules.get(name)]"
    )
    process = python(code, built.bundle, bundle)
    assert process.returncode == 0, process.stderr


# -- each section ---------------------------------------------------------------------------


def test_a_retrained_bundle_differs_only_in_its_weights(built, retrained, golden):
    report = packager.diff(built.bundle, retrained)
    before, after = (onnx.load(bundle / "model.onnx") for bundle in (built.bundle, retrained))
    arrays = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}["model.classify.1.weight"]
        for model in (before, after)
    ]
    relative = 0.5 / np.sqrt(np.mean(np.square(arrays[0].astype(np.float64))))
    assert text_of(report, "graph") == []
    (line,) = text_of(report, "weights")
    golden(line, "model.classify.1.weight", "float32[10, 128]", "3", "1280", "0.5", relative=f"{relative:.2g}")
    change = section(report, "weights").differences[0].change
    assert (change.changed, change.total, change.nonfinite) == (3, 1280, 0)
    assert change.max_abs == float(np.abs(arrays[0].astype(np.float64) - arrays[1]).max())
    assert change.relative == pytest.approx(relative, rel=1e-6)
    configs = [config_of(bundle) for bundle in (built.bundle, retrained)]
    digests = [config["source"]["checkpoint_sha256"] for config in configs]
    assert text_of(report, "toolchain") == [f"  checkpoint_sha256  {digests[0][:12]}… → {digests[1][:12]}…"]
    scripts = [config["artifacts"]["torchscript"]["sha256"] for config in configs]
    assert text_of(report, "torchscript") == [f"  model.ts.sha256  {scripts[0][:12]}… → {scripts[1][:12]}…"]
    assert {"file model.onnx", "file model.ts", "file config.json"} <= set(differences(report, "identity"))
    assert "file assets/labels.txt" not in differences(report, "identity")
    assert any(path.startswith("backends.onnx.outputs.logits.") for path in differences(report, "parity"))
    assert text_of(report, "signature") == text_of(report, "metadata") == []


def test_a_different_signature_and_different_metadata(built, other):
    report = packager.diff(built.bundle, other)
    assert text_of(report, "signature") == [
        '  outputs.logits  removed: {"dtype": "float32", "shape": ["batch", 10]}',
        '  outputs.scores  added: {"dtype": "float32", "shape": ["batch", 10]}',
        "  dims.batch.max  16 → 32",
    ]
    assert text_of(report, "metadata") == [
        '  description       "" → "Handwritten digits\\nof a different kind"',
        "  license           added: MIT",
        '  authors           [] → ["Ada"]',
        '  assets            ["labels.txt"] → []',
        '  metadata.dataset  added: {"name": "digits", "rows": 1797}',
    ]
    assert text_of(report, "torchscript") == [
        '  model.ts  removed: {"path": "model.ts", "sha256": "'
        + config_of(built.bundle)["artifacts"]["torchscript"]["sha256"][:28]
        + "…"
    ]


def test_a_different_graph(built, other):
    report = packager.diff(built.bundle, other)
    lines = text_of(report, "graph")
    assert "  opset.ai.onnx                     20 → 17" in lines
    assert [line.split() for line in lines if line.split()[0] in ("nodes", "operator")] == [
        ["nodes", "5", "→", "7"],
        ["operator", "com.microsoft.FusedConv", "2", "→", "0"],
        ["operator", "Conv", "0", "→", "2"],
        ["operator", "Relu", "0", "→", "2"],
    ]
    nodes = [config_of(bundle)["artifacts"]["onnx"]["nodes"] for bundle in (built.bundle, other)]
    graph = differences(report, "graph")
    assert graph["nodes"] == tuple(nodes)
    assert graph["first at node 0"] == ("com.microsoft.FusedConv /model/features/0/Conv", "Conv /model/features/0/Conv")
    assert graph["outputs.scores"] == (None, {"dtype": "float32", "shape": ["batch", 10]})


def test_different_parity(built, other):
    report = packager.diff(built.bundle, other)
    noise = json.loads((built.bundle / "evidence/parity.json").read_text())["tolerance"]["logits"]["noise"]
    parity = differences(report, "parity")
    assert parity["verdict.torchscript"] == ("pass", "not-checked")
    assert parity["tolerance.logits"][0]["noise"] == noise
    explicit = parity["tolerance.scores"][1]
    assert (explicit["kind"], explicit["atol"], explicit["rtol"]) == ("explicit", 1e-4, 1e-3)
    assert parity["stages.optimize"][1] is None
    groups = [field.where.partition(".")[0] for field in section(report, "parity").differences]
    assert groups == sorted(groups, key=["verdict", "not_checked", "tolerance", "backends", "stages", "cases"].index)
    assert not [path for path in parity if path.endswith(".why")]


def test_the_identity_lists_the_files_that_differ(built, other):
    report = packager.diff(built.bundle, other)
    identity = differences(report, "identity")
    fingerprints = [(bundle / "FINGERPRINT").read_text().strip() for bundle in (built.bundle, other)]
    assert identity["version"] == ("1.0.0", "1.1.0")
    assert identity["fingerprint"] == tuple(fingerprints)
    sums = [dict(line.split()[::-1] for line in (bundle / "SHA256SUMS").open()) for bundle in (built.bundle, other)]
    files = {path.removeprefix("file "): pair for path, pair in identity.items() if path.startswith("file ")}
    assert files == {
        path: (sums[0].get(path), sums[1].get(path))
        for path in sums[0] | sums[1]
        if sums[0].get(path) != sums[1].get(path)
    }
    assert files["model.ts"][1] is files["assets/labels.txt"][1] is None


def test_a_different_toolchain_and_a_different_machine(built, bundle):
    config = config_of(bundle)
    config["source"]["toolchain"]["torch"] = "2.12.0"
    (bundle / "config.json").write_text(json.dumps(config))
    build = json.loads((bundle / "evidence/build.json").read_text())
    build["python"] = "3.10.0"
    build["steps"][0]["outcome"] = "different"
    (bundle / "evidence/build.json").write_text(json.dumps(build))
    reseal(bundle)
    lines = text_of(packager.diff(bundle, built.bundle), "toolchain")
    assert lines[0].split() == ["toolchain.torch", "2.12.0", "→", torch.__version__]
    assert lines[1].split() == ["python", "3.10.0", "→", ".".join(map(str, sys.version_info[:3]))]
    assert lines[2].split()[:3] == ["steps.weights.outcome", "different", "→"]


def test_the_order_of_inputs_and_dims_without_a_limit(built, bundle):
    config = config_of(bundle)
    config["inputs"] += [{"name": "mask", "dtype": "bool", "shape": ["batch"]}]
    config["dims"]["batch"]["max"] = None
    (bundle / "config.json").write_text(json.dumps(config))
    swapped = Path(shutil.copytree(bundle, bundle.parent / "swapped"))
    config["inputs"].reverse()
    (swapped / "config.json").write_text(json.dumps(config))
    for folder in (bundle, swapped):
        reseal(folder)
    assert text_of(packager.diff(bundle, swapped), "signature") == ['  inputs  ["image", "mask"] → ["mask", "image"]']
    assert text_of(packager.diff(built.bundle, bundle), "signature") == [
        '  inputs.mask     added: {"dtype": "bool", "shape": ["batch"]}',
        "  dims.batch.max  removed: 16",
    ]


def test_the_same_model_in_different_bytes_is_reported_as_such(built, bundle, golden):
    model = onnx.load(bundle / "model.onnx")
    weights = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(weights))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    reseal(bundle)
    report = packager.diff(built.bundle, bundle)
    (line,) = list(differences(report, "graph"))
    golden(line, "model.onnx")
    assert text_of(report, "weights") == []
    assert not report.same


def test_fields_of_config_json_about_equal_models_are_compared(built, bundle):
    config = config_of(bundle)
    config["artifacts"]["onnx"]["opset"] = 99
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    assert text_of(packager.diff(built.bundle, bundle), "graph") == ["  opset  20 → 99"]


def test_swapping_the_bundles_swaps_before_and_after(built, retrained, other):
    for a, b in ((built.bundle, other), (built.bundle, retrained), (retrained, other)):
        there, back = packager.diff(a, b), packager.diff(b, a)
        assert (there.before, there.after, there.same) == (back.after, back.before, back.same)
        for forward, backward in zip(there.sections, back.sections, strict=True):
            fields = [(field.where, field.before, field.after) for field in forward.differences]
            swapped = [(field.where, field.after, field.before) for field in backward.differences]
            assert sorted(fields, key=str) == sorted(swapped, key=str)


@pytest.mark.parametrize("declared", [True, False])
def test_external_weights_are_compared(built, bundle, declared, golden):
    model = onnx.load(bundle / "model.onnx")
    onnx.save(
        model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0
    )  # fmt: skip
    if declared:
        config = config_of(bundle)
        config["artifacts"]["onnx"]["data"] = {"path": "model.onnx_data", "sha256": "0" * 64}
        (bundle / "config.json").write_text(json.dumps(config))
    changed = Path(shutil.copytree(bundle, bundle.parent / "changed"))
    content = bytearray((changed / "model.onnx_data").read_bytes())
    content[:4] = np.float32(7).tobytes()
    (changed / "model.onnx_data").write_bytes(content)
    for folder in (bundle, changed):
        reseal(folder)
    report = packager.diff(bundle, changed)
    (difference,) = section(report, "weights").differences
    assert (difference.change.changed, difference.change.nonfinite) == (1, 0)
    assert text_of(report, "graph") == []
    golden("\n".join(list(differences(packager.diff(built.bundle, bundle), "graph"))), "model.onnx", "model.onnx_data")


# -- damage ---------------------------------------------------------------------------------


def test_a_damaged_bundle_is_compared_and_reported_as_damaged(command, built, bundle, golden):
    content = bytearray((bundle / "model.onnx").read_bytes())
    offset = content.index(np.float32(onnx_weight(bundle, "model.classify.1.bias")[0]).tobytes())
    content[offset : offset + 4] = np.float32(1234).tobytes()
    (bundle / "model.onnx").write_bytes(content)
    (bundle / "assets/labels.txt").unlink()
    (bundle / "extra").write_text("x")
    status, out, err = command(built.bundle, bundle)
    assert (status, err) == (1, "")
    digests = [regular_file_digest(folder / "model.onnx")[:12] for folder in (built.bundle, bundle)]
    labels = regular_file_digest(built.bundle / "assets/labels.txt")[:12]
    extra = regular_file_digest(bundle / "extra")[:12]
    distance = section(packager.diff(built.bundle, bundle), "weights").differences[0].change
    golden(
        out,
        built.fingerprint,
        *("assets/labels.txt", "extra", "model.onnx", "model.classify.1.bias", "float32[10]", "1", "10"),
        labels=labels,
        before=digests[0],
        after=digests[1],
        extra=extra,
        distance=f"{distance.max_abs:.2g}",
        relative=f"{distance.relative:.2g}",
    )


def onnx_weight(bundle, name):
    model = onnx.load(bundle / "model.onnx")
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def test_the_digest_of_torchscript_is_computed_from_the_file(built, bundle):
    (bundle / "model.ts").write_bytes(b"x")
    report = packager.diff(built.bundle, bundle)
    digests = [regular_file_digest(folder / "model.ts") for folder in (built.bundle, bundle)]
    assert differences(report, "torchscript") == {"model.ts.sha256": tuple(digests)}


def test_a_model_that_damage_made_unreadable_is_not_compared(command, built, bundle, golden):
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:100])
    status, out, err = command(built.bundle, bundle, "--json")
    assert (status, err) == (1, "")
    record = json.loads(out)
    (line,) = record["after"]["damage"]
    golden(line, "model.onnx")
    for name in ("graph", "weights"):
        reason = record["sections"][name]["not_compared"]
        mentions(reason, f"{bundle}/model.onnx", "DecodeError")
    (bundle / "model.onnx").unlink()
    report = packager.diff(bundle, built.bundle)
    golden(section(report, "weights").not_compared, f"{bundle}/model.onnx", "config.json")
    assert not report.same


def test_an_unreadable_model_in_an_intact_bundle_is_an_error(command, built, bundle, golden):
    (bundle / "model.onnx").write_bytes(b"")
    reseal(bundle)
    with pytest.raises(ModelUnreadable) as caught:
        packager.diff(built.bundle, bundle)
    golden(render_error(caught.value), "error[model-unreadable]", f"{bundle}/model.onnx", "ValueError")
    assert command(bundle, built.bundle)[0] == 2


@pytest.mark.parametrize(
    ("file", "content", "damage"),
    [
        ("FINGERPRINT", b"h1:other\n", "FINGERPRINT"),
        ("FINGERPRINT", None, "FINGERPRINT"),
        ("SHA256SUMS", b"nonsense\n", "SHA256SUMS"),
    ],
)
def test_a_damaged_seal_is_a_difference(built, bundle, file, content, damage, golden):
    (bundle / file).unlink()
    if content is not None:
        (bundle / file).write_bytes(content)
    report = packager.diff(built.bundle, bundle)
    (line,) = report.after.damage
    golden(line, damage)
    assert not report.same
    assert packager.diff(bundle, bundle).same


@pytest.mark.parametrize(("name", "where"), [("evidence/parity.json", "parity"), ("evidence/build.json", "toolchain")])
def test_unreadable_evidence_is_not_compared(built, bundle, name, where, golden):
    (bundle / name).write_text("{")
    reason = section(packager.diff(built.bundle, bundle), where).not_compared
    mentions(reason, name)
    (bundle / name).unlink()
    (line,) = text_of(packager.diff(bundle, built.bundle), where)
    golden(line, name)


def test_pipes_and_links_in_a_bundle_are_not_read(built, bundle, golden):
    for name in ("evidence/parity.json", "model.onnx"):
        (bundle / name).unlink()
    os.mkfifo(bundle / "evidence/parity.json")
    (bundle / "model.onnx").symlink_to(built.bundle / "model.onnx")
    report = packager.diff(built.bundle, bundle)
    (line,) = report.after.damage
    golden(line, "evidence/parity.json", "model.onnx")
    golden(section(report, "parity").not_compared, "evidence/parity.json")
    mentions(section(report, "graph").not_compared, "config.json")


# -- anything but a bundle ------------------------------------------------------------------


def test_anything_but_a_bundle_exits_with_2(command, built, tmp_path, golden):
    status, out, err = command(built.bundle, tmp_path / "no")
    assert (status, out) == (2, "")
    golden(err, "error[not-a-bundle]", f"{tmp_path}/no", ".zip")
    status, out, _ = command(tmp_path, built.bundle, "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "not-a-bundle"


@pytest.mark.parametrize(
    "artifacts",
    [None, {}, [], {"onnx": 1, "torchscript": None}, {"onnx": {"path": []}, "torchscript": None},
     {"onnx": {"path": "a", "data": {"path": 1}}, "torchscript": None}, {"onnx": "x", "torchscript": None}],
)  # fmt: skip
def test_a_malformed_config_is_refused(built, bundle, artifacts):
    (bundle / "config.json").write_text(json.dumps({**config_of(bundle), "artifacts": artifacts}))
    with pytest.raises(NotABundle):
        packager.diff(bundle, built.bundle)


def test_a_bundle_of_an_unknown_schema_is_refused(built, bundle):
    (bundle / "config.json").write_text(json.dumps({**config_of(bundle), "schema": 2}))
    with pytest.raises(BundleSchemaUnknown):
        packager.diff(built.bundle, bundle)


# -- without onnx, and as text --------------------------------------------------------------


def test_without_onnx_graph_and_weights_are_not_compared(built, other, golden):
    code = (
        "import sys; sys.modules['onnx'] = None\nfrom packager.cli import main\n"
        "sys.argv = ['package', 'diff', *sys.argv[1:]]\nmain()"
    )
    process = python(code, built.bundle, other)
    assert (process.returncode, process.stderr) == (1, "")
    paragraphs = process.stdout.split("\n\n")
    (weights,) = [paragraph for paragraph in paragraphs if paragraph.startswith("weights\n")]
    golden(weights, "onnx")
    graph = next(paragraph for paragraph in paragraphs if paragraph.startswith("graph\n")).splitlines()
    golden(graph[1])
    assert ["nodes", "5", "→", "7"] in [line.split() for line in graph]
    process = python(code, built.bundle, other, "--json")
    record = json.loads(process.stdout)
    assert not record["same"] and record["sections"]["weights"]["differences"] == []
    assert record["sections"]["weights"]["not_compared"] == record["sections"]["graph"]["not_compared"]
    golden(record["sections"]["graph"]["not_compared"])


def test_different_bundles_as_json(built, retrained):
    process = package("diff", built.bundle, retrained, "--json")
    assert (process.returncode, process.stderr) == (1, "")
    record = json.loads(process.stdout, parse_constant=pytest.fail)
    assert record == packager.diff(built.bundle, retrained).as_json()
    assert list(record["sections"]) == SECTIONS
    (difference,) = record["sections"]["weights"]["differences"]
    assert difference["where"] == "model.classify.1.weight"
    assert difference["before"] == difference["after"] == "float32[10, 128]"
    assert set(difference["change"]) == {"changed", "total", "max_abs", "relative", "nonfinite"}


def test_nan_and_infinities_are_strings_in_json():
    graph = Section("graph", (Difference("x", float("nan"), [float("inf"), {"y": -float("inf")}]),))
    side = Side("a", "1", "h1:")
    record = DiffReport(side, side, (graph,)).as_json()
    assert record["sections"]["graph"]["differences"] == [
        {"where": "x", "before": "NaN", "after": ["Infinity", {"y": "-Infinity"}]}
    ]


def test_a_long_section_is_truncated_in_text(golden):
    differences = tuple(Difference(f"w{index}", index, index + 1) for index in range(23))
    side = Side("a", "1", "h1:")
    lines = list(DiffReport(side, side, (Section("weights", differences),)).lines())
    assert lines[-2] == "  w19  19 → 20"
    golden(lines[-1], "3", "--json")
    assert len(lines) == 2 + 2 + 20 + 1


def test_packager_exports_diff():
    assert packager.diff is diff_of_bundles
    assert packager.DiffReport is DiffReport
