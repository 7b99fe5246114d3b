"""`package verify FILE` judges an executable without running it; the file itself refuses to run when it is damaged."""

import hashlib
import random
import struct

import pytest
from executables import call
from projects import package

import packager
from packager.bundle.executable_layout import build_front, read_trailer
from packager.errors import IntegrityFailed, PackagerError
from packager.standalone import library, runners
from packager.standalone import verify_file as module
from packager.standalone.verify_file import verify_file


@pytest.fixture(scope="module")
def trailer(executable):
    with executable.open("rb") as stream:
        return read_trailer(stream.fileno())


@pytest.fixture(scope="module")
def copy(executable, tmp_path_factory):
    """Return a copy that tests flip bytes of, and back."""
    path = tmp_path_factory.mktemp("copy") / "digits-cnn"
    path.write_bytes(executable.read_bytes())
    path.chmod(0o755)
    return path


def is_accepted(path):
    """Return whether `package verify` accepts an executable; an error is a refusal too."""
    try:
        return verify_file(path, parity=False).ok
    except PackagerError:
        return False


def flip(path, offset):
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))


def list_regions(trailer, size):
    """Return the first byte of every part, and the first behind it."""
    return {
        "runner": (0, trailer.runner.end),
        "padding": (trailer.runner.end, trailer.library.offset),
        "library": (trailer.library.offset, trailer.library.end),
        "notices": (trailer.notices.offset, trailer.notices.end),
        "digests": (trailer.digests.offset, trailer.digests.end),
        "padding behind": (trailer.digests.end, trailer.offset),
        "trailer": (trailer.offset, trailer.archive_offset),
        "archive": (trailer.archive_offset, size),
    }


def test_an_untouched_executable_passes_with_parity(executable, built):
    report = verify_file(executable, fingerprint=built.fingerprint)
    assert report.ok, report
    assert report.fingerprint == built.fingerprint
    assert report.parity["onnx"] == "pass"
    assert call(executable, "verify").returncode == 0


def test_verify_in_python_says_that_it_compared_the_bundle_alone(executable):
    note = "executable: its native program and its library were not compared; `package verify FILE` does that"
    assert note in packager.verify(executable, parity=False).notes
    assert note not in verify_file(executable, parity=False).notes


@pytest.mark.parametrize(
    "name", ["runner", "padding", "library", "notices", "digests", "padding behind", "trailer", "archive"]
)
def test_any_flipped_byte_is_refused_from_outside_and_by_the_file_itself(copy, trailer, name):
    start, end = list_regions(trailer, copy.stat().st_size)[name]
    draw = random.Random(name)
    offsets = {start, end - 1, *(draw.randrange(start, end) for _ in range(256 if name == "trailer" else 8))}
    assert is_accepted(copy)
    for offset in offsets:
        flip(copy, offset)
        try:
            assert not is_accepted(copy), offset
            if name != "runner":  # a broken program may do anything
                refused = call(copy, "verify")
                assert refused.returncode in (1, 2), (offset, refused)
        finally:
            flip(copy, offset)


def test_a_damaged_library_does_not_run(copy, trailer, tmp_path):
    draw = random.Random(0)  # the tables that the linker follows are in the first megabyte
    positions = [trailer.library.size // 2, *(draw.randrange(1 << 20) for _ in range(20))]
    for position in positions:
        flip(copy, trailer.library.offset + position)
        try:
            answer = call(copy, "run", "--input", tmp_path / "none.npz")
            assert answer.returncode == 1, (position, answer)
            assert "error[integrity-failed]" in answer.stderr
            assert "changed: its library" in answer.stderr
        finally:
            flip(copy, trailer.library.offset + position)


def rewrite_trailer(content, trailer, fields):
    """Return an executable with these bytes at offsets of its trailer, which has the right digest of itself."""
    fields = {trailer.offset + offset: field for offset, field in fields.items()}
    changed = bytearray(content)
    for offset, field in fields.items():
        changed[offset : offset + len(field)] = field
    digest = hashlib.sha256(changed[trailer.offset : trailer.offset + 224]).digest()
    changed[trailer.offset + 224 : trailer.archive_offset] = digest
    return bytes(changed)


@pytest.mark.parametrize("piece_bytes", [0, 1, 4096, 65537, 131072, (1 << 24) + 65536, 1 << 40, (1 << 64) - 65536])
def test_pieces_of_another_size_than_the_digests_have_are_refused(executable, trailer, tmp_path, piece_bytes):
    path = tmp_path / "changed"
    path.write_bytes(rewrite_trailer(executable.read_bytes(), trailer, {48: struct.pack("<Q", piece_bytes)}))
    path.chmod(0o755)
    assert not is_accepted(path)
    refused = call(path, "info")
    assert refused.returncode in (1, 2)
    assert "error[standalone-refused]" in refused.stderr or "changed: the digests of its pieces" in refused.stderr


def test_a_list_of_digests_that_is_not_that_of_the_pieces_is_refused(executable, trailer, tmp_path):
    content = bytearray(executable.read_bytes())
    position = trailer.digests.offset + trailer.library.offset // trailer.piece_bytes * 32 + 320  # the tenth piece
    content[position] ^= 1
    digest = hashlib.sha256(content[trailer.digests.offset : trailer.digests.end]).digest()
    path = tmp_path / "changed"
    path.write_bytes(rewrite_trailer(content, trailer, {192: digest}))
    path.chmod(0o755)
    problems = ("executable: its list of digests is not that of its pieces",)
    assert verify_file(path, parity=False).structure == problems
    answer = call(path, "run", "--input", tmp_path / "none.npz")
    assert answer.returncode == 1
    assert "changed: its library" in answer.stderr


@pytest.mark.parametrize("piece_bytes", [65536, 3 * 65536, 1 << 24])
def test_pieces_may_have_any_size(executable, trailer, runner, archived, tmp_path, piece_bytes):
    content = executable.read_bytes()
    front = build_front(
        runner, content[trailer.library.offset : trailer.library.end],
        content[trailer.notices.offset : trailer.notices.end], archive_size=trailer.archive_size,
        machine=trailer.machine, onnxruntime=trailer.onnxruntime, piece_bytes=piece_bytes,
    )  # fmt: skip
    path = tmp_path / "pieces"
    path.write_bytes(front + archived.read_bytes())
    path.chmod(0o755)
    assert is_accepted(path)
    assert call(path, "verify").returncode == 0
    for offset in (trailer.library.offset, trailer.library.end - 1):
        flip(path, offset)
        assert call(path, "verify").returncode == 1
        assert not is_accepted(path)
        flip(path, offset)


def test_a_cut_or_longer_file_is_refused(executable, tmp_path):
    content = executable.read_bytes()
    for number, damaged in enumerate((content[:-1], content + b"\0", content[:1000], b"", content[1:])):
        path = tmp_path / str(number)
        path.write_bytes(damaged)
        with pytest.raises(PackagerError):
            verify_file(path)


def test_a_runner_that_packager_does_not_know_is_refused(executable, monkeypatch):
    monkeypatch.setattr(module, "read_digests", dict)
    report = verify_file(executable)
    assert not report.ok
    assert "its runner, sha256" in report.structure[0]
    assert set(report.parity.values()) == {"not-checked"}


def test_a_runner_of_an_earlier_release_is_known(executable, trailer, monkeypatch):
    digests = {trailer.target: ["0" * 64, trailer.runner.sha256.hex()]}
    monkeypatch.setattr(module, "read_digests", lambda: digests)
    assert verify_file(executable, parity=False).ok


def test_a_file_that_takes_the_name_meanwhile_is_not_looked_at(executable, tmp_path, monkeypatch):
    path = tmp_path / "digits-cnn"
    path.write_bytes(executable.read_bytes())
    compare = module._compare_parts

    def replace_then_compare(*arguments):
        path.unlink()
        path.write_bytes(b"something else")
        return compare(*arguments)

    monkeypatch.setattr(module, "_compare_parts", replace_then_compare)
    assert verify_file(path, parity=False).ok


def test_a_library_that_is_not_the_wheels_is_refused(executable, monkeypatch):
    monkeypatch.setattr(module, "read_installed_digest", lambda *_: bytes(32))
    report = verify_file(executable)
    assert report.structure == ("executable: its library is not that of the wheel onnxruntime "
                                f"{library.find_distribution('onnxruntime')[0]}",)  # fmt: skip


def test_a_library_of_a_wheel_that_is_not_installed_is_noted(executable, monkeypatch):
    monkeypatch.setattr(module, "read_installed_digest", lambda *_: None)
    report = verify_file(executable, parity=False)
    assert report.ok
    assert "was not compared, because that wheel is not installed here" in report.notes[-1]


def test_another_fingerprint_is_refused(executable):
    report = verify_file(executable, fingerprint=f"h1:{'A' * 43}=", parity=False)
    assert not report.ok
    assert report.structure[0].startswith("the fingerprint is ")


def test_the_command_takes_an_executable(executable, built, runner):
    answer = package("verify", executable, "--fingerprint", built.fingerprint, "--no-parity")
    known = runners.read_digests.__module__ == "packager.standalone.runners"  # else this process alone knows the runner
    assert (answer.returncode == 0) == known, answer.stdout
    assert "integrity" in answer.stdout


def test_python_refuses_a_damaged_bundle_inside(copy, trailer):
    flip(copy, trailer.archive_offset + 40_000)
    try:
        with pytest.raises(IntegrityFailed):
            packager.load(copy, verify="all")
    finally:
        flip(copy, trailer.archive_offset + 40_000)
