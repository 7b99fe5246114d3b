"""Load is as strict as verify, for all that it uses: every change is refused by both, as a folder and as an archive."""

import hashlib
import itertools
import json
import os
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from projects import minimal_config, python, reseal

import packager
from packager.bundle.archive import write_archive
from packager.bundle.config import MAX_CONFIG_BYTES
from packager.bundle.fingerprint import compute_fingerprint
from packager.common import hashing
from packager.errors import BundleSchemaUnknown, IntegrityFailed, NotABundle, PackagerError, SelftestFailed

UNSEALED = ("SHA256SUMS", "FINGERPRINT")
USED = (*UNSEALED, "config.json", "model.onnx", "model.onnx_data")


def files_of(bundle):
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


def is_refused(path):
    """Return whether verify and a load of everything refuse a bundle, with errors of ours; they must agree.

    A plain load must agree too, unless all that changed is the content of files that it does not use.
    """
    unused_only = False
    try:
        report = packager.verify(path, parity=False)
        verified, changed = report.ok, report.integrity.changed
        others = (*report.structure, *report.integrity.missing, *report.integrity.extra)
        unused_only = bool(changed) and not others and not any(name in USED for name in changed)
    except PackagerError:
        verified = False
    assert loads(path, verify="all") == verified
    assert loads(path) == (verified or unused_only)
    return not verified


def loads(path, **options):
    try:
        return bool(packager.load(path, **options))
    except PackagerError:
        return False


def refused_as_folder_and_archive(bundle):
    if not is_refused(bundle):
        return False
    archive = bundle.with_name("changed.zip")
    try:
        write_archive(bundle, archive)
    except PackagerError:
        return True  # a link, a pipe
    return is_refused(archive)


@pytest.fixture
def restore(built, bundle):
    """Return a function that puts a file of the bundle back."""

    def put_back(path):
        shutil.copyfile(built.bundle / path, bundle / path)

    return put_back


# -- changes --------------------------------------------------------------------------------


def test_the_bundle_itself_is_accepted_as_folder_and_archive(bundle, archived):
    assert not is_refused(bundle) and not is_refused(archived)


def test_every_byte_of_the_seal_and_of_config_and_a_sample_of_all_others_is_protected(built, bundle, restore):
    generator = random.Random(7)
    for path in files_of(built.bundle):
        content = (built.bundle / path).read_bytes()
        count = 40 if path in (*UNSEALED, "config.json") else 6
        for position in generator.sample(range(len(content)), min(count, len(content))):
            changed = bytearray(content)
            changed[position] ^= 1 << generator.randrange(8)
            (bundle / path).write_bytes(changed)
            assert is_refused(bundle), (path, position)
        restore(path)


def test_truncated_emptied_lengthened_and_removed_files_are_refused(built, bundle, restore):
    for path in files_of(built.bundle):
        content = (built.bundle / path).read_bytes()
        for changed in (content[:-1], content[: len(content) // 2], b"", content + b"\n", content + content, None):
            if changed == content:
                continue
            (bundle / path).unlink(missing_ok=True)
            if changed is not None:
                (bundle / path).write_bytes(changed)
            assert refused_as_folder_and_archive(bundle), (path, changed and len(changed))
        restore(path)
    assert not is_refused(bundle)


def test_renamed_and_swapped_files_are_refused(built, bundle, restore):
    for path in files_of(built.bundle):
        (bundle / path).rename(bundle / f"{path}.renamed")
        assert refused_as_folder_and_archive(bundle), path
        (bundle / f"{path}.renamed").rename(bundle / path)
    for first, second in itertools.combinations(files_of(built.bundle), 2):
        shutil.copyfile(built.bundle / second, bundle / first)
        shutil.copyfile(built.bundle / first, bundle / second)
        assert is_refused(bundle), (first, second)
        restore(first)
        restore(second)
    assert not is_refused(bundle)


@pytest.mark.parametrize("path", ["x", ".gitattributes", "assets/x", "model.sig/x", "evidence/.x", "FINGERPRINT.txt"])
def test_an_added_file_is_refused(bundle, path):
    (bundle / path).parent.mkdir(exist_ok=True)
    (bundle / path).touch()
    assert refused_as_folder_and_archive(bundle)


@pytest.mark.parametrize("path", ["empty", "assets/empty", "empty/inner", "model.sig"])
def test_an_added_empty_folder_is_refused(bundle, path):
    (bundle / path).mkdir(parents=True)
    assert is_refused(bundle)
    assert packager.verify(bundle).integrity.extra == (f"{path}/",)


@pytest.mark.parametrize("path", ["model.onnx", "config.json", "SHA256SUMS", "FINGERPRINT", "evidence", "assets"])
def test_a_link_to_the_same_content_is_refused(bundle, tmp_path, path):
    shutil.move(bundle / path, tmp_path / "elsewhere")
    (bundle / path).symlink_to(tmp_path / "elsewhere")
    assert is_refused(bundle)


@pytest.mark.parametrize("path", ["model.onnx", "config.json", "SHA256SUMS", "FINGERPRINT", "model.sig", "added"])
def test_a_pipe_is_refused_without_waiting(bundle, path):
    (bundle / path).unlink(missing_ok=True)
    os.mkfifo(bundle / path)
    assert is_refused(bundle)


def test_a_signature_that_is_a_link_is_refused_and_a_file_is_not(bundle, tmp_path):
    (bundle / "model.sig").write_text("{}")
    assert not is_refused(bundle)
    (bundle / "model.sig").unlink()
    (bundle / "model.sig").symlink_to(bundle / "README.md")
    assert is_refused(bundle)


def test_the_seal_of_an_earlier_bundle_is_refused(built, bundle, restore):
    (bundle / "README.md").write_text("an earlier one")
    reseal(bundle)
    assert not is_refused(bundle)
    old = {path: (bundle / path).read_bytes() for path in (*UNSEALED, "README.md")}
    for changed in (("SHA256SUMS",), ("FINGERPRINT",), UNSEALED, ("README.md",), ("SHA256SUMS", "README.md")):
        for path in old:
            (bundle / path).write_bytes(old[path] if path in changed else (built.bundle / path).read_bytes())
        assert refused_as_folder_and_archive(bundle), changed


def test_no_digest_is_asked_for_without_verify_but_parsing_is_as_strict(bundle):
    (bundle / "FINGERPRINT").unlink()
    (bundle / "README.md").write_text("changed")
    assert packager.load(bundle, verify=False).backend == "onnx"
    config = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(config.replace("{", '{"name": "twice", ', 1))
    with pytest.raises(NotABundle, match="'name' appears twice"):
        packager.load(bundle, verify=False)


# -- config.json ----------------------------------------------------------------------------


def change_config(bundle, change):
    record = json.loads((bundle / "config.json").read_text())
    change(record)
    (bundle / "config.json").write_text(json.dumps(record))
    reseal(bundle)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda record: record["artifacts"]["onnx"].update(path=[]), "artifacts.onnx.path"),
        (lambda record: record["artifacts"].update(onnx=[]), "artifacts.onnx"),
        (lambda record: record["artifacts"]["onnx"].update(sha256="0"), "artifacts.onnx.sha256"),
        (lambda record: record["artifacts"]["torchscript"].update(path="../x"), "'../x' is in a folder"),
        (lambda record: record.pop("providers"), "providers is missing"),
        (lambda record: record.update(dims={}), "dim 'batch'"),
        (lambda record: record["dims"]["batch"].update(min="1"), "dims.batch.min"),
        (lambda record: record["dims"]["batch"].update(min=True), "dims.batch.min"),
        (lambda record: record["dims"]["batch"].update(min=5, max=2), "dims.batch"),
        (lambda record: record["inputs"][0].update(shape=[None, 1, 8, 8]), "'image' has the dim None"),
        (lambda record: record["inputs"][0].update(shape=[-1]), "negative"),
        (lambda record: record["inputs"][0].update(dtype="object"), "'object'"),
        (lambda record: record["inputs"].append(record["inputs"][0]), "appears twice"),
        (lambda record: record.update(inputs={}), "inputs"),
        (lambda record: record.update(unknown="\x1b[2J\x07"), "unknown"),
        (lambda record: record["parity"].update(onnx="fail"), "parity.onnx"),
    ],
)
def test_a_sealed_config_that_is_malformed_is_refused_by_both_with_the_field(bundle, change, facts):
    change_config(bundle, change)
    with pytest.raises(NotABundle) as caught:
        packager.load(bundle)
    assert facts in caught.value.why
    report = packager.verify(bundle)
    assert not report.ok and facts in report.structure[0]
    with pytest.raises(NotABundle):
        packager.load(bundle, verify=False)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[" * 200_000, "cannot be read"),
        (b'{"schema": 1, "metadata": ' + b'{"a": ' * 101 + b"1" + b"}" * 102, "levels deep"),
        (b'{"schema": NaN}', "NaN"),
        (b'{"schema": 1, "name": "\\ud800"}', "surrogates"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"schema": 1' + b"0" * 5000 + b"}", "cannot be read"),
        (minimal_config(description="x" * MAX_CONFIG_BYTES), "at most"),
    ],
    ids=["deep", "101 levels", "NaN", "surrogate", "BOM", "digits", "large"],
)
def test_json_that_python_would_accept_or_choke_on_is_refused(bundle, content, cause):
    (bundle / "config.json").write_bytes(content)
    reseal(bundle)
    for function in (packager.load, packager.verify):
        with pytest.raises(IntegrityFailed) as caught:
            function(bundle)
        assert cause in caught.value.why


def test_a_config_with_a_wrong_digest_is_not_parsed(bundle):
    """Parsing a large document takes a second and a gigabyte, and nobody has vouched for it."""
    (bundle / "config.json").write_bytes(b"[" * 1000)
    with pytest.raises(IntegrityFailed, match=r"changed: config\.json"):
        packager.load(bundle)
    assert packager.verify(bundle).integrity.changed == ("config.json",)


def test_a_newer_schema_is_named_before_its_fields(bundle):
    (bundle / "config.json").write_text('{"schema": 2, "artifacts": 7}')
    reseal(bundle)
    for function in (packager.load, packager.verify):
        with pytest.raises(BundleSchemaUnknown):
            function(bundle)


def test_evidence_that_does_not_fit_fails_the_selftest(bundle):
    parity = bundle / "evidence/parity.json"
    record = json.loads(parity.read_text())
    for output in record["cases"][0]["outputs"].values():
        output["atol"] = "x"
    parity.write_text(json.dumps(record))
    reseal(bundle)
    with pytest.raises(SelftestFailed):
        packager.load(bundle, selftest=True)


# -- names in SHA256SUMS --------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["/etc/x"], ["../x"], ["a//x"], ["a\\x"], ["C:x"], ["C:/x"], ["nul"], ["a/COM1.txt"], ["LPT9 .x"], ["x."],
        ["x "], ["a\x1b[2J"], ["a\x7f"], ["a\u202ex"], ["e\u0301"], ["x" * 256], ["d/" * 33 + "x"], ["A/x", "a/y"],
        ["Model", "model"], ["ß", "ss"], ["a", "a/b"], [f"{number:06}" for number in range(10_001)],
    ],
    ids=lambda names: ascii(names[-1][:20]),
)  # fmt: skip
def test_a_seal_with_names_that_mean_different_files_elsewhere_is_refused(bundle, names):
    sums = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    lines = sorted([*sums, *(f"{'0' * 64}  {name}\n" for name in names)], key=lambda line: line[66:].encode())
    (bundle / "SHA256SUMS").write_text("".join(lines), newline="")
    (bundle / "FINGERPRINT").write_text(compute_fingerprint("".join(lines)) + "\n")
    with pytest.raises(IntegrityFailed) as caught:
        packager.load(bundle)
    assert "SHA256SUMS: " in caught.value.why and caught.value.why.isprintable() == ("\n" not in caught.value.why)
    report = packager.verify(bundle)
    assert report.integrity.changed == ("SHA256SUMS",) and report.structure


def test_more_files_or_deeper_folders_than_a_bundle_may_have_are_refused(bundle):
    (bundle / ("d/" * 40)).mkdir(parents=True)
    assert is_refused(bundle)
    shutil.rmtree(bundle / "d")
    (bundle / "many").mkdir()
    for number in range(10_001):
        (bundle / "many" / str(number)).touch()
    with pytest.raises(IntegrityFailed, match="more than 10000"):
        packager.load(bundle)


# -- while the files change -----------------------------------------------------------------


def test_files_that_are_swapped_while_they_load_change_nothing(built, bundle, tmp_path):
    """What loads computes what the sealed bundle computes, whichever file has which name at which moment."""
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    expected = packager.load(built.bundle)(image=image)["logits"]
    names = ["model.onnx", "config.json", "SHA256SUMS", "FINGERPRINT", "model.ts"]
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in names:
        (evil / name).write_bytes((built.bundle / "model.ts").read_bytes() if name == "model.onnx" else b"other")
    stop = threading.Event()

    def swap():
        generator = random.Random(3)
        while not stop.is_set():
            name = generator.choice(names)
            source = generator.choice([evil, Path(built.bundle)]) / name
            shutil.copyfile(source, tmp_path / "new")
            (tmp_path / "new").replace(bundle / name)
            if generator.random() < 0.7:
                for each in names:
                    shutil.copyfile(built.bundle / each, tmp_path / "new")
                    (tmp_path / "new").replace(bundle / each)

    outcomes = {"loaded": 0, "refused": 0}
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            try:
                loaded = packager.load(bundle, fallback=False)
            except PackagerError:
                outcomes["refused"] += 1
                continue
            assert loaded.fingerprint == built.fingerprint
            np.testing.assert_array_equal(loaded(image=image)["logits"], expected)
            outcomes["loaded"] += 1
    finally:
        stop.set()
        thread.join()
    assert all(outcomes.values()), outcomes


# -- nothing leaves the machine -------------------------------------------------------------


def test_load_verify_and_run_leave_the_home_folder_empty(built, archived, tmp_path):
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    cache.mkdir()
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    code = (
        f"import os, sys; os.environ.update(HOME={str(home)!r}, XDG_CACHE_HOME={str(cache)!r})\n"
        "os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
        "import packager\nfrom packager.runtime.predict import predict\nfrom pathlib import Path\n"
        "packager.load(sys.argv[1], selftest=True)\nassert packager.verify(sys.argv[2]).ok\n"
        "predict(packager.load(sys.argv[1]), Path(sys.argv[3]), None)\n"
    )
    process = python(code, built.bundle, archived, tmp_path / "x.npz")
    assert process.returncode == 0, process.stderr
    assert list(home.iterdir()) == [] and list(cache.iterdir()) == []


# -- external weights -----------------------------------------------------------------------


@pytest.fixture
def external(bundle, monkeypatch):
    """Return the bundle with its weights in model.onnx_data, of which every 100 bytes have a digest."""
    import onnx

    model = onnx.load(bundle / "model.onnx")
    (bundle / "model.onnx").unlink()
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    monkeypatch.setattr(hashing, "PIECE_BYTES", 100)
    change_pieces(bundle, hashing.sha256_pieces(bundle / "model.onnx_data"))
    return bundle


def change_pieces(bundle, pieces):
    digest = hashlib.sha256((bundle / "model.onnx_data").read_bytes()).hexdigest()
    data = {"path": "model.onnx_data", "sha256": digest, "pieces": pieces}
    change_config(bundle, lambda record: record["artifacts"]["onnx"].update(data=data))


CHANGES = {
    "a byte of the first piece": lambda content: b"\1" + content[1:],
    "a byte of the last piece": lambda content: content[:-1] + b"\1",
    "two pieces exchanged": lambda content: content[100:200] + content[:100] + content[200:],
    "a piece left out": lambda content: content[:100] + content[200:],
    "the last piece left out": lambda content: content[: len(content) // 100 * 100],
    "a byte more": lambda content: content + b"\0",
    "no bytes": lambda content: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_external_weights_that_have_changed_are_refused(external, tmp_path, change):
    path = external / "model.onnx_data"
    changed = CHANGES[change](path.read_bytes())
    assert len(path.read_bytes()) % 100 and changed != path.read_bytes()
    path.write_bytes(changed)
    assert is_refused(external)
    with pytest.raises(IntegrityFailed, match=r"changed: model\.onnx_data"):
        packager.load(external)


@pytest.mark.parametrize("wrong", ["another", "fewer", "more"])
def test_digests_of_pieces_that_are_not_those_of_the_weights_are_refused_by_load_and_verify(external, wrong):
    pieces = hashing.sha256_pieces(external / "model.onnx_data")
    change_pieces(
        external, {"another": ["0" * 64, *pieces[1:]], "fewer": pieces[:-1], "more": [*pieces, "0" * 64]}[wrong]
    )
    assert is_refused(external)
    problem = "config.json has different digests for the pieces of model.onnx_data"
    assert problem in packager.verify(external, parity=False).structure


def test_external_weights_are_those_of_the_bundle_and_stay_after_it_is_gone(external, built, tmp_path):
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    expected = packager.load(built.bundle)(image=image)["logits"]
    write_archive(external, tmp_path / "x.zip")
    for path in (external, tmp_path / "x.zip"):
        loaded = packager.load(path, fallback=False)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        np.testing.assert_allclose(loaded(image=image)["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("location", ["/etc/passwd", "../../secret", "other.data", "README.md"])
def test_weights_from_outside_are_refused_by_load_and_verify(external, tmp_path, location):
    import onnx

    model = onnx.load(external / "model.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (external / "model.onnx").write_bytes(model.SerializeToString())
    update = {"sha256": hashlib.sha256((external / "model.onnx").read_bytes()).hexdigest()}
    digest = hashlib.sha256((external / "model.onnx_data").read_bytes()).hexdigest()

    def change(record):
        record["artifacts"]["onnx"].update(update, data={"path": "model.onnx_data", "sha256": digest})

    change_config(external, change)
    for options in ({}, {"verify": False}, {"fallback": True}):
        with pytest.raises(NotABundle) as caught:
            packager.load(external, **options)
        assert repr(location) in caught.value.why
    report = packager.verify(external)
    assert not report.ok and repr(location) in report.structure[0]


def test_the_bytes_of_another_model_format_are_not_loaded(bundle):
    (bundle / "model.onnx").write_bytes(b"\x18\x00\x00\x00ORTM" + bytes(64))
    reseal(bundle)
    with pytest.raises(PackagerError, match="protobuf"):
        packager.load(bundle, fallback=False)
