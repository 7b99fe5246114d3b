"""`package sign`, and what `package verify` says about a signature."""

import json
import os
import pty
import subprocess
import sys

import numpy as np
import pki
import pytest
from messages import mentions


@pytest.fixture
def keys(tmp_path):
    """Return the paths of a private and its public key."""
    return pki.write_key(tmp_path)


def test_sign_prints_who_signed_what(command, bundle, built, keys, tmp_path):
    status, out, err = command("sign", bundle, "--key", keys[0])
    assert (status, err) == (0, "")
    rows = dict(line.split() for line in out.splitlines())
    assert rows.keys() == {"signed", "fingerprint", "key"}
    assert rows["fingerprint"] == built.fingerprint
    authorities = pki.Authorities(tmp_path)
    certificates = ["--certificate", authorities.certify(), "--certificate", authorities.intermediate_file]
    status, out, _ = command("sign", bundle, "--key", authorities.key_file, *certificates, "--json")
    assert status == 0
    record = json.loads(out)
    assert (record["bundle"], record["fingerprint"]) == (str(bundle), built.fingerprint)
    assert record["signature"]["subject"] == "CN=signer" and len(record["signature"]["key_id"]) == 64


def test_run_refuses_a_bundle_that_another_key_signed(command, bundle, keys, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    command("sign", bundle, "--key", keys[0])
    status, out, _ = command("run", bundle, "--input", tmp_path / "x.npz", "--public-key", keys[1])
    assert status == 0 and out.startswith("logits: float32[1, 10]")
    _, other = pki.write_key(tmp_path, "other")
    status, out, err = command("run", bundle, "--input", tmp_path / "x.npz", "--public-key", other)
    assert (status, out) == (1, "")
    mentions(err, "error[signature-wrong]")


def test_verify_prints_who_signed(command, bundle, keys, tmp_path):
    command("sign", bundle, "--key", keys[0])
    status, out, err = command("verify", bundle, "--public-key", keys[1])
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["signature", "pass"] in rows and rows[-1] == ["ok"]
    record = json.loads(command("verify", bundle, "--public-key", keys[1], "--json")[1])
    assert ["key", record["signature"]["key_id"]] in rows
    assert record["signature"] == {**record["signature"], "verdict": "pass", "subject": None, "error": None}
    authorities = pki.Authorities(tmp_path)
    command("sign", bundle, "--key", authorities.key_file, "--certificate", authorities.certify())
    chain = ["--certificate-chain", authorities.root_file, "--certificate-chain", authorities.intermediate_file]
    status, out, _ = command("verify", bundle, *chain, "--no-parity")
    assert status == 0
    assert ["subject", "CN=signer"] in [line.split() for line in out.splitlines()]


def test_verify_says_that_a_signature_was_not_checked(command, bundle, keys, golden):
    assert "signature" not in command("verify", bundle, "--no-parity")[1]
    command("sign", bundle, "--key", keys[0])
    status, out, _ = command("verify", bundle, "--no-parity")
    assert status == 0
    assert ["signature", "not-checked"] in [line.split() for line in out.splitlines()]
    golden(next(line for line in out.splitlines() if line.startswith("note: signature")), "signature")


def test_verify_exits_with_1_for_a_wrong_or_missing_signature(command, bundle, keys, tmp_path, golden):
    _, other = pki.write_key(tmp_path, "other")
    status, out, _ = command("verify", bundle, "--public-key", other)
    assert status == 1
    mentions(out, "signature-missing", "NOT ok")
    command("sign", bundle, "--key", keys[0])
    status, out, _ = command("verify", bundle, "--public-key", other)
    assert status == 1
    mentions(out, "FAIL: signature-wrong", "different key", "note: signature: do not use the bundle")
    record = json.loads(command("verify", bundle, "--public-key", other, "--json")[1])
    assert not record["ok"]
    assert record["signature"]["verdict"] == "fail"
    assert record["signature"]["error"]["code"] == "signature-wrong"
    assert str(bundle) in record["signature"]["error"]["message"]


def test_a_key_that_cannot_be_used_exits_with_2(command, bundle, keys, tmp_path):
    (tmp_path / "empty.pem").touch()
    for arguments in (
        ["sign", bundle, "--key", tmp_path / "empty.pem"],
        ["sign", bundle, "--key", keys[1]],
        ["verify", bundle, "--public-key", keys[0]],
        ["verify", bundle, "--certificate-chain", keys[1]],
    ):
        status, out, err = command(*arguments, "--json")
        assert status == 2
        assert json.loads(out)["error"]["code"] == "key-unusable"
        mentions(err, "error[key-unusable]", "hint:")


def test_the_password_of_a_key_is_in_the_environment(command, bundle, tmp_path, monkeypatch):
    private, public = pki.write_key(tmp_path, password="secret")
    monkeypatch.setenv("PACKAGER_KEY_PASSWORD", "secret")
    assert command("sign", bundle, "--key", private)[0] == 0
    assert command("verify", bundle, "--public-key", public, "--no-parity")[0] == 0
    monkeypatch.setenv("PACKAGER_KEY_PASSWORD", "wrong")
    status, _, err = command("sign", bundle, "--key", private)
    assert status == 2
    mentions(err, "the password is wrong")


@pytest.mark.timeout(100)
def test_the_password_of_a_key_is_asked_for_in_a_terminal(bundle, tmp_path):
    private, public = pki.write_key(tmp_path, password="secret")
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "packager", "sign", bundle, "--key", private],
        stdin=inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        prompt = b""
        while not prompt.endswith(b": "):  # what is typed earlier is discarded
            prompt += os.read(process.stderr.fileno(), 1) or b": "
        os.write(terminal, b"secret\n")
        out, err = process.communicate(timeout=60)
    os.close(terminal)
    os.close(inside)
    assert process.returncode == 0, err
    assert prompt.startswith(b"password of")
    assert b"secret" not in out + err and b"signed" in out
    assert pki.theirs_accepts(bundle, public_key=public)
