"""The writer records the digests of what it writes, and the staging folder leaves nothing behind."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from packager.bundle import archive, writer
from packager.bundle.fingerprint import check_integrity, compute_fingerprint, parse_sums
from packager.bundle.writer import BundleWriter, check_archive_target, stage_bundle
from packager.errors import OutputRefused, render_error

HOLDER = """
import sys, time
from pathlib import Path
from packager.bundle.writer import stage_bundle

with stage_bundle(Path(sys.argv[1]), "net-1.0.0", force=False) as folder:
    (folder / "bundle" / "model.onnx").write_bytes(bytes(1000))
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def write_bundle(folder, text="new"):
    writer = BundleWriter(folder)
    writer.add_bytes("config.json", text.encode())
    writer.seal()


def stage(out, text="new", *, force=False, error=None):
    """Stage a small bundle as `out/net-1.0.0`, or raise `error` when it is complete."""
    with stage_bundle(out, "net-1.0.0", force=force) as folder:
        write_bundle(folder / "bundle", text)
        if error is not None:
            raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder(tmp_path):
    """Return a function that starts a process inside `stage_bundle`; it is killed after the test."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "out")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


# -- BundleWriter ---------------------------------------------------------------------------


def test_every_method_writes_the_bytes_and_records_their_digest(tmp_path):
    contents = {"empty": b"", "large": os.urandom(3_000_000), "text": "été\r\n".encode()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    writer = BundleWriter(tmp_path / "bundle")
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        assert writer.add_bytes(f"a/{name}", content) == digest
        assert writer.add_file(f"b/deep/{name}", tmp_path / name) == digest
        assert writer.move_file(f"c/{name}", tmp_path / name) == digest
        for path in (f"a/{name}", f"b/deep/{name}", f"c/{name}"):
            assert writer.digests[path] == digest
            assert (tmp_path / "bundle" / path).read_bytes() == content


def test_added_files_are_copied_and_moved_files_are_moved(tmp_path):
    for name in ("copied", "moved"):
        (tmp_path / name).write_text(name)
    writer = BundleWriter(tmp_path / "bundle")
    writer.add_file("copied", tmp_path / "copied")
    writer.move_file("moved", tmp_path / "moved")
    assert names(tmp_path) == ["bundle", "copied"]
    assert names(tmp_path / "bundle") == ["copied", "moved"]


def test_a_file_that_is_written_twice_has_its_last_digest(tmp_path):
    writer = BundleWriter(tmp_path / "bundle")
    writer.add_bytes("file", b"a longer content")
    writer.add_bytes("file", b"short")
    assert writer.digests == {"file": hashlib.sha256(b"short").hexdigest()}
    assert (tmp_path / "bundle" / "file").read_bytes() == b"short"


def test_a_removed_file_leaves_no_trace(tmp_path):
    writer = BundleWriter(tmp_path / "bundle")
    writer.add_bytes("model.onnx", b"unproven")
    writer.add_bytes("config.json", b"{}")
    writer.remove_file("model.onnx")
    assert list(writer.digests) == names(tmp_path / "bundle") == ["config.json"]


def test_a_sealed_bundle_is_intact(tmp_path):
    writer = BundleWriter(tmp_path / "bundle")
    for path in ("z", "a/z", "a/é", "a.b", "B"):
        writer.add_bytes(path, path.encode())
    seal = writer.seal()
    text = (tmp_path / "bundle" / "SHA256SUMS").read_bytes().decode()
    assert parse_sums(text) == writer.digests
    assert compute_fingerprint(text) == seal
    assert (tmp_path / "bundle" / "FINGERPRINT").read_bytes() == f"{seal}\n".encode()
    assert check_integrity(tmp_path / "bundle", writer.digests).is_intact


# -- staging --------------------------------------------------------------------------------


def test_a_block_that_succeeds_leaves_only_the_bundle(tmp_path):
    stage(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep" / "out") == ["net-1.0.0"]
    assert names(tmp_path / "deep" / "out" / "net-1.0.0") == ["FINGERPRINT", "SHA256SUMS", "config.json"]


def test_other_files_in_the_staging_folder_are_not_shipped(tmp_path):
    with stage_bundle(tmp_path, "net-1.0.0", force=False) as folder:
        (folder / "raw.onnx").write_bytes(b"scratch")
        write_bundle(folder / "bundle")
    assert names(tmp_path) == ["net-1.0.0"]
    assert "raw.onnx" not in names(tmp_path / "net-1.0.0")


def test_a_bundle_has_the_usual_folder_mode(tmp_path):
    (tmp_path / "plain").mkdir()
    stage(tmp_path)
    assert (tmp_path / "net-1.0.0").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_old_bundle_is_intact_until_the_new_one_replaces_it(tmp_path):
    stage(tmp_path, "old")
    with stage_bundle(tmp_path, "net-1.0.0", force=False) as folder:
        write_bundle(folder / "bundle", "new")
        assert (tmp_path / "net-1.0.0" / "config.json").read_text() == "old"
        old = parse_sums((tmp_path / "net-1.0.0" / "SHA256SUMS").read_text())
        assert check_integrity(tmp_path / "net-1.0.0", old).is_intact
    assert (tmp_path / "net-1.0.0" / "config.json").read_text() == "new"
    assert names(tmp_path) == ["net-1.0.0"]


def test_no_file_of_the_old_bundle_is_left_in_the_new_one(tmp_path):
    with stage_bundle(tmp_path, "net-1.0.0", force=False) as folder:
        write_bundle(folder / "bundle")
        (folder / "bundle" / "model.ts").touch()
    stage(tmp_path)
    assert names(tmp_path / "net-1.0.0") == ["FINGERPRINT", "SHA256SUMS", "config.json"]


def test_a_zip_that_is_not_an_archive_of_a_bundle_is_only_replaced_by_force(tmp_path, golden):
    target = tmp_path / "net-1.0.0.zip"
    check_archive_target(target, force=False)
    target.write_text("notes")
    with pytest.raises(OutputRefused) as caught:
        check_archive_target(target, force=False)
    golden(caught.value.why)
    check_archive_target(target, force=True)
    stage(tmp_path)
    archive.write_archive(tmp_path / "net-1.0.0", target)
    check_archive_target(target, force=False)


def test_other_bundles_are_left_alone(tmp_path):
    stage(tmp_path)
    with stage_bundle(tmp_path, "net-2.0.0", force=False) as folder:
        write_bundle(folder / "bundle")
    assert names(tmp_path) == ["net-1.0.0", "net-2.0.0"]


# -- staging: errors ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")], ids=repr)
def test_an_error_leaves_nothing_behind_and_is_raised_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        stage(tmp_path, error=error)
    assert caught.value is error
    assert names(tmp_path) == []


def test_only_folders_created_for_the_bundle_are_deleted_after_an_error(tmp_path):
    (tmp_path / "existing").mkdir()
    for out in ("existing", "created"):
        with pytest.raises(ValueError, match="no"):
            stage(tmp_path / out, error=ValueError("no"))
    assert names(tmp_path) == ["existing"]


def test_the_old_bundle_stays_after_an_error(tmp_path):
    stage(tmp_path, "old")
    with pytest.raises(ValueError, match="no"):
        stage(tmp_path, force=True, error=ValueError("no"))
    assert names(tmp_path) == ["net-1.0.0"]
    assert (tmp_path / "net-1.0.0" / "config.json").read_text() == "old"


def test_the_old_bundle_is_restored_if_the_new_one_cannot_replace_it(tmp_path):
    stage(tmp_path, "old")
    with pytest.raises(FileNotFoundError), stage_bundle(tmp_path, "net-1.0.0", force=False) as folder:
        shutil.rmtree(folder / "bundle")
    assert names(tmp_path) == ["net-1.0.0"]
    assert (tmp_path / "net-1.0.0" / "config.json").read_text() == "old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_a_full_disk_is_an_error_for_the_user(tmp_path, golden):
    with pytest.raises(OutputRefused) as caught, stage_bundle(tmp_path / "out", "net-1.0.0", force=False):
        Path("/dev/full").write_text("x")
    golden(render_error(caught.value), "error[output-refused]", f"{tmp_path}/out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_refused_write_is_reported_with_a_hint(tmp_path, number, golden):
    with pytest.raises(OutputRefused) as caught:
        stage(tmp_path, error=OSError(number, os.strerror(number)))
    assert caught.value.why == os.strerror(number)
    golden(caught.value.hint)
    assert names(tmp_path) == []


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path, out, golden):
    (tmp_path / "file").touch()
    with pytest.raises(OutputRefused) as caught:
        stage(tmp_path / out)
    golden(caught.value.hint)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("length", [237, 238, 250, 300])
def test_a_name_that_is_too_long_for_a_file_is_refused(tmp_path, length, golden):
    with pytest.raises(OutputRefused) as caught, stage_bundle(tmp_path / "out", length * "a", force=False):
        pass
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []
    golden(caught.value.hint)


# -- staging: existing files ----------------------------------------------------------------


def occupied(kind, target):
    """Create something that is not a bundle in place of the bundle."""
    if kind == "file":
        target.write_text("mine")
    elif kind == "link to a bundle":
        stage(target.parent / "elsewhere")
        target.symlink_to(target.parent / "elsewhere" / "net-1.0.0")
    elif kind == "dangling link":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
        for name in kind.split():
            (target / name).write_text("mine")


@pytest.mark.parametrize(
    "kind", ["file", "", "notes.txt", "SHA256SUMS", "config.json", "link to a bundle", "dangling link"]
)
def test_anything_but_a_bundle_is_only_replaced_by_force(tmp_path, kind, golden):
    target = tmp_path / "net-1.0.0"
    occupied(kind, target)
    before = names(tmp_path)
    entered = []
    with pytest.raises(OutputRefused) as caught, stage_bundle(tmp_path, "net-1.0.0", force=False):
        entered.append(True)
    golden(render_error(caught.value), "error[output-refused]", target, "force")
    assert not entered
    assert names(tmp_path) == before
    stage(tmp_path, force=True)
    assert not target.is_symlink() and (target / "config.json").read_text() == "new"
    assert names(tmp_path) == before


def test_force_does_not_touch_the_target_of_a_link(tmp_path):
    occupied("link to a bundle", tmp_path / "net-1.0.0")
    stage(tmp_path, "newer", force=True)
    assert (tmp_path / "elsewhere" / "net-1.0.0" / "config.json").read_text() == "new"


# -- staging: other processes ---------------------------------------------------------------


def test_the_leftovers_of_a_killed_process_are_deleted_by_the_next_build(tmp_path, holder):
    process, leftover = holder()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path / "out") == [leftover]
    stage(tmp_path / "out")
    assert names(tmp_path / "out") == ["net-1.0.0"]


def test_the_old_bundle_is_intact_after_a_kill(tmp_path, holder):
    stage(tmp_path / "out", "old")
    process, leftover = holder()
    process.kill()
    process.wait()
    assert names(tmp_path / "out") == [leftover, "net-1.0.0"]
    assert (tmp_path / "out" / "net-1.0.0" / "config.json").read_text() == "old"


def test_the_staging_folder_of_a_living_process_is_left_alone(tmp_path, holder):
    process, held = holder()
    stage(tmp_path / "out", "from this process")
    assert names(tmp_path / "out") == [held, "net-1.0.0"]
    (tmp_path / "out" / held / "bundle" / "SHA256SUMS").touch()
    process.communicate("")
    assert process.returncode == 0
    assert names(tmp_path / "out") == ["net-1.0.0"]
    assert "model.onnx" in names(tmp_path / "out" / "net-1.0.0")


def test_threads_do_not_delete_each_others_staging_folders(tmp_path):
    def build(number):
        for _ in range(20):
            with stage_bundle(tmp_path, f"net-{number}.0.0", force=False) as folder:
                write_bundle(folder / "bundle", str(number))
        return number

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(build, range(4))) == [0, 1, 2, 3]
    assert names(tmp_path) == [f"net-{number}.0.0" for number in range(4)]


@pytest.mark.parametrize("exchangeable", [True, False])
def test_builds_that_finish_at_once_replace_each_other(tmp_path, monkeypatch, exchangeable):
    if not exchangeable:  # as on macOS and Windows
        monkeypatch.setattr(writer, "_exchange_paths", lambda first, second: False)
    finish_line = Barrier(4)

    def build(out):
        with stage_bundle(out, "net-1.0.0", force=False) as folder:
            write_bundle(folder / "bundle")
            finish_line.wait(10)

    with ThreadPoolExecutor(4) as threads:
        for number in range(50):
            out = tmp_path / str(number)
            assert list(threads.map(build, [out] * 4)) == [None] * 4
            assert names(out) == ["net-1.0.0"]


@pytest.mark.parametrize("name", ["net.staging", ".net", ".net.staging", "notes"])
def test_folders_that_only_look_like_leftovers_are_kept(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    stage(tmp_path)
    assert names(tmp_path) == sorted([name, "net-1.0.0"])
    assert names(tmp_path / name) == ["mine"]


def test_folders_created_for_a_bundle_that_fails_are_deleted(tmp_path):
    with pytest.raises(RuntimeError), stage_bundle(tmp_path / "a/b/c", "net-1.0.0", force=False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_too_long_leaves_no_parents_behind(tmp_path):
    with pytest.raises(OutputRefused) as caught, stage_bundle(tmp_path / "a" / ("x" * 300), "net", force=False):
        pass
    assert caught.value.why == "File name too long"
    assert list(tmp_path.iterdir()) == []


def test_a_path_where_folders_cannot_be_created_is_refused(golden):
    with pytest.raises(OutputRefused) as caught, stage_bundle(Path("/proc/nowhere"), "net", force=False):
        pass
    golden(caught.value.why)
