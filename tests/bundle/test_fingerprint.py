"""The identity of a bundle: SHA256SUMS, the fingerprint, and the differences between the files and them."""

import base64
import hashlib
import os
import shutil
import string
import subprocess
import tracemalloc

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from projects import minimal_config

from packager.bundle import fingerprint as module
from packager.bundle.fingerprint import (
    Integrity,
    SumsMalformed,
    check_integrity,
    compute_fingerprint,
    format_sums,
    parse_sums,
)
from packager.bundle.names import describe_path_problem, describe_set_problem
from packager.bundle.writer import BundleWriter
from packager.errors import IntegrityFailed, NotABundle
from packager.runtime.loader import load
from packager.runtime.verify import verify

# Any file name of a bundle: no separators, no line breaks that end a line of SHA256SUMS.
PARTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(lambda path: describe_path_problem(path) is None)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SUMS = st.dictionaries(PATHS, DIGESTS, max_size=6).filter(lambda sums: describe_set_problem(sums) is None)
A, B = "a" * 64, "b" * 64


@pytest.fixture
def sealed(tmp_path):
    """Write a folder with a few sealed files, without a model."""
    writer = BundleWriter(tmp_path / "bundle")
    writer.add_bytes("config.json", minimal_config())
    writer.add_bytes("evidence/golden.safetensors", bytes(range(256)))
    writer.add_bytes("assets/a b.txt", b"")
    writer.add_bytes("assets/\u00e9t\u00e9.txt", "\u00e9t\u00e9".encode())
    writer.seal()
    return writer.folder


def sums(folder):
    return parse_sums((folder / "SHA256SUMS").read_text(encoding="utf-8"))


def shell(folder, command):
    """Return the output of a shell command run inside a folder; skip the test if its tools are not installed."""
    if not all(shutil.which(tool) for tool in ("bash", "sha256sum", "xxd", "base64")):
        pytest.skip("sha256sum, xxd or base64 is not installed")
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return process.stdout


# -- the fingerprint ------------------------------------------------------------------------


@given(SUMS)
def test_the_fingerprint_is_hash1_of_gos_dirhash(digests):
    digest = hashlib.sha256()
    for path in sorted(digests, key=lambda path: path.encode("utf-8")):
        digest.update(f"{digests[path]}  {path}\n".encode())
    expected = "h1:" + base64.standard_b64encode(digest.digest()).decode("ascii")
    assert compute_fingerprint(format_sums(digests)) == expected


def test_the_fingerprint_of_a_known_text_never_changes():
    text = f"{A}  a/b.txt\n{B}  b.txt\n"
    assert format_sums({"b.txt": B, "a/b.txt": A}) == text
    assert compute_fingerprint(text) == "h1:d9dlsgQ9brZnlyEwKf5ZjNPPGz5acslXuLhUFeR7IG0="


def test_the_shell_commands_in_the_docstring_compute_the_same(sealed):
    check, print_fingerprint = (line.strip() for line in module.__doc__.splitlines() if line.startswith("    "))
    assert shell(sealed, check).count(": OK\n") == 4
    assert shell(sealed, print_fingerprint) == (sealed / "FINGERPRINT").read_text()


def test_sha256sum_writes_the_same_sums(sealed):
    command = "find . -type f ! -name SHA256SUMS ! -name FINGERPRINT -printf '%P\\0' | sort -z | xargs -0 sha256sum"
    assert shell(sealed, command) == (sealed / "SHA256SUMS").read_text(encoding="utf-8")


@given(SUMS, st.data())
def test_a_different_name_or_digest_changes_the_fingerprint(digests, data):
    assume(digests)
    path = data.draw(st.sampled_from(sorted(digests)))
    other_path, other_digest = data.draw(PATHS), data.draw(DIGESTS)
    assume(other_path not in digests and other_digest != digests[path])
    rest = {name: digest for name, digest in digests.items() if name != path}
    variants = [digests, rest, {**rest, other_path: digests[path]}, {**rest, path: other_digest}]
    assert len({compute_fingerprint(format_sums(variant)) for variant in variants}) == 4


# -- SHA256SUMS -----------------------------------------------------------------------------


@given(SUMS)
def test_sums_come_back_as_they_were_written(digests):
    assert parse_sums(format_sums(digests)) == digests


@given(SUMS)
def test_paths_are_sorted_by_their_bytes(digests):
    paths = list(parse_sums(format_sums(dict(reversed(digests.items())))))
    assert paths == sorted(digests, key=str.encode)


@st.composite
def changed_texts(draw):
    """Draw a text of SHA256SUMS, and the same with something inserted, removed, overwritten or moved."""
    text = format_sums(draw(SUMS.filter(bool)))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 3)))
    alphabet = "ab0A \n\r\t/\\.*\u2028\x85\x0b" + string.hexdigits
    edited = text[:start] + draw(st.text(alphabet, max_size=3)) + text[end:]
    lines = text.splitlines(keepends=True)
    moved = "".join(draw(st.permutations([*lines, draw(st.sampled_from(lines))])))
    return text, draw(
        st.sampled_from([edited, moved, text.upper(), text[:-1], text + "\n", text.replace("\n", "\r\n")])
    )


@given(changed_texts())
def test_a_changed_text_is_refused_unless_a_different_bundle_would_write_it(texts):
    text, changed = texts
    assume(text != changed)
    try:
        digests = parse_sums(changed)
    except SumsMalformed:
        digests = None
    assert digests is None or (format_sums(digests) == changed and digests != parse_sums(text))


@given(st.text(alphabet="ab0  \n/.", max_size=200) | st.text(max_size=50))
def test_any_text_is_refused_or_is_what_would_be_written(text):
    try:
        digests = parse_sums(text)
    except SumsMalformed:
        digests = {}
        text = ""
    assert format_sums(digests) == text


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("hello\n", ("1",)),
        (f"{A}  a\n{A} a\n", ("2",)),
        (f"{A} *a\n", ("1",)),
        (f"{A.upper()}  a\n", ("1",)),
        (f"{A[1:]}  a\n", ("1",)),
        (f"{A}  \n", ("1",)),
        (f" {A}  a\n", ("1",)),
        (f"{A}  a\n\n", ("2",)),
        (f"# comment\n{A}  a\n", ("1",)),
        (f"{A}  a\n{B}  a\n", ()),
        (f"{A}  b\n{A}  a\n", ()),
        (f"{A}  a", ()),
        (f"{A}  a\r\n", ("a\\r",)),
        (f"{A}  ..\\a\n", ("..\\\\a",)),
    ],
)
def test_a_text_that_format_sums_does_not_write_is_refused(text, facts, golden):
    with pytest.raises(SumsMalformed) as caught:
        parse_sums(text)
    golden(str(caught.value), *facts)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a", "a/../../b", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "//a", "/"]
)
def test_a_path_that_leaves_the_bundle_is_refused(path, golden):
    with pytest.raises(SumsMalformed) as caught:
        parse_sums(f"{A}  {path}\n")
    golden(str(caught.value), "1", path)


@pytest.mark.parametrize("path", ["a\nb", "a\rb", "a\\b"])
def test_a_path_that_sha256sum_would_escape_is_not_written(path, golden):
    with pytest.raises(ValueError) as caught:
        format_sums({path: A})
    golden(caught.value, repr(path))


@pytest.mark.parametrize("path", ["a b", " a", "...a", "é", "*a", "~", "console", "nulls.txt", "日本", "👩‍🔬"])
def test_an_unusual_name_is_accepted(path):
    assert parse_sums(format_sums({path: A})) == {path: A}


# -- comparing a folder with its sums -------------------------------------------------------


def test_a_bundle_is_intact_after_it_is_written(sealed):
    integrity = check_integrity(sealed, sums(sealed))
    assert integrity == Integrity() and integrity.is_intact


@pytest.mark.parametrize("path", ["config.json", "evidence/golden.safetensors", "assets/a b.txt", "assets/été.txt"])
def test_every_missing_file_and_every_changed_byte_is_found(sealed, path):
    expected = sums(sealed)
    target = sealed / path
    content = target.read_bytes()
    changes = [b"\n"]
    if content:
        flipped = [bytes([content[0] ^ 1 << bit]) + content[1:] for bit in range(8)]
        changes = [content + b"\n", b"", content[:-1], *flipped]
    for change in changes:
        target.write_bytes(change)
        assert check_integrity(sealed, expected) == Integrity(changed=(path,))
    target.unlink()
    assert check_integrity(sealed, expected) == Integrity(missing=(path,))


def test_a_digest_is_compared_to_its_last_digit(sealed):
    expected = sums(sealed)
    for position in range(64):
        digest = expected["config.json"]
        other = digest[:position] + ("0" if digest[position] != "0" else "1") + digest[position + 1 :]
        assert check_integrity(sealed, {**expected, "config.json": other}) == Integrity(changed=("config.json",))


@pytest.mark.parametrize(
    "path", ["unlisted", ".hidden", "assets/more.txt", "new/folder/file", "evidence/SHA256SUMS", "assets/FINGERPRINT"]
)
def test_a_file_that_is_not_listed_is_extra(sealed, path):
    expected = sums(sealed)
    (sealed / path).parent.mkdir(parents=True, exist_ok=True)
    (sealed / path).touch()
    assert check_integrity(sealed, expected) == Integrity(extra=(path,))


def test_a_signature_is_not_covered(sealed):
    (sealed / "model.sig").write_text("signed")
    assert check_integrity(sealed, sums(sealed)).is_intact


def test_files_in_a_folder_named_like_an_unsealed_file_are_extra(sealed):
    (sealed / "model.sig").mkdir()
    (sealed / "model.sig" / "payload").touch()
    assert check_integrity(sealed, sums(sealed)) == Integrity(extra=("model.sig/payload",))


def test_a_renamed_file_is_one_missing_and_one_extra_file(sealed):
    (sealed / "config.json").rename(sealed / "Config.json")
    assert check_integrity(sealed, sums(sealed)) == Integrity(missing=("config.json",), extra=("Config.json",))


def test_all_differences_are_listed_and_sorted(sealed):
    expected = sums(sealed)
    (sealed / "config.json").write_text("{}")
    (sealed / "assets" / "été.txt").write_text("hiver")
    for name in ("z", "b", "é"):
        (sealed / name).touch()
    (sealed / "assets" / "a b.txt").unlink()
    integrity = check_integrity(sealed, expected)
    assert integrity == Integrity(("assets/a b.txt",), ("b", "z", "é"), ("assets/été.txt", "config.json"))
    assert not integrity.is_intact


def test_a_link_counts_as_changed_even_if_it_leads_to_the_same_bytes(sealed, tmp_path):
    shutil.move(sealed / "config.json", tmp_path / "config.json")
    (sealed / "config.json").symlink_to(tmp_path / "config.json")
    assert check_integrity(sealed, sums(sealed)) == Integrity(changed=("config.json",))


def test_a_linked_folder_is_not_entered(sealed, tmp_path):
    shutil.move(sealed / "assets", tmp_path / "assets")
    (sealed / "assets").symlink_to(tmp_path / "assets")
    missing = ("assets/a b.txt", "assets/été.txt")
    assert check_integrity(sealed, sums(sealed)) == Integrity(missing=missing, extra=("assets",))


def test_dangling_and_circular_links_are_extra(sealed):
    (sealed / "dangling").symlink_to("nowhere")
    (sealed / "circle").symlink_to(".")
    assert check_integrity(sealed, sums(sealed)) == Integrity(extra=("circle", "dangling"))


def test_a_pipe_in_place_of_a_file_does_not_block(sealed):
    (sealed / "config.json").unlink()
    os.mkfifo(sealed / "config.json")
    assert check_integrity(sealed, sums(sealed)) == Integrity(changed=("config.json",))


def test_a_folder_in_place_of_a_file_means_the_file_is_missing(sealed):
    (sealed / "config.json").unlink()
    (sealed / "config.json").mkdir()
    assert check_integrity(sealed, sums(sealed)) == Integrity(missing=("config.json",))


def test_an_extra_file_may_have_a_name_that_is_not_utf_8(sealed):
    with open(os.fsencode(sealed) + b"/\xff\xfe", "wb"):
        pass
    assert check_integrity(sealed, sums(sealed)) == Integrity(extra=(os.fsdecode(b"\xff\xfe"),))


# -- the seal as files ----------------------------------------------------------------------


def test_windows_line_breaks_break_the_seal(sealed, golden):
    intact = verify(sealed, parity=False)
    (sealed / "SHA256SUMS").write_bytes((sealed / "SHA256SUMS").read_bytes().replace(b"\n", b"\r\n"))
    broken = verify(sealed, parity=False)
    assert intact.fingerprint.startswith("h1:") and broken.fingerprint == ""
    (line,) = broken.structure
    golden(line, "SHA256SUMS", "assets/a b.txt\\r")
    with pytest.raises(IntegrityFailed):
        load(sealed)


def test_a_fingerprint_file_contains_only_the_fingerprint(sealed):
    seal = (sealed / "FINGERPRINT").read_bytes()
    for content in (seal.replace(b"\n", b"\r\n"), seal[:-1], seal + b"\n", b"", b"\xff", b" " + seal):
        (sealed / "FINGERPRINT").write_bytes(content)
        report = verify(sealed, parity=False)
        assert not report.ok and report.structure[0].startswith("FINGERPRINT ")
        assert report.integrity.changed == ("FINGERPRINT",)
    (sealed / "FINGERPRINT").write_bytes(seal)
    assert verify(sealed, parity=False).integrity.is_intact


def test_an_unreadable_file_is_named(tmp_path, monkeypatch, golden):
    (tmp_path / "model.onnx").touch()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("packager.bundle.fingerprint.sha256_file", refuse)  # root may read everything
    with pytest.raises(NotABundle) as caught:
        check_integrity(tmp_path, {"model.onnx": "0" * 64})
    golden(caught.value.why, "model.onnx")


def test_sums_of_thousands_of_deep_folders_are_refused():
    """Each of 33 folders per line used to be kept as its whole path, sixty times the file in memory."""
    folders = "/".join("a" * 32)
    text = "".join(f"{A}  {number:05d}/{folders}\n" for number in range(5000))
    with pytest.raises(SumsMalformed, match="more than 10000 files and folders"):
        parse_sums(text)
    with pytest.raises(SumsMalformed, match="more than 10000 files"):
        parse_sums("\n" * 2_000_000)


def test_long_paths_take_memory_in_proportion():
    paths = ["/".join([f"{number:03d}", *["p" * 250] * 30]) for number in range(300)]
    tracemalloc.start()
    try:
        assert describe_set_problem(paths) is None
        assert tracemalloc.get_traced_memory()[1] < 2 * sum(map(len, paths))
    finally:
        tracemalloc.stop()


def test_names_in_a_set_that_mean_the_same_file_are_refused():
    assert describe_set_problem(["a/b", "a/c", "b"]) is None
    assert describe_set_problem(["a/b/c", "a/B/d"]) == "'a/B/d' differs from 'a/b' in case only"
    assert describe_set_problem(["a", "a"]) == "'a' takes the place of another file"
    assert describe_set_problem(["a", "a/b"]) == "'a/b' takes the place of another file"
    assert describe_set_problem(["A/x", "a/x"]) == "'a/x' differs from 'A' in case only"
