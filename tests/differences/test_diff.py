"""What differs between two bundles: real ones, built, changed, damaged."""

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
    """The bundle of the same project with three weights changed in its checkpoint."""
    folder = tmp_path_factory.mktemp("retrained")
    state = torch.load(digits.parent / "best.pt", weights_only=True)
    state["classify.1.weight"][0, :3] += 0.5
    return packager.build(projects.digits(folder / "project", state=state), folder / "out").bundle


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """A bundle of another description, signature, opset and optimization, without TorchScript."""
    folder = tmp_path_factory.mktemp("other")
    manifest = projects.digits(
        folder / "project",
        version="1.1.0",
        description="Handwritten digits\nof another kind",
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
    """`package diff` in this process: arguments → (exit status, stdout, stderr)."""

    def run(*arguments):
        arguments = ["diff", *(str(one) for one in arguments)]
        monkeypatch.setattr("sys.argv", ["package", *arguments])
        status = _run_command(cli)
        return status, *capsys.readouterr()

    return run


def section(report, name):
    return next(one for one in report.sections if one.name == name)


def found(report, name):
    """The differences of a section by where they are."""
    return {one.where: (one.before, one.after) for one in section(report, name).differences}


def text_of(report, name):
    """The lines of a section."""
    paragraphs = "\n".join(report.lines()).split("\n\n")
    return next((one.splitlines()[1:] for one in paragraphs if one.splitlines()[0] == name), [])


def config_of(bundle):
    return json.loads((bundle / "config.json").read_text())


# -- the same -------------------------------------------------------------------------------


def test_a_copy_is_the_same(command, built, bundle, golden):
    side = Side("digits-cnn", "1.0.0", built.fingerprint)
    assert packager.diff(built.bundle, bundle) == DiffReport(side, side, tuple(map(Section, SECTIONS)))
    status, out, err = command(built.bundle, bundle)
    assert (status, err) == (0, "")
    golden(out, "1.0.0", built.fingerprint, "digits", "cnn")


def test_the_same_as_json(built, bundle):
    done = package("diff", built.bundle, bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    side = {"name": "digits-cnn", "version": "1.0.0", "fingerprint": built.fingerprint, "damage": []}
    sections = {name: {"differences": [], "not_compared": None} for name in SECTIONS}
    assert json.loads(done.stdout) == {"same": True, "before": side, "after": side, "sections": sections}


def test_two_equal_bundles_are_compared_without_onnx_or_torch(built, bundle):
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\nimport packager\n"
        "report = packager.diff(sys.argv[1], sys.argv[2])\n"
        "assert report.same and not any(one.not_compared for one in report.sections)\n"
        "heavy = {'onnx', 'torch', 'packager.builder.api', 'packager.differences.onnx_model'}\n"
        "assert not [one for one in heavy if sys.modules.get(one)]"
    )
    done = python(code, built.bundle, bundle)
    assert done.returncode == 0, done.stderr


# -- each section ---------------------------------------------------------------------------


def test_a_retrained_bundle_differs_in_its_weights_and_in_no_node(built, retrained, golden):
    report = packager.diff(built.bundle, retrained)
    before, after = (onnx.load(one / "model.onnx") for one in (built.bundle, retrained))
    arrays = [
        {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}["model.classify.1.weight"]
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
    configs = [config_of(one) for one in (built.bundle, retrained)]
    digests = [one["source"]["checkpoint_sha256"] for one in configs]
    assert text_of(report, "toolchain") == [f"  checkpoint_sha256  {digests[0][:12]}… → {digests[1][:12]}…"]
    scripts = [one["artifacts"]["torchscript"]["sha256"] for one in configs]
    assert text_of(report, "torchscript") == [f"  model.ts.sha256  {scripts[0][:12]}… → {scripts[1][:12]}…"]
    assert {"file model.onnx", "file model.ts", "file config.json"} <= set(found(report, "identity"))
    assert "file assets/labels.txt" not in found(report, "identity")
    assert any(one.startswith("backends.onnx.outputs.logits.") for one in found(report, "parity"))
    assert text_of(report, "signature") == text_of(report, "metadata") == []


def test_another_signature_and_other_metadata(built, other):
    report = packager.diff(built.bundle, other)
    assert text_of(report, "signature") == [
        '  outputs.logits  removed: {"dtype": "float32", "shape": ["batch", 10]}',
        '  outputs.scores  added: {"dtype": "float32", "shape": ["batch", 10]}',
        "  dims.batch.max  16 → 32",
    ]
    assert text_of(report, "metadata") == [
        '  description       "" → "Handwritten digits\\nof another kind"',
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


def test_another_graph(built, other):
    report = packager.diff(built.bundle, other)
    lines = text_of(report, "graph")
    assert "  opset.ai.onnx                     20 → 17" in lines
    assert [line.split() for line in lines if line.split()[0] in ("nodes", "operator")] == [
        ["nodes", "5", "→", "7"],
        ["operator", "com.microsoft.FusedConv", "2", "→", "0"],
        ["operator", "Conv", "0", "→", "2"],
        ["operator", "Relu", "0", "→", "2"],
    ]
    nodes = [config_of(one)["artifacts"]["onnx"]["nodes"] for one in (built.bundle, other)]
    graph = found(report, "graph")
    assert graph["nodes"] == tuple(nodes)
    assert graph["first at node 0"] == ("com.microsoft.FusedConv /model/features/0/Conv", "Conv /model/features/0/Conv")
    assert graph["outputs.scores"] == (None, {"dtype": "float32", "shape": ["batch", 10]})


def test_another_proof(built, other):
    report = packager.diff(built.bundle, other)
    noise = json.loads((built.bundle / "evidence/parity.json").read_text())["tolerance"]["logits"]["noise"]
    parity = found(report, "parity")
    assert parity["verdict.torchscript"] == ("pass", "not-checked")
    assert parity["tolerance.logits"][0]["noise"] == noise
    explicit = parity["tolerance.scores"][1]
    assert (explicit["kind"], explicit["atol"], explicit["rtol"]) == ("explicit", 1e-4, 1e-3)
    assert parity["stages.optimize"][1] is None
    places = [one.where.partition(".")[0] for one in section(report, "parity").differences]
    assert places == sorted(places, key=["verdict", "not_checked", "tolerance", "backends", "stages", "cases"].index)
    assert not [one for one in parity if one.endswith(".why")]


def test_the_identity_says_which_files_differ(built, other):
    report = packager.diff(built.bundle, other)
    identity = found(report, "identity")
    seals = [(one / "FINGERPRINT").read_text().strip() for one in (built.bundle, other)]
    assert identity["version"] == ("1.0.0", "1.1.0")
    assert identity["fingerprint"] == tuple(seals)
    sums = [dict(line.split()[::-1] for line in (one / "SHA256SUMS").open()) for one in (built.bundle, other)]
    files = {one.removeprefix("file "): two for one, two in identity.items() if one.startswith("file ")}
    assert files == {
        path: (sums[0].get(path), sums[1].get(path))
        for path in sums[0] | sums[1]
        if sums[0].get(path) != sums[1].get(path)
    }
    assert files["model.ts"][1] is files["assets/labels.txt"][1] is None


def test_another_toolchain_and_another_machine(built, bundle):
    config = config_of(bundle)
    config["source"]["toolchain"]["torch"] = "2.12.0"
    (bundle / "config.json").write_text(json.dumps(config))
    build = json.loads((bundle / "evidence/build.json").read_text())
    build["python"] = "3.10.0"
    build["steps"][0]["outcome"] = "another"
    (bundle / "evidence/build.json").write_text(json.dumps(build))
    reseal(bundle)
    lines = text_of(packager.diff(bundle, built.bundle), "toolchain")
    assert lines[0].split() == ["toolchain.torch", "2.12.0", "→", torch.__version__]
    assert lines[1].split() == ["python", "3.10.0", "→", ".".join(map(str, sys.version_info[:3]))]
    assert lines[2].split()[:3] == ["steps.weights.outcome", "another", "→"]


def test_the_order_of_inputs_and_dims_without_a_limit(built, bundle):
    config = config_of(bundle)
    config["inputs"] += [{"name": "mask", "dtype": "bool", "shape": ["batch"]}]
    config["dims"]["batch"]["max"] = None
    (bundle / "config.json").write_text(json.dumps(config))
    swapped = Path(shutil.copytree(bundle, bundle.parent / "swapped"))
    config["inputs"].reverse()
    (swapped / "config.json").write_text(json.dumps(config))
    for one in (bundle, swapped):
        reseal(one)
    assert text_of(packager.diff(bundle, swapped), "signature") == ['  inputs  ["image", "mask"] → ["mask", "image"]']
    assert text_of(packager.diff(built.bundle, bundle), "signature") == [
        '  inputs.mask     added: {"dtype": "bool", "shape": ["batch"]}',
        "  dims.batch.max  removed: 16",
    ]


def test_the_same_model_in_other_bytes_is_told_as_such(built, bundle, golden):
    model = onnx.load(bundle / "model.onnx")
    weights = [onnx.TensorProto.FromString(one.SerializeToString()) for one in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(weights))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    reseal(bundle)
    report = packager.diff(built.bundle, bundle)
    (line,) = list(found(report, "graph"))
    golden(line, "model.onnx")
    assert text_of(report, "weights") == []
    assert not report.same


def test_what_config_json_claims_of_a_model_is_compared_where_the_models_are_the_same(built, bundle):
    config = config_of(bundle)
    config["artifacts"]["onnx"]["opset"] = 99
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    assert text_of(packager.diff(built.bundle, bundle), "graph") == ["  opset  20 → 99"]


def test_the_other_way_round_before_and_after_are_exchanged(built, retrained, other):
    for a, b in ((built.bundle, other), (built.bundle, retrained), (retrained, other)):
        there, back = packager.diff(a, b), packager.diff(b, a)
        assert (there.before, there.after, there.same) == (back.after, back.before, back.same)
        for one, two in zip(there.sections, back.sections, strict=True):
            exchanged = [(difference.where, difference.after, difference.before) for difference in two.differences]
            assert sorted(exchanged, key=str) == sorted(
                ((d.where, d.before, d.after) for d in one.differences), key=str
            )


@pytest.mark.parametrize("declared", [True, False])
def test_weights_beside_the_model_are_compared(built, bundle, declared, golden):
    model = onnx.load(bundle / "model.onnx")
    onnx.save(
        model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )  # fmt: skip
    if declared:
        config = config_of(bundle)
        config["artifacts"]["onnx"]["data"] = {"path": "model.onnx.data", "sha256": "0" * 64}
        (bundle / "config.json").write_text(json.dumps(config))
    changed = Path(shutil.copytree(bundle, bundle.parent / "changed"))
    content = bytearray((changed / "model.onnx.data").read_bytes())
    content[:4] = np.float32(7).tobytes()
    (changed / "model.onnx.data").write_bytes(content)
    for one in (bundle, changed):
        reseal(one)
    report = packager.diff(bundle, changed)
    (difference,) = section(report, "weights").differences
    assert (difference.change.changed, difference.change.nonfinite) == (1, 0)
    assert text_of(report, "graph") == []
    golden("\n".join(list(found(packager.diff(built.bundle, bundle), "graph"))), "model.onnx", "model.onnx.data")


# -- damage ---------------------------------------------------------------------------------


def test_a_damaged_bundle_is_compared_and_called_so(command, built, bundle, golden):
    content = bytearray((bundle / "model.onnx").read_bytes())
    place = content.index(np.float32(onnx_weight(bundle, "model.classify.1.bias")[0]).tobytes())
    content[place : place + 4] = np.float32(7).tobytes()
    (bundle / "model.onnx").write_bytes(content)
    (bundle / "assets/labels.txt").unlink()
    (bundle / "extra").write_text("x")
    status, out, err = command(built.bundle, bundle)
    assert (status, err) == (1, "")
    digests = [regular_file_digest(one / "model.onnx")[:12] for one in (built.bundle, bundle)]
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
    return next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == name)


def test_of_torchscript_the_digest_is_that_of_the_file_as_it_lies_there(built, bundle):
    (bundle / "model.ts").write_bytes(b"x")
    report = packager.diff(built.bundle, bundle)
    digests = [regular_file_digest(one / "model.ts") for one in (built.bundle, bundle)]
    assert found(report, "torchscript") == {"model.ts.sha256": tuple(digests)}


def test_a_model_that_damage_made_unreadable_is_not_compared_and_the_reason_is_said(command, built, bundle, golden):
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


def test_a_model_that_was_sealed_unreadable_is_an_error(command, built, bundle, golden):
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
def test_evidence_that_cannot_be_read_is_not_compared_and_the_reason_is_said(built, bundle, name, where, golden):
    (bundle / name).write_text("{")
    reason = section(packager.diff(built.bundle, bundle), where).not_compared
    mentions(reason, name)
    (bundle / name).unlink()
    (line,) = text_of(packager.diff(bundle, built.bundle), where)
    golden(line, name)


def test_neither_a_pipe_nor_a_link_in_a_bundle_is_read(built, bundle, golden):
    for name in ("evidence/parity.json", "model.onnx"):
        (bundle / name).unlink()
    os.mkfifo(bundle / "evidence/parity.json")
    (bundle / "model.onnx").symlink_to(built.bundle / "model.onnx")
    report = packager.diff(built.bundle, bundle)
    (line,) = report.after.damage
    golden(line, "evidence/parity.json", "model.onnx")
    golden(section(report, "parity").not_compared, "evidence/parity.json")
    mentions(section(report, "graph").not_compared, "config.json")


# -- what is no bundle ----------------------------------------------------------------------


def test_what_is_no_bundle_is_answered_with_2(command, built, tmp_path, golden):
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


def test_a_bundle_of_another_schema_is_refused(built, bundle):
    (bundle / "config.json").write_text(json.dumps({**config_of(bundle), "schema": 2}))
    with pytest.raises(BundleSchemaUnknown):
        packager.diff(built.bundle, bundle)


# -- without onnx, and as text --------------------------------------------------------------


def test_without_onnx_graph_and_weights_are_not_compared_and_the_reason_is_said(built, other, golden):
    code = (
        "import sys; sys.modules['onnx'] = None\nfrom packager.cli import main\n"
        "sys.argv = ['package', 'diff', *sys.argv[1:]]\nmain()"
    )
    done = python(code, built.bundle, other)
    assert (done.returncode, done.stderr) == (1, "")
    paragraphs = done.stdout.split("\n\n")
    (weights,) = [paragraph for paragraph in paragraphs if paragraph.startswith("weights\n")]
    golden(weights, "onnx")
    graph = next(one for one in paragraphs if one.startswith("graph\n")).splitlines()
    golden(graph[1])
    assert ["nodes", "5", "→", "7"] in [line.split() for line in graph]
    done = python(code, built.bundle, other, "--json")
    record = json.loads(done.stdout)
    assert not record["same"] and record["sections"]["weights"]["differences"] == []
    assert record["sections"]["weights"]["not_compared"] == record["sections"]["graph"]["not_compared"]
    golden(record["sections"]["graph"]["not_compared"])


def test_two_bundles_that_differ_as_json(built, retrained):
    done = package("diff", built.bundle, retrained, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    record = json.loads(done.stdout, parse_constant=pytest.fail)
    assert record == packager.diff(built.bundle, retrained).as_json()
    assert list(record["sections"]) == SECTIONS
    (difference,) = record["sections"]["weights"]["differences"]
    assert difference["where"] == "model.classify.1.weight"
    assert difference["before"] == difference["after"] == "float32[10, 128]"
    assert set(difference["change"]) == {"changed", "total", "max_abs", "relative", "nonfinite"}


def test_what_json_has_not_is_a_string():
    one = Section("graph", (Difference("x", float("nan"), [float("inf"), {"y": -float("inf")}]),))
    side = Side("a", "1", "h1:")
    record = DiffReport(side, side, (one,)).as_json()
    assert record["sections"]["graph"]["differences"] == [
        {"where": "x", "before": "NaN", "after": ["Infinity", {"y": "-Infinity"}]}
    ]


def test_a_long_section_is_cut_short_as_text_and_says_so(golden):
    differences = tuple(Difference(f"w{index}", index, index + 1) for index in range(23))
    side = Side("a", "1", "h1:")
    lines = list(DiffReport(side, side, (Section("weights", differences),)).lines())
    assert lines[-2] == "  w19  19 → 20"
    golden(lines[-1], "3", "--json")
    assert len(lines) == 2 + 2 + 20 + 1


def test_the_function_is_what_packager_exports():
    assert packager.diff is diff_of_bundles
    assert packager.DiffReport is DiffReport
