"""package.lock holds the inputs and outputs of a build, and names every difference of a later one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.builder import lockfile
from packager.builder.incremental.up_to_date import lockfile_path
from packager.builder.lockfile import Lockfile
from packager.errors import LockDrifted, LockInvalid, LockMissing, LockSchemaUnknown, LockUnwritable, render_error

LOCK = Lockfile(
    name="net",
    version="1.0.0",
    checkpoint="c" * 64,
    code={"model": "a" * 64},
    toolchain={"torch": "2.13.0"},
    artifacts={"model.onnx": "b" * 64},
    fingerprint="h1:one",
)
WORDS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
LOCKS = st.builds(
    Lockfile, name=st.just("net"), version=st.sampled_from(["1.0.0", "2.0.0"]), checkpoint=st.sampled_from("xy"),
    code=WORDS, toolchain=WORDS, artifacts=WORDS, fingerprint=st.sampled_from(["h1:x", "h1:y"]),
)  # fmt: skip


def test_the_lockfile_lies_beside_its_manifest_and_is_named_after_it(tmp_path):
    assert lockfile_path(tmp_path / "package.yaml") == tmp_path / "package.lock"
    assert lockfile_path(tmp_path / "package.yml") == tmp_path / "package.yml.lock"


@given(LOCKS)
def test_a_written_lockfile_is_read_back(tmp_path_factory, lock):
    path = tmp_path_factory.mktemp("lock") / "package.lock"
    lockfile.write_lockfile(path, lock)
    assert lockfile.read_lockfile(path) == lock
    assert [file.name for file in path.parent.iterdir()] == ["package.lock"]


@given(LOCKS, LOCKS)
def test_equal_lockfiles_alone_have_no_differences(one, other):
    assert (lockfile.list_differences(one, other) == []) == (one == other)


def test_every_difference_is_named(tmp_path, golden):
    path = tmp_path / "package.lock"
    lockfile.write_lockfile(path, LOCK)
    now = LOCK.model_copy(
        update={
            "version": "1.0.1",
            "checkpoint": "d" * 64,
            "code": {"model": "a" * 64, "pieces": "e" * 64},
            "toolchain": {"torch": "2.14.0"},
            "artifacts": {},
            "fingerprint": "h1:two",
        }
    )
    with pytest.raises(LockDrifted) as drifted:
        lockfile.check_lockfile(path, now, required=True)
    golden(
        render_error(drifted.value),
        "error[lock-drifted]",
        path,
        "1.0.0",
        "1.0.1",
        "c" * 64,
        "d" * 64,
        "e" * 64,
        "2.13.0",
        "2.14.0",
        "model.onnx",
        "b" * 64,
        "h1:one",
        "h1:two",
        "package build --lock",
        "toolchain",
    )
    assert len(lockfile.check_lockfile(path, now, required=False)) == 6


def test_a_missing_lockfile_is_no_difference_unless_it_is_required(tmp_path):
    assert lockfile.check_lockfile(tmp_path / "package.lock", LOCK, required=False) == []
    with pytest.raises(LockMissing):
        lockfile.check_lockfile(tmp_path / "package.lock", LOCK, required=True)
    with pytest.raises(LockMissing):
        lockfile.check_lockfile_present(tmp_path / "package.yaml", required=True)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("{", ("1", "2")),
        ("[]", ()),
        ('{"schema": 1}', ()),
        (json.dumps({**LOCK.model_dump(by_alias=True), "more": 1}), ("more",)),
    ],
)
def test_a_lockfile_that_does_not_parse_is_refused_before_any_work(tmp_path, content, facts, golden):
    (tmp_path / "package.lock").write_text(content)
    with pytest.raises(LockInvalid) as refused:
        lockfile.check_lockfile_present(tmp_path / "package.yaml", required=False)
    assert refused.value.exit_status == 2
    golden(refused.value.why, *facts)


def test_a_lockfile_of_a_newer_schema_is_refused(tmp_path):
    (tmp_path / "package.lock").write_text('{"schema": 2, "what": "ever"}')
    with pytest.raises(LockSchemaUnknown, match=r"\b2\b.*\b1\b"):
        lockfile.check_lockfile_present(tmp_path / "package.yaml", required=False)


def test_a_lockfile_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(LockUnwritable) as refused:
        lockfile.write_lockfile(tmp_path / "gone" / "package.lock", LOCK)
    assert (refused.value.why, refused.value.exit_status) == ("No such file or directory", 2)


def test_a_lockfile_of_too_many_values_is_refused_unread(tmp_path, monkeypatch):
    content = lockfile.Lockfile.model_dump(LOCK, by_alias=True) | {"code": {f"{n}": 0 for n in range(30_000)}}
    (tmp_path / "package.lock").write_text(json.dumps(content))
    monkeypatch.setattr(lockfile, "Lockfile", None)
    with pytest.raises(LockInvalid) as caught:
        lockfile.read_lockfile(tmp_path / "package.lock")
    assert "values" in caught.value.why
