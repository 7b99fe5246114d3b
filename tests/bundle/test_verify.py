"""A bundle that was changed in any way is refused, and what was changed is named."""

import json
import os
import shutil

import onnx
import pytest
from projects import ANOTHER, LINEAR, project, python, reseal

import packager
from packager.bundle import archive, layout
from packager.bundle.fingerprint import files_in
from packager.errors import BundleSchemaUnknown, FingerprintMalformed, IntegrityFailed, NotABundle, render

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
    assert files_in(built.bundle) == FILES


@pytest.mark.parametrize(
    "given", ["nonsense", "", "h1:", ANOTHER[:-1], ANOTHER + "=", ANOTHER + "\n", "H" + ANOTHER[1:]]
)
def test_what_is_no_fingerprint_is_refused_before_anything_is_read(given, tmp_path):
    for ask in (packager.verify, packager.load):
        with pytest.raises(FingerprintMalformed) as caught:
            ask(tmp_path, fingerprint=given)
        assert render(caught.value) == (
            f"error[fingerprint-malformed]: {given!r} is no fingerprint\n"
            "  a bundle's is h1: and 44 characters of base64\n"
            "hint: it stands in the bundle's FINGERPRINT where it was built, and `package build` prints it"
        )


def test_a_copy_with_other_times_and_modes_is_good(bundle, built):
    for path in bundle.rglob("*"):
        os.utime(path, (1, 1))
    (bundle / "model.onnx").chmod(0o400)
    assert packager.verify(bundle).fingerprint == built.fingerprint


def test_the_replay_may_be_left_out(bundle):
    report = packager.verify(bundle, parity=False)
    assert report.ok
    assert report.parity == UNCHECKED
    assert report.notes == ("parity: not asked for",)


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
    assert report.notes == ("parity: not replayed on files in doubt",)


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


def test_another_fingerprint_than_the_one_asked_for_is_refused(bundle, built):
    report = packager.verify(bundle, fingerprint=ANOTHER)
    assert not report.ok
    assert report.structure == (f"the fingerprint is {built.fingerprint}, and {ANOTHER} was asked for",)


def test_a_changed_fingerprint_file_is_refused(bundle, built):
    (bundle / layout.FINGERPRINT).write_text(ANOTHER + "\n")
    report = packager.verify(bundle)
    assert (report.ok, report.integrity.changed) == (False, ("FINGERPRINT",))
    assert report.structure == (f"FINGERPRINT says {ANOTHER}, and the files make {built.fingerprint}",)


def test_a_missing_fingerprint_file_is_refused(bundle):
    (bundle / layout.FINGERPRINT).unlink()
    report = packager.verify(bundle)
    assert (report.ok, report.integrity.missing, report.structure) == (False, ("FINGERPRINT",), ())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[:-1], "SHA256SUMS: the lines are not sorted, or a path stands twice"),
        (
            lambda text: text + text.splitlines()[-1] + "\n",
            "SHA256SUMS: the lines are not sorted, or a path stands twice",
        ),
        (lambda text: text.replace("  ", " "), "SHA256SUMS: line 1 is no digest and path"),
        (lambda text: f"{'0' * 64}  ../out\n" + text, "SHA256SUMS: line 1 names a path outside the bundle: ../out"),
        (
            lambda text: text.replace("\n", "\r\n"),
            "SHA256SUMS: a path in a bundle has no line break and no backslash: 'README.md\\r'",
        ),
    ],
    ids=["no last line break", "a line twice", "one space", "outside", "carriage returns"],
)
def test_malformed_sums_are_refused(bundle, change, why):
    text = (bundle / layout.SUMS).read_text()
    (bundle / layout.SUMS).write_bytes(change(text).encode())
    report = packager.verify(bundle)
    assert (report.ok, report.integrity.changed) == (False, ("SHA256SUMS",))
    assert report.structure == (why,)


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
    from packager.hashing import sha256_file

    def change(record):
        for artifact in record["artifacts"].values():
            artifact["sha256"] = sha256_file(bundle / artifact["path"])

    edit(bundle / "config.json", change)
    return reseal(bundle)


def test_a_resealed_bundle_whose_config_has_the_old_digest_is_refused(bundle):
    change_weight(bundle / "model.onnx")
    reseal(bundle)
    assert packager.verify(bundle).structure == ("config.json gives model.onnx another digest than SHA256SUMS",)


def test_a_resealed_bundle_with_another_weight_fails_parity(bundle, built):
    change_weight(bundle / "model.onnx")
    assert update_digests(bundle) != built.fingerprint
    report = packager.verify(bundle)
    assert report.integrity.whole
    assert report.structure == ()
    assert report.parity == {"onnx": "fail", "torchscript": "pass"}
    assert not report.ok
    assert report.notes[0].startswith("onnx: logits[")


def test_a_resealed_bundle_with_other_evidence_fails_parity(bundle):
    import safetensors.numpy

    golden = safetensors.numpy.load_file(bundle / layout.GOLDEN)
    name = next(one for one in golden if "/output/" in one)
    golden[name] = golden[name] + 1
    safetensors.numpy.save_file(golden, bundle / layout.GOLDEN)
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
def test_a_resealed_bundle_whose_config_tells_of_other_tensors_is_refused(bundle, field, value, told):
    edit(bundle / layout.CONFIG, lambda record: record["inputs"][0].update({field: value}))
    reseal(bundle)
    report = packager.verify(bundle)
    assert report.structure[0] == f"model.onnx has image as float32['batch', 1, 8, 8], and config.json as {told}"
    assert not report.ok


def test_a_resealed_bundle_whose_evidence_is_of_other_tensors_is_refused(bundle):
    import safetensors.numpy

    golden = safetensors.numpy.load_file(bundle / layout.GOLDEN)
    golden["000/input/image"] = golden["000/input/image"].astype("float64")
    golden["001/output/logits"] = golden["001/output/logits"][:, :9].copy()
    safetensors.numpy.save_file(golden, bundle / layout.GOLDEN)
    reseal(bundle)
    assert packager.verify(bundle).structure == (
        "evidence: case 000 has image as float64[2, 1, 8, 8], and config.json as float32['batch', 1, 8, 8]",
        "evidence: case 001 has logits as float32[1, 9], and config.json as float32['batch', 10]",
    )


def test_a_model_that_declares_a_size_that_its_outputs_have_not_is_refused(tmp_path):
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
    assert report.integrity.whole and not report.ok
    assert report.structure == ("the model declares output_0 as [6, 3], and case 001 has [3, 3]",)
    assert report.parity == UNCHECKED


def test_a_resealed_bundle_with_a_stranger_in_it_is_refused(bundle):
    (bundle / "stranger.txt").write_text("hello")
    reseal(bundle)
    assert packager.verify(bundle).structure == ("stranger.txt belongs to no bundle",)


@pytest.mark.parametrize("path", ["README.md", "assets/labels.txt", "evidence/golden.safetensors"])
def test_a_resealed_bundle_without_a_part_is_refused(bundle, path):
    (bundle / path).unlink()
    reseal(bundle)
    assert packager.verify(bundle).structure == (f"{path} is missing from SHA256SUMS",)


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
    assert "it has 2 axes, and no axis 7" in report.notes[0]


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
    assert report.integrity.whole
    assert report.structure
    assert not report.ok


def test_a_resealed_model_that_does_not_load_is_refused(bundle):
    (bundle / "model.onnx").write_bytes(b"not a model")
    update_digests(bundle)
    report = packager.verify(bundle)
    assert not report.ok
    assert report.structure[0].startswith("model.onnx does not load: ")


# -- what is no bundle ----------------------------------------------------------------------


def test_an_unknown_schema_is_refused_before_anything_else(bundle):
    edit(bundle / "config.json", lambda record: record.update(schema=2))
    with pytest.raises(BundleSchemaUnknown) as caught:
        packager.verify(bundle)
    assert render(caught.value) == (
        f"error[bundle-schema-unknown]: {bundle} is a bundle of schema 2, and this packager reads schema 1\n"
        "hint: upgrade packager"
    )


@pytest.mark.parametrize("schema", [None, "1", 0, [1]])
def test_a_schema_that_is_no_known_number_is_refused(bundle, schema):
    edit(bundle / "config.json", lambda record: record.update(schema=schema))
    with pytest.raises(BundleSchemaUnknown):
        packager.verify(bundle)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path, bundle):
    def why(path):
        with pytest.raises(NotABundle) as caught:
            packager.verify(path)
        return caught.value.why

    assert why(tmp_path / "nowhere") == "there is no such folder or .zip"
    assert why(tmp_path) == "it has no SHA256SUMS"
    assert why(tmp_path / "nowhere.zip") == "there is no such folder or .zip"
    assert why(bundle / "README.md") == "it is a file, and a bundle is a folder or a .zip"
    (bundle / "FINGERPRINT").unlink()
    (bundle / "config.json").write_text("{")
    assert why(bundle).startswith("config.json cannot be read: ")
    (bundle / "config.json").unlink()
    assert why(bundle) == "it has no config.json"


@pytest.mark.parametrize("name", ["SHA256SUMS", "config.json"])
def test_what_was_a_bundle_and_has_lost_a_file_is_not_what_was_built(bundle, name):
    (bundle / name).unlink()
    for ask in (packager.verify, packager.load):
        with pytest.raises(IntegrityFailed) as caught:
            ask(bundle)
        assert (caught.value.exit_status, caught.value.why) == (1, f"it has no {name}")
    (bundle / name).write_text("{")
    if name == "config.json":
        with pytest.raises(IntegrityFailed, match="is not what was built"):
            packager.verify(bundle)


# -- archives -------------------------------------------------------------------------------


def zipped(bundle):
    archive.write(bundle, bundle.with_name("net.zip"))
    return bundle.with_name("net.zip")


def test_an_archive_is_verified_like_its_folder(archived, built, temporary):
    assert packager.verify(archived, fingerprint=built.fingerprint) == packager.verify(built.bundle)
    assert packager.verify(archived, fingerprint=ANOTHER, parity=False).structure == (
        f"the fingerprint is {built.fingerprint}, and {ANOTHER} was asked for",
    )


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


def test_what_is_no_bundle_in_an_archive_is_said_under_its_name(bundle, temporary):
    (bundle / "config.json").unlink()
    (bundle / "FINGERPRINT").unlink()
    path = zipped(bundle)
    with pytest.raises(NotABundle) as caught:
        packager.verify(path)
    assert render(caught.value) == (
        f"error[not-a-bundle]: {path} is not a bundle\n"
        "  it has no config.json\n"
        "hint: give a bundle's folder, or its archive, a .zip"
    )


# -- without torch --------------------------------------------------------------------------


def test_without_torch_torchscript_is_not_checked_and_that_is_said(built):
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
    assert report["notes"] == ["torchscript: torch is not installed here"]


def test_a_pipe_in_place_of_the_fingerprint_is_refused_and_not_waited_for(bundle):
    (bundle / "FINGERPRINT").unlink()
    os.mkfifo(bundle / "FINGERPRINT")
    report = packager.verify(bundle)
    assert not report.ok
    assert report.structure[0].startswith("FINGERPRINT is unreadable (OSError), and the files make h1:")
