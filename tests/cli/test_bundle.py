"""`package verify` and `package run`: what they print for a folder, an archive, and a damaged bundle."""

import json

import numpy as np
import pytest
from messages import mentions
from projects import ANOTHER

import packager


def test_verify_exits_with_0_for_yes_and_1_for_no(command, bundle, built, golden):
    status, out, err = command("verify", bundle)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["fingerprint", built.fingerprint]
    assert out.splitlines()[-1] == "ok"
    (bundle / "extra").touch()
    status, out, _ = command("verify", bundle)
    assert status == 1
    golden(out.splitlines()[-1], "ok")
    assert "extra" in [line.split()[-1] for line in out.splitlines()]
    status, out, _ = command("verify", bundle, "--json")
    assert status == 1
    record = json.loads(out)
    assert {"ok", "fingerprint", "integrity", "structure", "parity"} <= set(record)
    assert record["integrity"] == {"missing": [], "extra": ["extra"], "changed": []}
    status, out, err = command("verify", bundle.parent, "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "not-a-bundle"
    mentions(err, "error[not-a-bundle]")


def test_verify_checks_the_fingerprint(command, bundle, built):
    assert command("verify", bundle, "--fingerprint", built.fingerprint, "--no-parity")[0] == 0
    status, out, _ = command("verify", bundle, "--fingerprint", ANOTHER, "--no-parity")
    assert status == 1
    mentions(out, "FAIL", built.fingerprint, ANOTHER)


def test_an_archive_gives_the_same_output_as_its_folder(command, archived, built, tmp_path, temporary):
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    for arguments in (["verify"], ["verify", "--json"], ["inspect"], ["inspect", "--json"], ["run", "--input"]):
        rest = [tmp_path / "x.npz"] if arguments[0] == "run" else []
        of_folder, of_archive = (
            command(*arguments[:1], path, *arguments[1:], *rest) for path in (built.bundle, archived)
        )
        assert of_archive == of_folder
        assert of_archive[0] == 0


@pytest.mark.parametrize("name", ["verify", "inspect", "run"])
def test_a_malformed_archive_exits_with_2_and_a_damaged_one_with_1(command, archived, tmp_path, name, golden):
    rest = ["--input", "x.npz"] if name == "run" else []
    content = bytearray(archived.read_bytes())
    path = tmp_path / "x.zip"
    path.write_bytes(content[:-1])
    status, out, err = command(name, path, *rest)
    assert (status, out) == (2, "")
    golden(err, "error[archive-refused]", path)
    content[content.index(b'"schema"')] ^= 1
    path.write_bytes(content)
    status, out, err = command(name, path, *rest)
    assert (status, out) == (1, "")
    golden(err.splitlines()[0], "error[integrity-failed]", path)


def test_run_makes_a_prediction(command, built, tmp_path):
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "x.npz", image=images)
    status, out, err = command("run", built.bundle, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert (status, err) == (0, "")
    assert out.startswith("logits: float32[2, 10] = [[")
    expected = packager.load(built.bundle)(image=images)["logits"]
    assert np.array_equal(np.load(tmp_path / "y.npz")["logits"], expected)
    assert command("run", built.bundle, "--input", tmp_path / "no.npz")[0] == 2
    np.savez(tmp_path / "x.npz", picture=images)
    status, out, err = command("run", built.bundle, "--input", tmp_path / "x.npz")
    assert (status, out) == (2, "")
    mentions(err, "error[data-does-not-fit]")
    np.savez(tmp_path / "x.npz", image=images)
    status, _, err = command("run", built.bundle, "--input", tmp_path / "x.npz", "--output", tmp_path / "no" / "y.npz")
    assert status == 2
    mentions(err, "error[output-refused]")


def test_control_characters_of_names_do_not_reach_the_terminal(command, bundle):
    (bundle / "\x1b]0;title\x07").touch()
    for arguments in (["verify", bundle], ["diff", bundle, bundle], ["run", bundle, "--input", "x.npz"]):
        status, out, err = command(*arguments)
        assert status != 0 or arguments[0] == "diff"
        assert "\x1b" not in out + err and "\x07" not in out + err
        assert "\\x1b]0;title\\x07" in out + err
