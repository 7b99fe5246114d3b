"""A bundle that was changed in any way is refused, and the change is named."""

import json
import os
import shutil

import onnx
import pytest
from messages import mentions
from projects import ANOTHER, LINEAR, environment_without_torch, project, python, reseal, update_digests

import packager
from packager.bundle import archive, layout
from packager.bundle.fingerprint import list_files
from packager.errors import BundleSchemaUnknown, FingerprintMalformed, IntegrityFailed, NotABundle, render_error

PASS = {"onnx": "pass", "torchscript": "pass"}
UNCHECKED = {"onnx": "not-checked", "torchscript": "not-checked"}
FILES = [
    "README.md", "assets/labels.txt", "config.json", "evidence/bom.cdx.json", "evidence/build.json",
    "evidence/golden.safetensors", "evidence/parity.intoto.json", "evidence/parity.json",
    "evidence/provenance.intoto.json", "model.onnx", "model.ts",
]  # fmt: skip


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_bundle_passes_as_it_was_built(built):
    report = packager.verify(built.bundle, fingerprint=built.fingerprint)
    assert report.ok
    assert report.as_json() == {
        "ok": True,
        "fingerprint": built.fingerprint,
        "integrity": {"missing": [], "extra": [], "changed": []},
        "structure": [],
        "parity": PASS,
        "notes": [],
    }
    assert list_files(built.bundle) == FILES


@pytest.mark.parametrize(
    "given", ["nonsense", "", "h1:", ANOTHER[:-1], ANOTHER + "=", ANOTHER + "\n", "H" + ANOTHER[1:]]
)
def test_a_malformed_fingerprint_is_refused_before_anything_is_read(given, tmp_path, golden):
    for function in (packager.verify, packager.load):
        with pytest.raises(FingerprintMalformed) as caught:
            function(tmp_path, fingerprint=given)
        golden(
            render_error(caught.value),
            "error[fingerprint-malformed]",
            f"{given!r}",
            "44",
            "base64",
            "FINGERPRINT",
            "package build",
        )


def test_a_copy_with_different_times_and_modes_passes(bundle, built):
    for path in bundle.rglob("*"):
        os.utime(path, (1, 1))
    (bundle / "model.onnx").chmod(0o400)
    assert packager.verify(bundle).fingerprint == built.fingerprint


def test_parity_may_be_left_out(bundle, golden):
    report = packager.verify(bundle, parity=False)
    assert report.ok
    assert report.parity == UNCHECKED
    (line,) = report.notes
    golden(line, "parity")


# -- integrity ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in FILES if path != "config.json"])
@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_a_changed_byte_is_found(bundle, path, position):
    content = bytearray((bundle / path).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[position]] ^= 1
    (bundle / path).write_bytes(content)
    report = packager.verify(bundle)
    assert not report.ok
    assert report.integrity.changed == (path,)
    assert report.parity == UNCHECKED
    (line,) = report.notes
    mentions(line, "parity")


def test_a_changed_config_is_found(bundle):
    edit(bundle / "config.json", lambda record: record.update(description="different"))
    assert packager.verify(bundle).integrity.changed == ("config.json",)


@pytest.mark.parametrize("path", [path for path in FILES if path != "config.json"])
def test_a_missing_file_is_found(bundle, path):
    (bundle / path).unlink()
    report = packager.verify(bundle)
    assert not report.ok
    assert report.integrity.missing == (path,)


@pytest.mark.parametrize(
    "path", ["extra.txt", ".hidden", "assets/more.txt", "evidence/deep/er.json", "model.onnx_data"]
)
def test_an_added_file_is_found(bundle, path):
    (bundle / path).parent.mkdir(exist_ok=True)
    (bundle / path).touch()
    report = packager.verify(bundle)
    assert not report.ok
    assert report.integrity.extra == (path,)


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_became_a_link_to_the_same_bytes_is_found(bundle, tmp_path, path):
    shutil.move(bundle / path, tmp_path / "elsewhere")
    (bundle / path).symlink_to(tmp_path / "elsewhere")
    assert packager.verify(bundle).integrity.changed == (path,)


def test_an_added_link_to_a_folder_is_found(bundle):
    (bundle / "more").symlink_to("/tmp")
    assert packager.verify(bundle).integrity.extra == ("more",)


def test_a_folder_that_became_a_link_is_found(bundle, tmp_path):
    shutil.move(bundle / "evidence", tmp_path / "evidence")
    (bundle / "evidence").symlink_to(tmp_path / "evidence")
    integrity = packager.verify(bundle).integrity
    assert integrity.extra == ("evidence",)
    assert integrity.missing == tuple(path for path in FILES if path.startswith("evidence/"))


@pytest.mark.parametrize("length", [0, 100])
def test_a_truncated_file_is_found(bundle, length):
    with (bundle / "model.onnx").open("r+b") as stream:
        stream.truncate(length)
    assert packager.verify(bundle).integrity.changed == ("model.onnx",)


def test_all_differences_are_named_at_once(bundle):
    (bundle / "model.ts").unlink()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "extra").touch()
    integrity = packager.verify(bundle).integrity
    assert (integrity.missing, integrity.extra, integrity.changed) == (("model.ts",), ("extra",), ("model.onnx",))


# -- the seal -------------------------------------------------------------------------------


def test_a_different_fingerprint_than_expected_is_refused(bundle, built, golden):
    report = packager.verify(bundle, fingerprint=ANOTHER)
    assert not report.ok
    (line,) = report.structure
    golden(line, built.fingerprint, ANOTHER)


def test_a_changed_fingerprint_file_is_refused(bundle, built, golden):
    (bundle / layout.FINGERPRINT).write_text(ANOTHER + "\n")
    report = packager.verify(bundle)
    assert (report.ok, report.integrity.changed) == (False, ("FINGERPRINT",))
    (line,) = report.structure
    golden(line, "FINGERPRINT", ANOTHER, built.fingerprint)


def test_a_missing_fingerprint_file_is_refused(bundle):
    (bundle / layout.FINGERPRINT).unlink()
    report = packager.verify(bundle)
    assert (report.ok, report.integrity.missing, report.structure) == (False, ("FINGERPRINT",), ())


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda text: text[:-1], ()),
        (lambda text: text + text.splitlines()[-1] + "\n", ()),
        (lambda text: text.replace("  ", " "), ("1",)),
        (lambda text: f"{'0' * 64}  ../out\n" + text, ("1", "../out")),
        (lambda text: text.replace("\n", "\r\n"), ("README.md\\r",)),
    ],
    ids=["no last line break", "a line twice", "one space", "outside", "carriage returns"],
)
def test_malformed_sums_are_refused(bundle, change, facts, golden):
    text = (bundle / layout.SUMS).read_text()
    (bundle / layout.SUMS).write_bytes(change(text).encode())
    report = packager.verify(bundle)
    assert (report.ok, report.integrity.changed) == (False, ("SHA256SUMS",))
    (line,) = report.structure
    golden(line, "SHA256SUMS", *facts)


def test_a_line_removed_from_the_sums_makes_its_file_extra(bundle):
    lines = (bundle / layout.SUMS).read_text().splitlines(keepends=True)
    (bundle / layout.SUMS).write_text("".join(line for line in lines if not line.endswith("model.ts\n")))
    report = packager.verify(bundle)
    assert report.integrity.extra == ("model.ts",)
    assert not report.ok


# -- resealed: the files agree with the sums, but are wrong ---------------------------------


def change_weight(path):
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("weight") or tensor.dims)
    values = onnx.numpy_helper.to_array(weight) + 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def test_a_resealed_bundle_whose_config_has_the_old_digest_is_refused(bundle, golden):
    change_weight(bundle / "model.onnx")
    reseal(bundle)
    (line,) = packager.verify(bundle).structure
    golden(line, "config.json", "model.onnx", "SHA256SUMS")


def test_a_resealed_bundle_with_a_changed_weight_fails_parity(bundle, built):
    change_weight(bundle / "model.onnx")
    assert update_digests(bundle) != built.fingerprint
    report = packager.verify(bundle, trust_program=True)
    assert report.integrity.is_intact
    assert report.structure == ()
    assert report.parity == {"onnx": "fail", "torchscript": "pass"}
    assert not report.ok
    assert report.notes[0].startswith("onnx: logits[")


def test_a_resealed_bundle_with_changed_evidence_fails_parity(bundle):
    import safetensors.numpy

    arrays = safetensors.numpy.load_file(bundle / layout.GOLDEN)
    name = next(name for name in arrays if "/output/" in name)
    arrays[name] = arrays[name] + 1
    safetensors.numpy.save_file(arrays, bundle / layout.GOLDEN)
    reseal(bundle)
    assert packager.verify(bundle, trust_program=True).parity == {"onnx": "fail", "torchscript": "fail"}


def test_a_resealed_bundle_without_golden_cases_fails_parity(bundle):
    def change(record):
        for case in record["cases"]:
            case["golden"] = False

    edit(bundle / layout.PARITY, change)
    reseal(bundle)
    report = packager.verify(bundle, trust_program=True)
    assert report.parity == {"onnx": "fail", "torchscript": "fail"}
    assert not report.ok


def test_a_resealed_bundle_with_an_empty_golden_file_fails_parity(bundle):
    import safetensors.numpy

    safetensors.numpy.save_file({}, bundle / layout.GOLDEN)
    reseal(bundle)
    report = packager.verify(bundle, trust_program=True)
    assert report.parity == {"onnx": "fail", "torchscript": "fail"}
    assert report.notes[0].startswith("evidence: KeyError")


@pytest.mark.parametrize(
    ("field", "value", "declared"),
    [
        ("dtype", "float16", "float16['batch', 1, 8, 8]"),
        ("shape", ["batch", 1, 8, 9], "float32['batch', 1, 8, 9]"),
        ("shape", ["batch", 64], "float32['batch', 64]"),
    ],
)
def test_a_resealed_bundle_whose_config_has_a_different_signature_is_refused(bundle, field, value, declared, golden):
    edit(bundle / layout.CONFIG, lambda record: record["inputs"][0].update({field: value}))
    reseal(bundle)
    report = packager.verify(bundle)
    golden(report.structure[0], "model.onnx", "float32['batch', 1, 8, 8]", "config.json", declared)
    assert not report.ok


def test_a_resealed_bundle_whose_evidence_has_a_different_signature_is_refused(bundle, golden):
    import safetensors.numpy

    arrays = safetensors.numpy.load_file(bundle / layout.GOLDEN)
    arrays["000/input/image"] = arrays["000/input/image"].astype("float64")
    arrays["001/output/logits"] = arrays["001/output/logits"][:, :9].copy()
    safetensors.numpy.save_file(arrays, bundle / layout.GOLDEN)
    reseal(bundle)
    golden(
        "\n".join(packager.verify(bundle).structure),
        "000",
        "float64[2, 1, 8, 8]",
        "config.json",
        "float32['batch', 1, 8, 8]",
        "image",
        "001",
        "float32[1, 9]",
        "float32['batch', 10]",
        "logits",
    )


def test_a_model_that_declares_a_wrong_output_size_is_refused(tmp_path, golden):
    """If config.json leaves a dim open, the model may declare a size, which must be that of the outputs."""
    text = LINEAR.replace("self.layer(x)", "self.layer(x).flatten(0, 1)")
    inputs = {"x": {"dtype": "float32", "shape": ["batch", "length", 4]}}
    bundle = packager.build(project(tmp_path / "project", text, inputs=inputs), tmp_path / "out").bundle
    assert json.loads((bundle / "config.json").read_text())["outputs"][0]["shape"] == [None, 3]
    model = onnx.load(bundle / "model.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 6
    onnx.save(model, bundle / "model.onnx")
    update_digests(bundle)
    report = packager.verify(bundle)
    assert report.integrity.is_intact and not report.ok
    (line,) = report.structure
    golden(line, "output_0", "[6, 3]", "001", "[3, 3]")
    assert report.parity == UNCHECKED


def test_a_resealed_bundle_with_an_unknown_file_is_refused(bundle, golden):
    (bundle / "unknown.txt").write_text("hello")
    reseal(bundle)
    (line,) = packager.verify(bundle).structure
    golden(line, "unknown.txt")


@pytest.mark.parametrize("path", ["README.md", "assets/labels.txt", "evidence/golden.safetensors"])
def test_a_resealed_bundle_without_a_required_file_is_refused(bundle, path, golden):
    (bundle / path).unlink()
    if not any((bundle / path).parent.iterdir()):
        (bundle / path).parent.rmdir()
    reseal(bundle)
    (line,) = packager.verify(bundle).structure
    golden(line, path, "SHA256SUMS")


DOCUMENTS = ["evidence/bom.cdx.json", "evidence/parity.intoto.json", "evidence/provenance.intoto.json"]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_resealed_bundle_without_a_standard_document_is_refused(bundle, path):
    (bundle / path).unlink()
    reseal(bundle, documents=False)
    assert packager.verify(bundle).structure == (f"{path} is missing from SHA256SUMS",)


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("evidence/bom.cdx.json", '"value": "1650"', '"value": "1651"'),
        ("evidence/bom.cdx.json", '"specVersion"', '"version": 1, "specVersion"'),
        ("evidence/parity.intoto.json", '"failedTests": []', '"failedTests": ["onnx/000"]'),
        ("evidence/parity.intoto.json", '"onnx/000",', ""),
        ("evidence/provenance.intoto.json", '"x86_64"', '"sparc"'),
        ("evidence/provenance.intoto.json", "pkg:pypi/torch-packager#build", "https://example.com/build"),
        ("evidence/provenance.intoto.json", "\n", ""),
    ],
)
def test_a_resealed_bundle_whose_document_disagrees_with_the_records_is_refused(bundle, path, before, after, golden):
    text = (bundle / path).read_text().replace('"aarch64"', '"x86_64"')
    assert before in text
    (bundle / path).write_text(text.replace(before, after))
    reseal(bundle, documents=False)
    report = packager.verify(bundle)
    assert report.integrity.is_intact and not report.ok
    (line,) = report.structure
    golden(line, path, "records")
    assert report.parity == UNCHECKED


@pytest.mark.parametrize("record", ["config.json", "evidence/parity.json", "evidence/build.json"])
def test_a_resealed_bundle_whose_records_were_changed_without_the_documents_is_refused(bundle, record):
    edit(bundle / record, lambda record: record.update({"schema": 1}))  # other bytes, the same values
    reseal(bundle, documents=False)
    assert "evidence/provenance.intoto.json does not agree with the records" in packager.verify(bundle).structure
    reseal(bundle)
    assert packager.verify(bundle).ok


def test_a_resealed_config_without_a_toolchain_is_verified(bundle):
    edit(bundle / "config.json", lambda record: record["source"].update(toolchain={}))
    reseal(bundle)
    assert packager.verify(bundle, parity=False).ok


@pytest.mark.parametrize("path", ["evidence/parity.json", "evidence/build.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', "\xff", None])
def test_a_resealed_bundle_with_a_malformed_record_is_refused(bundle, path, content):
    if content is None:
        (bundle / path).unlink()
    else:
        (bundle / path).write_bytes(content.encode("latin-1"))
    reseal(bundle)
    report = packager.verify(bundle)
    assert not report.ok
    assert len(report.structure) == 1
    assert report.parity == UNCHECKED


@pytest.mark.parametrize("rule", ["the best", "top-0", "threshold much", ""])
def test_a_resealed_bundle_with_an_unknown_decision_rule_is_refused(bundle, rule):
    edit(bundle / layout.PARITY, lambda record: record["decisions"].update(logits={"rule": rule, "axis": 1, "tie": 0}))
    reseal(bundle)
    report = packager.verify(bundle)
    assert "decisions.logits.rule" in report.structure[0]
    assert not report.ok


def test_a_resealed_bundle_with_a_decision_on_a_missing_axis_fails(bundle):
    decision = {"rule": "argmax", "axis": 7, "tie": 0.25}
    edit(bundle / layout.PARITY, lambda record: record["decisions"].update(logits=decision))
    reseal(bundle)
    report = packager.verify(bundle, trust_program=True)
    assert report.parity == {"onnx": "fail", "torchscript": "fail"}
    mentions(report.notes[0], "2", "7", "axis")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("inputs"),
        lambda record: record.update(unknown=1),
        lambda record: record["artifacts"].pop("torchscript"),
        lambda record: record["artifacts"]["onnx"].update(path=3),
        lambda record: record["parity"].update(onnx="not-checked"),
        lambda record: record["artifacts"]["onnx"].update(path="../model.onnx"),
        lambda record: record["inputs"][0].update(name="picture"),
        lambda record: record["outputs"][0].update(name="scores"),
        lambda record: record["artifacts"].update(onnx=None, torchscript=None),
    ],
)
def test_a_resealed_bundle_with_a_malformed_config_is_refused(bundle, change):
    edit(bundle / "config.json", change)
    reseal(bundle)
    report = packager.verify(bundle)
    assert report.integrity.is_intact
    assert report.structure
    assert not report.ok


def test_a_resealed_model_that_does_not_load_is_refused(bundle):
    (bundle / "model.onnx").write_bytes(b"not a model")
    update_digests(bundle)
    report = packager.verify(bundle)
    assert not report.ok
    mentions(report.structure[0], "model.onnx")


# -- anything but a bundle ------------------------------------------------------------------


def test_an_unknown_schema_is_refused_before_anything_else(bundle, golden):
    edit(bundle / "config.json", lambda record: (record.clear(), record.update(schema=2, fields=[])))
    reseal(bundle)
    with pytest.raises(BundleSchemaUnknown) as caught:
        packager.verify(bundle)
    golden(render_error(caught.value), "error[bundle-schema-unknown]", bundle, "2", "1")


@pytest.mark.parametrize("schema", [None, "1", 0, [1]])
def test_an_invalid_schema_number_is_refused(bundle, schema):
    edit(bundle / "config.json", lambda record: record.update(schema=schema))
    reseal(bundle)
    with pytest.raises(BundleSchemaUnknown):
        packager.verify(bundle)


def test_anything_but_a_bundle_is_refused(tmp_path, bundle, golden):
    def why(path):
        with pytest.raises(NotABundle) as caught:
            packager.verify(path)
        return caught.value.why

    golden(why(tmp_path / "nowhere"), ".zip")
    golden(why(tmp_path), "SHA256SUMS")
    golden(why(tmp_path / "nowhere.zip"), ".zip")
    golden(why(bundle / "README.md"), ".zip")
    (bundle / "config.json").write_text("{")
    reseal(bundle)
    (bundle / "FINGERPRINT").unlink()
    mentions(why(bundle), "config.json")
    (bundle / "config.json").unlink()
    golden(why(bundle), "config.json")


@pytest.mark.parametrize("name", ["SHA256SUMS", "config.json"])
def test_a_bundle_that_lost_a_required_file_fails_integrity(bundle, name, golden):
    (bundle / name).unlink()
    for function in (packager.verify, packager.load):
        with pytest.raises(IntegrityFailed) as caught:
            function(bundle)
        assert caught.value.exit_status == 1
        golden(caught.value.why, name)
    (bundle / name).write_text("{")
    assert packager.verify(bundle).integrity.changed == (name,)


# -- archives -------------------------------------------------------------------------------


def zipped(bundle):
    archive.write_archive(bundle, bundle.with_name("net.zip"))
    return bundle.with_name("net.zip")


def test_an_archive_is_verified_like_its_folder(archived, built, temporary, golden):
    assert packager.verify(archived, fingerprint=built.fingerprint) == packager.verify(built.bundle, trust_program=True)
    (line,) = packager.verify(archived, fingerprint=ANOTHER, parity=False).structure
    golden(line, built.fingerprint, ANOTHER)


def test_an_archive_of_a_changed_bundle_has_the_report_of_its_folder(bundle, temporary):
    (bundle / "model.ts").unlink()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "extra").touch()
    report = packager.verify(zipped(bundle))
    assert report == packager.verify(bundle)
    assert not report.ok


@pytest.mark.parametrize("path", ["model.onnx", "model.ts", "evidence/parity.json", "evidence/golden.safetensors"])
@pytest.mark.parametrize("content", [b"nothing that loads", None])
def test_a_report_on_an_archive_names_no_temporary_folder(bundle, temporary, path, content):
    (bundle / path).unlink()
    if content is not None:
        (bundle / path).write_bytes(content)
        update_digests(bundle)
    reseal(bundle)
    report = packager.verify(zipped(bundle), trust_program=True)
    assert not report.ok
    text = "\n".join((*report.structure, *report.notes))
    assert text and "packager-" not in text and str(temporary) not in text


def test_an_archive_without_a_bundle_is_refused_under_its_own_name(bundle, temporary, golden):
    (bundle / "config.json").unlink()
    (bundle / "FINGERPRINT").unlink()
    path = zipped(bundle)
    with pytest.raises(NotABundle) as caught:
        packager.verify(path)
    golden(render_error(caught.value), "error[not-a-bundle]", path, "config.json", ".zip")


# -- without torch --------------------------------------------------------------------------


def test_without_torch_torchscript_is_reported_as_not_checked(built, golden, tmp_path):
    code = (
        "import sys, json, packager\n"
        "report = packager.verify(sys.argv[1], trust_program=True)\n"
        "print(json.dumps(report.as_json()))"
    )
    process = python(code, built.bundle, env=environment_without_torch(tmp_path / "without"))
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert report["ok"]
    assert report["parity"] == {"onnx": "pass", "torchscript": "not-checked"}
    (line,) = report["notes"]
    golden(line, "torchscript")


def test_a_pipe_in_place_of_the_fingerprint_is_refused_without_blocking(bundle):
    (bundle / "FINGERPRINT").unlink()
    os.mkfifo(bundle / "FINGERPRINT")
    report = packager.verify(bundle)
    assert not report.ok
    mentions(report.structure[0], "FINGERPRINT", "unreadable")


@pytest.mark.parametrize("path", [layout.PARITY, layout.BUILD])
def test_a_record_of_thousands_of_wrong_values_is_refused_for_the_first(bundle, path):
    """pydantic collects an error for each: a gigabyte for a megabyte."""
    field = "cases" if path == layout.PARITY else "steps"
    edit(bundle / path, lambda record: record.update({field: [{"a": 0}] * 20_000}))
    reseal(bundle)
    (line,) = packager.verify(bundle, parity=False).structure
    mentions(line, path, f"{field}.0")


def test_a_record_of_too_many_values_is_refused_unparsed(bundle):
    (bundle / layout.PARITY).write_text("[" + '{"a":0},' * 100_000 + "0]")
    reseal(bundle)
    (line,) = packager.verify(bundle, parity=False).structure
    mentions(line, "values")
