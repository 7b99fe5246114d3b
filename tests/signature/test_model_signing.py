"""The `model_signing` library and packager accept each other's signatures, and refuse the same changes."""

import json
import os
import shutil

import pki
import projects
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

import packager
from packager.errors import PackagerError, Refused


@pytest.fixture
def signed(bundle, tmp_path):
    """Return a signed copy of the built bundle, and the public key."""
    private, public = pki.write_key(tmp_path)
    packager.sign(bundle, key=private)
    return bundle, public


def verify_accepts(bundle, public_key):
    try:
        return packager.verify(bundle, public_key=public_key, parity=False).ok
    except Refused:
        return False


def ours_accepts(bundle, public_key):
    """Return whether `verify` accepts a bundle, and check that `load` does if and only if `verify` does."""
    ok = verify_accepts(bundle, public_key)
    try:
        packager.load(bundle, verify="all", public_key=public_key)
    except PackagerError:
        assert not ok
    else:
        assert ok
    return ok


@pytest.mark.parametrize("curve", pki.CURVES)
def test_their_command_accepts_our_signature(bundle, tmp_path, curve):
    private, public = pki.write_key(tmp_path, curve=curve)
    packager.sign(bundle, key=private)
    assert ours_accepts(bundle, public_key=public)
    arguments = ["verify", "key", bundle, "--signature", bundle / "model.sig", "--public_key", public]
    assert pki.model_signing(*arguments, "--no-ignore-git-paths") == 0
    assert pki.theirs_accepts(bundle, public_key=public, ignore_git_paths=True)
    assert pki.theirs_accepts(bundle, public_key=public, ignore_git_paths=False)


def test_their_command_refuses_a_changed_bundle(signed):
    bundle, public = signed
    (bundle / "assets/labels.txt").write_text("changed")
    assert pki.model_signing("verify", "key", bundle, "--signature", bundle / "model.sig", "--public_key", public) == 1


@pytest.mark.parametrize(
    ("curve", "option"),
    [("P-256", "--ignore-git-paths"), ("P-384", "--no-ignore-git-paths"), ("P-521", "--allow_symlinks")],
)
def test_ours_accepts_the_signature_of_their_command(bundle, tmp_path, curve, option):
    private, public = pki.write_key(tmp_path, curve=curve)
    arguments = ["sign", "key", bundle, "--signature", bundle / "model.sig", "--private_key", private, option]
    assert pki.model_signing(*arguments) == 0
    assert ours_accepts(bundle, public_key=public)
    (bundle / "assets/labels.txt").write_text("changed")
    projects.reseal(bundle)
    assert not ours_accepts(bundle, public_key=public)


@pytest.mark.parametrize("issuers", [["intermediate"], ["intermediate", "root"], []], ids=" ".join)
def test_both_accept_each_others_certificates(bundle, tmp_path, issuers):
    authorities = pki.Authorities(tmp_path)
    certificate = authorities.certify()
    files = [tmp_path / f"{name}.pem" for name in issuers]
    trusted = [authorities.root_file] if issuers else [authorities.root_file, authorities.intermediate_file]
    result = packager.sign(bundle, key=authorities.key_file, certificates=[certificate, *files])
    assert result.signer.subject == "CN=signer"
    assert pki.theirs_accepts(bundle, certificates=trusted)
    report = packager.verify(bundle, certificate_chain=trusted, parity=False)
    assert report.ok and report.signature.signer == result.signer
    arguments = ["--private_key", authorities.key_file, "--signing_certificate", certificate]
    for file in files or [authorities.intermediate_file]:  # their command cannot sign without one
        arguments += ["--certificate_chain", file]
    assert pki.model_signing("sign", "certificate", bundle, "--signature", bundle / "model.sig", *arguments) == 0
    assert packager.verify(bundle, certificate_chain=trusted, parity=False).signature.signer == result.signer


def test_their_command_accepts_our_certificate(bundle, tmp_path):
    authorities = pki.Authorities(tmp_path)
    certificates = [authorities.certify(), authorities.intermediate_file]
    packager.sign(bundle, key=authorities.key_file, certificates=certificates)
    arguments = ["--signature", bundle / "model.sig", "--certificate_chain", authorities.root_file]
    assert pki.model_signing("verify", "certificate", bundle, *arguments, "--no-ignore-git-paths") == 0


@pytest.mark.parametrize("curve", pki.CURVES)
def test_the_reference_implementation_of_the_envelope_agrees(bundle, tmp_path, curve):
    private, public = pki.write_key(tmp_path, curve=curve)
    packager.sign(bundle, key=private)
    record = json.loads((bundle / "model.sig").read_text())
    envelope = Envelope.from_dict(record["dsseEnvelope"])
    key = SSlibKey.from_crypto(load_pem_public_key(public.read_bytes()))
    for signature in envelope.signatures.values():
        signature.keyid = key.keyid  # the format leaves it empty
    assert envelope.verify([key], 1) == {key.keyid: key}
    statement = json.loads(envelope.payload)
    assert statement["subject"][0]["name"] == bundle.name
    assert {entry["name"] for entry in statement["predicate"]["resources"]} == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file() and path.name != "model.sig"
    }


# -- what both refuse -----------------------------------------------------------------------


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def change_every_file(bundle):
    """Yield after each change of one file's first, middle or last byte, and undo it."""
    for path in sorted(bundle.rglob("*")):
        if path.is_file() and path.name != "model.sig":
            content = path.read_bytes()
            for position in {0, len(content) // 2, len(content) - 1} if content else ():
                flip(path, position)
                yield
                path.write_bytes(content)


def test_both_refuse_a_flipped_byte_in_any_file(signed):
    bundle, public = signed
    for _ in change_every_file(bundle):
        assert not verify_accepts(bundle, public)
        assert not pki.theirs_accepts(bundle, public_key=public)
    assert ours_accepts(bundle, public_key=public) and pki.theirs_accepts(bundle, public_key=public)


def add(bundle):
    (bundle / "assets/more.txt").write_text("more")


def remove(bundle):
    (bundle / "assets/labels.txt").unlink()
    (bundle / "assets").rmdir()


def rename(bundle):
    (bundle / "assets/labels.txt").rename(bundle / "assets/names.txt")


def change(bundle):
    flip(bundle / "model.onnx", 1000)


def truncate(bundle):
    os.truncate(bundle / "README.md", 10)


def swap(bundle):
    readme, labels = bundle / "README.md", bundle / "assets/labels.txt"
    readme.rename(bundle / "x")
    labels.rename(readme)
    (bundle / "x").rename(labels)


def link(bundle):
    outside = bundle.parent / "labels.txt"
    (bundle / "assets/labels.txt").rename(outside)
    (bundle / "assets/labels.txt").symlink_to(outside)


@pytest.mark.parametrize("sealed", [False, True], ids=["", "sealed again"])
@pytest.mark.parametrize("tamper", [add, remove, rename, change, truncate, swap, link], ids=lambda f: f.__name__)
def test_both_refuse_a_bundle_that_was_tampered_with(signed, tamper, sealed):
    bundle, public = signed
    tamper(bundle)
    if sealed:  # then the seal is right, and only the signature is wrong
        projects.reseal(bundle)
    assert not ours_accepts(bundle, public_key=public)
    assert not pki.theirs_accepts(bundle, public_key=public)
    if sealed and tamper is not link:
        report = packager.verify(bundle, public_key=public, parity=False)
        assert report.integrity.is_intact and report.signature.error.code == "signature-wrong"


def test_both_refuse_swapped_signatures_and_an_older_one(signed, tmp_path):
    bundle, _ = signed
    private, public = pki.write_key(tmp_path)
    later = shutil.copytree(bundle, tmp_path / "later" / bundle.name)
    (later / "assets/labels.txt").write_text("later")
    projects.reseal(later)
    packager.sign(bundle, key=private)
    packager.sign(later, key=private)
    for path in (bundle, later):
        assert ours_accepts(path, public_key=public) and pki.theirs_accepts(path, public_key=public)
    (bundle / "model.sig").rename(tmp_path / "x")
    (later / "model.sig").rename(bundle / "model.sig")
    (tmp_path / "x").rename(later / "model.sig")
    for path in (bundle, later):
        assert not ours_accepts(path, public_key=public) and not pki.theirs_accepts(path, public_key=public)


def test_both_refuse_another_key_and_another_root(bundle, tmp_path):
    private, _ = pki.write_key(tmp_path)
    _, public = pki.write_key(tmp_path, "other")
    packager.sign(bundle, key=private)
    assert not ours_accepts(bundle, public_key=public) and not pki.theirs_accepts(bundle, public_key=public)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = pki.Authorities(tmp_path / "here"), pki.Authorities(tmp_path / "there")
    packager.sign(bundle, key=here.key_file, certificates=[here.certify(), here.intermediate_file])
    assert pki.theirs_accepts(bundle, certificates=[here.root_file])
    assert not pki.theirs_accepts(bundle, certificates=[there.root_file])
    report = packager.verify(bundle, certificate_chain=there.root_file, parity=False)
    assert report.signature.error.code == "certificate-refused"


# -- what theirs accepts and ours refuses ---------------------------------------------------


def add_gitattributes(bundle):
    (bundle / ".gitattributes").write_text("* filter=evil")


def add_empty_folder(bundle):
    (bundle / "extra").mkdir()


@pytest.mark.parametrize("tamper", [add_gitattributes, add_empty_folder], ids=lambda f: f.__name__)
def test_an_addition_that_their_defaults_accept_is_refused(signed, tamper):
    bundle, public = signed
    tamper(bundle)
    assert pki.theirs_accepts(bundle, public_key=public, ignore_git_paths=True)
    report = packager.verify(bundle, public_key=public, parity=False)
    assert not report.ok and report.integrity.extra
    with pytest.raises(PackagerError) as caught:
        packager.load(bundle, public_key=public)
    assert caught.value.code == "integrity-failed"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"days": (-10, -1)}, "it expired on"),
        ({"days": (1, 10)}, "it is not valid before"),
        ({"purposes": [pki.SERVER_AUTH]}, "codeSigning"),
    ],
    ids=["expired", "not yet valid", "for servers"],
)
def test_a_certificate_that_they_accept_is_refused(bundle, tmp_path, settings, reason):
    authorities = pki.Authorities(tmp_path, days=(-20, 20))
    authorities.root = pki.certify("root", authorities.root_key, authority=True, days=(-20, 20))
    pki.write_certificates(authorities.root_file, authorities.root)
    certificate = authorities.certify(**settings)
    arguments = ["--private_key", authorities.key_file, "--signing_certificate", certificate]
    arguments += ["--certificate_chain", authorities.intermediate_file, "--signature", bundle / "model.sig"]
    assert pki.model_signing("sign", "certificate", bundle, *arguments) == 0
    assert pki.theirs_accepts(bundle, certificates=[authorities.root_file])
    report = packager.verify(bundle, certificate_chain=[authorities.root_file], parity=False)
    assert report.signature.error.code == "certificate-refused"
    assert reason in report.signature.error.why
    with pytest.raises(PackagerError) as caught:
        packager.sign(bundle, key=authorities.key_file, certificates=[certificate, authorities.intermediate_file])
    assert caught.value.code == "key-unusable" and reason in caught.value.why
