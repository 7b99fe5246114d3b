"""A bundle that was changed in any way is refused, and what was changed is named."""

import json
import os
import shutil

import onnx
import pytest
from messages import mentions
from projects import ANOTHER, LINEAR, project, python, reseal

import packager
from packager.bundle import archive, layout
from packager.bundle.fingerprint import list_files
from packager.errors import BundleSchemaUnknown, FingerprintMalformed, IntegrityFailed, NotABundle, render_error

PASS = {"onnx": "pass", "torchscript": "pass"}
UNCHECKED = {"onnx": "not-checked", "torchscript": "not-checked"}
FILES = [
    "README.md", "assets/labels.txt", "config.json", "evidence/build.json", "evidence/golden.safetensors",
    "evidence/parity.json", "model.onnx", "model.ts",
]  # fmt: skip


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_bundle_as_it_was_built_is_good(built):
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
def test_what_is_no_fingerprint_is_refused_before_anything_is_read(given, tmp_path, golden):
    for ask in (packager.verify, packager.load):
        with pytest.raises(FingerprintMalformed) as caught:
            ask(tmp_path, fingerprint=given)
        golden(
            render_error(caught.value),
            "error[fingerprint-malformed]",
            f"{given!r}",
            "44",
            "base64",
            "FINGERPRINT",
            "package build",
        )


def test_a_copy_with_other_times_and_modes_is_good(bundle, built):
    for path in bundle.rglob("*"):
        os.utime(path, (1, 1))
    (bundle / "model.onnx").chmod(0o400)
    assert packager.verify(bundle).fingerprint == built.fingerprint


def test_the_replay_may_be_left_out(bundle, golden):
    report = packager.verify(bundle, parity=False)
    assert report.ok
    assert report.parity == UNCHECKED
    (line,) = report.notes
    golden(line, "parity")


# -- integrity ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [one for one in FILES if one != "config.json"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_byte_is_found(bundle, path, place):
    content = bytearray((bundle / path).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[place]] ^= 1
    (bundle / path).write_bytes(content)
    report = packager.verify(bundle)
    assert not report.ok
    assert report.integrity.changed == (path,)
    assert report.parity == UNCHECKED
    (line,) = report.notes
    mentions(line, "parity")


def test_a_changed_config_is_found(bundle):
    edit(bundle / "config.json", lambda record: record.update(description="another"))
    assert packager.verify(bundle).integrity.changed == ("config.json",)


@pytest.mark.parametrize("path", [one for one in FILES if one != "config.json"])
def test_a_missing_file_is_found(bundle, path):
    (bundle / path).unlink()
    report = packager.verify(bundle)
    assert not report.ok
    assert report.integrity.missing == (path,)


@pytest.mark.parametrize(
    "path", ["extra.txt", ".hidden", "assets/more.txt", "evidence/deep/er.json", "model.onnx.data"]
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
    found = packager.verify(bundle).integrity
    assert found.extra == ("evidence",)
    assert found.missing == tuple(one for one in FILES if one.startswith("evidence/"))


@pytest.mark.parametrize("length", [0, 100])
def test_a_truncated_file_is_found(bundle, length):
    with (bundle / "model.onnx").open("r+b") as stream:
        stream.truncate(length)
    assert packager.verify(bundle).integrity.changed == ("model.onnx",)


def test_everything_that_is_wrong_is_named_at_once(bundle):
    (bundle / "model.ts").unlink()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "extra").touch()
    found = packager.verify(bundle).integrity
    assert (found.missing, found.extra, found.changed) == (("model.ts",), ("extra",), ("model.onnx",))


# -- the seal -------------------------------------------------------------------------------


def test_another_fingerprint_than_the_one_asked_for_is_refused(bundle, built, golden):
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
        (
            lambda text: text + text.splitlines()[-1] + "\n",
            (),
        ),
        (lambda text: text.replace("  ", " "), ("1",)),
        (lambda text: f"{'0' * 64}  ../out\n" + text, ("1", "../out")),
        (
            lambda text: text.replace("\n", "\r\n"),
            ("README.md\\r",),
        ),
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


def test_a_line_taken_out_of_the_sums_makes_its_file_an_intruder(bundle):
    lines = (bundle / layout.SUMS).read_text().splitlines(keepends=True)
    (bundle / layout.SUMS).write_text("".join(one for one in lines if not one.endswith("model.ts\n")))
    report = packager.verify(bundle)
    assert report.integrity.extra == ("model.ts",)
    assert not report.ok


# -- resealed: the files agree with the sums, and are wrong all the same ---------------------


def change_weight(path):
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name.endswith("weight") or one.dims)
    values = onnx.numpy_helper.to_array(weight) + 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def update_digests(bundle):
    """Make config.json agree with the artifacts as they are now."""
    from packager.common.hashing import sha256_file

    def change(record):
        for artifact in record["artifacts"].values():
            artifact["sha256"] = sha256_file(bundle / artifact["path"])

    edit(bundle / "config.json", change)
    return reseal(bundle)


def test_a_resealed_bundle_whose_config_has_the_old_digest_is_refused(bundle, golden):
    change_weight(bundle / "model.onnx")
    reseal(bundle)
    (line,) = packager.verify(bundle).structure
    golden(line, "config.json", "model.onnx", "SHA256SUMS")


def test_a_resealed_bundle_with_another_weight_fails_parity(bundle, built):
    change_weight(bundle / "model.onnx")
    assert update_digests(bundle) != built.fingerprint
    report = packager.verify(bundle)
    assert report.integrity.is_intact
    assert report.structure == ()
    assert report.parity == {"onnx": "fail", "torchscript": "pass"}
    assert not report.ok
    assert report.notes[0].startswith("onnx: logits[")


def test_a_resealed_bundle_with_other_evidence_fails_parity(bundle):
    import safetensors.numpy

    arrays = safetensors.numpy.load_file(bundle / layout.GOLDEN)
    name = next(one for one in arrays if "/output/" in one)
    arrays[name] = arrays[name] + 1
    safetensors.numpy.save_file(arrays, bundle / layout.GOLDEN)
    reseal(bundle)
    assert packager.verify(bundle).parity == {"onnx": "fail", "torchscript": "fail"}


def test_a_resealed_bundle_without_golden_cases_proves_nothing(bundle):
    def change(record):
        for case in record["cases"]:
            case["golden"] = False

    edit(bundle / layout.PARITY, change)
    reseal(bundle)
    report = packager.verify(bundle)
    assert report.parity == {"onnx": "fail", "torchscript": "fail"}
    assert not report.ok


def test_a_resealed_bundle_whose_evidence_is_gone_from_its_file_fails(bundle):
    import safetensors.numpy

    safetensors.numpy.save_file({}, bundle / layout.GOLDEN)
    reseal(bundle)
    report = packager.verify(bundle)
    assert report.parity == {"onnx": "fail", "torchscript": "fail"}
    assert report.notes[0].startswith("evidence: KeyError")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("dtype", "float16", "float16['batch', 1, 8, 8]"),
        ("shape", ["batch", 1, 8, 9], "float32['batch', 1, 8, 9]"),
        ("shape", ["batch", 64], "float32['batch', 64]"),
        ("shape", ["rows", 1, 8, 8], "float32['rows', 1, 8, 8]"),
    ],
)
def test_a_resealed_bundle_whose_config_tells_of_other_tensors_is_refused(bundle, field, value, told, golden):
    edit(bundle / layout.CONFIG, lambda record: record["inputs"][0].update({field: value}))
    reseal(bundle)
    report = packager.verify(bundle)
    golden(report.structure[0], "model.onnx", "float32['batch', 1, 8, 8]", "config.json", told)
    assert not report.ok


def test_a_resealed_bundle_whose_evidence_is_of_other_tensors_is_refused(bundle, golden):
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


def test_a_model_that_declares_a_size_that_its_outputs_have_not_is_refused(tmp_path, golden):
    """Where config.json leaves a dim open, the model may name none either; what it declares must be so."""
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


def test_a_resealed_bundle_with_a_stranger_in_it_is_refused(bundle, golden):
    (bundle / "stranger.txt").write_text("hello")
    reseal(bundle)
    (line,) = packager.verify(bundle).structure
    golden(line, "stranger.txt")


@pytest.mark.parametrize("path", ["README.md", "assets/labels.txt", "evidence/golden.safetensors"])
def test_a_resealed_bundle_without_a_part_is_refused(bundle, path, golden):
    (bundle / path).unlink()
    reseal(bundle)
    (line,) = packager.verify(bundle).structure
    golden(line, path, "SHA256SUMS")


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
def test_a_resealed_bundle_whose_decision_is_by_no_rule_is_refused(bundle, rule):
    edit(bundle / layout.PARITY, lambda record: record["decisions"].update(logits={"rule": rule, "axis": 1, "tie": 0}))
    reseal(bundle)
    report = packager.verify(bundle)
    assert "decisions.logits.rule" in report.structure[0]
    assert not report.ok


def test_a_resealed_bundle_whose_decision_is_on_no_axis_fails(bundle):
    decision = {"rule": "argmax", "axis": 7, "tie": 0.25}
    edit(bundle / layout.PARITY, lambda record: record["decisions"].update(logits=decision))
    reseal(bundle)
    report = packager.verify(bundle)
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


# -- what is no bundle ----------------------------------------------------------------------


def test_an_unknown_schema_is_refused_before_anything_else(bundle, golden):
    edit(bundle / "config.json", lambda record: record.update(schema=2))
    with pytest.raises(BundleSchemaUnknown) as caught:
        packager.verify(bundle)
    golden(render_error(caught.value), "error[bundle-schema-unknown]", bundle, "2", "1")


@pytest.mark.parametrize("schema", [None, "1", 0, [1]])
def test_a_schema_that_is_no_known_number_is_refused(bundle, schema):
    edit(bundle / "config.json", lambda record: record.update(schema=schema))
    with pytest.raises(BundleSchemaUnknown):
        packager.verify(bundle)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path, bundle, golden):
    def why(path):
        with pytest.raises(NotABundle) as caught:
            packager.verify(path)
        return caught.value.why

    golden(why(tmp_path / "nowhere"), ".zip")
    golden(why(tmp_path), "SHA256SUMS")
    golden(why(tmp_path / "nowhere.zip"), ".zip")
    golden(why(bundle / "README.md"), ".zip")
    (bundle / "FINGERPRINT").unlink()
    (bundle / "config.json").write_text("{")
    mentions(why(bundle), "config.json")
    (bundle / "config.json").unlink()
    golden(why(bundle), "config.json")


@pytest.mark.parametrize("name", ["SHA256SUMS", "config.json"])
def test_what_was_a_bundle_and_has_lost_a_file_is_not_what_was_built(bundle, name, golden):
    (bundle / name).unlink()
    for ask in (packager.verify, packager.load):
        with pytest.raises(IntegrityFailed) as caught:
            ask(bundle)
        assert caught.value.exit_status == 1
        golden(caught.value.why, name)
    (bundle / name).write_text("{")
    if name == "config.json":
        with pytest.raises(IntegrityFailed):
            packager.verify(bundle)


# -- archives -------------------------------------------------------------------------------


def zipped(bundle):
    archive.write_archive(bundle, bundle.with_name("net.zip"))
    return bundle.with_name("net.zip")


def test_an_archive_is_verified_like_its_folder(archived, built, temporary, golden):
    assert packager.verify(archived, fingerprint=built.fingerprint) == packager.verify(built.bundle)
    (line,) = packager.verify(archived, fingerprint=ANOTHER, parity=False).structure
    golden(line, built.fingerprint, ANOTHER)


def test_an_archive_of_a_changed_bundle_gives_the_report_of_the_folder(bundle, temporary):
    (bundle / "model.ts").unlink()
    (bundle / "model.onnx").write_bytes(b"x")
    (bundle / "extra").touch()
    report = packager.verify(zipped(bundle))
    assert report == packager.verify(bundle)
    assert not report.ok


@pytest.mark.parametrize("path", ["model.onnx", "model.ts", "evidence/parity.json", "evidence/golden.safetensors"])
@pytest.mark.parametrize("content", [b"nothing that loads", None])
def test_what_is_said_of_an_archive_names_no_temporary_folder(bundle, temporary, path, content):
    (bundle / path).unlink()
    if content is not None:
        (bundle / path).write_bytes(content)
        update_digests(bundle)
    reseal(bundle)
    report = packager.verify(zipped(bundle))
    assert not report.ok
    said = "\n".join((*report.structure, *report.notes))
    assert said and "packager-" not in said and str(temporary) not in said


def test_what_is_no_bundle_in_an_archive_is_said_under_its_name(bundle, temporary, golden):
    (bundle / "config.json").unlink()
    (bundle / "FINGERPRINT").unlink()
    path = zipped(bundle)
    with pytest.raises(NotABundle) as caught:
        packager.verify(path)
    golden(render_error(caught.value), "error[not-a-bundle]", path, "config.json", ".zip")


# -- without torch --------------------------------------------------------------------------


def test_without_torch_torchscript_is_not_checked_and_that_is_said(built, golden):
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "import packager\n"
        "report = packager.verify(sys.argv[1])\n"
        "print(json.dumps(report.as_json()))"
    )
    done = python(code, built.bundle)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["parity"] == {"onnx": "pass", "torchscript": "not-checked"}
    (line,) = report["notes"]
    golden(line, "torchscript")


def test_a_pipe_in_place_of_the_fingerprint_is_refused_and_not_waited_for(bundle):
    (bundle / "FINGERPRINT").unlink()
    os.mkfifo(bundle / "FINGERPRINT")
    report = packager.verify(bundle)
    assert not report.ok
    mentions(report.structure[0], "FINGERPRINT", "(OSError)")
