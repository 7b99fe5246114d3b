"""`packager.sign`: what it writes into a folder or an archive, and what it refuses to sign with."""

import shutil

import pki
import projects
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import packager
from packager.bundle.archive import open_as_folder, write_archive
from packager.errors import IntegrityFailed, KeyUnusable, SignatureMissing, SignatureWrong


@pytest.fixture
def keys(tmp_path):
    """Return the paths of a private and its public key."""
    return pki.write_key(tmp_path)


@pytest.fixture
def archive(archived, tmp_path):
    """Return a copy of the archive of the built bundle."""
    return shutil.copy(archived, tmp_path / archived.name)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_signing_adds_one_file_and_leaves_the_fingerprint(bundle, built, keys):
    before = contents(bundle)
    result = packager.sign(bundle, key=keys[0])
    after = contents(bundle)
    assert {path.name for path in after.keys() - before.keys()} == {"model.sig"}
    assert {path: after[path] for path in before} == before
    assert result.fingerprint == built.fingerprint
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_the_signed_archive_is_that_of_the_signed_folder(archive, built, keys, tmp_path, temporary):
    result = packager.sign(archive, key=keys[0])
    assert result.fingerprint == built.fingerprint
    report = packager.verify(archive, public_key=keys[1])
    assert report.ok and report.signature.signer == result.signer
    assert packager.load(archive, public_key=keys[1]).fingerprint == built.fingerprint
    with open_as_folder(archive) as folder:
        assert pki.theirs_accepts(folder, public_key=keys[1])
        write_archive(folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_a_signature_names_the_bundle_and_not_its_folder(bundle, archive, keys, tmp_path):
    moved = bundle.rename(tmp_path / "elsewhere")
    for path in (moved, archive):
        packager.sign(path, key=keys[0])
        with open_as_folder(path) as folder:
            statement = pki.read_statement(folder)
        assert statement["subject"][0]["name"] == "digits-cnn-1.0.0"
        assert statement["predicate"]["serialization"]["ignore_paths"] == ["model.sig"]


def test_an_archive_that_was_tampered_with_is_refused(archive, bundle, keys, tmp_path):
    packager.sign(archive, key=keys[0])
    with open_as_folder(archive) as folder:
        shutil.copy(folder / "model.sig", bundle)
    (bundle / "assets/labels.txt").write_text("changed")
    projects.reseal(bundle)
    write_archive(bundle, archive)
    report = packager.verify(archive, public_key=keys[1], parity=False)
    assert report.integrity.is_intact and report.signature.error.code == "signature-wrong"
    assert str(archive) in report.signature.error.message
    with pytest.raises(SignatureWrong, match="other files") as caught:
        packager.load(archive, public_key=keys[1])
    assert str(archive) in caught.value.message


def test_a_new_signature_takes_the_place_of_the_old_one(bundle, keys, tmp_path):
    _, public = pki.write_key(tmp_path, "next", "P-384")
    packager.sign(bundle, key=keys[0])
    packager.sign(bundle, key=tmp_path / "next.pem")
    assert packager.verify(bundle, public_key=public, parity=False).ok
    assert not packager.verify(bundle, public_key=keys[1], parity=False).ok


def test_building_again_keeps_the_signature_of_a_bundle_that_is_up_to_date(digits, keys, tmp_path):
    first = packager.build(digits, tmp_path / "out")
    packager.sign(first.bundle, key=keys[0])
    again = packager.build(digits, tmp_path / "out")
    assert again.cached
    assert packager.verify(again.bundle, public_key=keys[1], parity=False).ok


def test_the_password_of_an_encrypted_key_is_used(bundle, tmp_path):
    private, public = pki.write_key(tmp_path, password="secret")
    packager.sign(bundle, key=private, password="secret")
    assert packager.verify(bundle, public_key=public, parity=False).ok
    authorities = pki.Authorities(tmp_path)
    encrypted = pki.encrypt(authorities.key, tmp_path / "encrypted.pem", "secret")
    packager.sign(bundle, key=encrypted, password="secret", certificates=authorities.certify())
    trusted = [authorities.root_file, authorities.intermediate_file]
    assert packager.verify(bundle, certificate_chain=trusted, parity=False).ok
    assert b"PRIVATE" not in b"".join(contents(bundle).values())


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_an_encrypted_key_without_its_password_is_refused(bundle, tmp_path, password):
    private, _ = pki.write_key(tmp_path, password="secret")
    with pytest.raises(KeyUnusable, match="password"):
        packager.sign(bundle, key=private, password=password)
    assert not (bundle / "model.sig").exists()


UNUSABLE = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_key_that_the_format_lacks_is_refused(bundle, tmp_path, kind):
    key, path = UNUSABLE[kind], tmp_path / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyUnusable, match="P-256, P-384 and P-521"):
        packager.sign(bundle, key=path)
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyUnusable, match="P-256, P-384 and P-521"):
        packager.load(bundle, public_key=path)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\n", None])
def test_a_file_without_a_key_is_refused(bundle, tmp_path, content):
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    for use in (
        lambda: packager.sign(bundle, key=path),
        lambda: packager.verify(bundle, public_key=path),
        lambda: packager.verify(bundle, certificate_chain=path),
        lambda: packager.load(bundle, public_key=path),
    ):
        with pytest.raises(KeyUnusable):
            use()


def test_the_wrong_kind_of_file_is_named(bundle, keys, tmp_path):
    authorities = pki.Authorities(tmp_path)
    for wrong, hint in ((keys[0], "openssl pkey"), (authorities.root_file, "--certificate-chain")):
        with pytest.raises(KeyUnusable) as caught:
            packager.verify(bundle, public_key=wrong)
        assert hint in caught.value.hint
    with pytest.raises(KeyUnusable, match="root"):
        packager.verify(bundle, certificate_chain=authorities.intermediate_file)
    with pytest.raises(KeyUnusable, match="public key and certificates"):
        packager.verify(bundle, public_key=keys[1], certificate_chain=authorities.root_file)


def test_a_certificate_of_a_different_key_is_refused(bundle, keys, tmp_path):
    with pytest.raises(KeyUnusable, match="is not one of the key"):
        packager.sign(bundle, key=keys[0], certificates=pki.Authorities(tmp_path).certify())


def test_a_bundle_that_is_not_whole_is_not_signed(bundle, keys):
    (bundle / "README.md").write_text("changed")
    with pytest.raises(IntegrityFailed, match=r"changed: README\.md"):
        packager.sign(bundle, key=keys[0])
    (bundle / "README.md").unlink()
    projects.reseal(bundle)
    with pytest.raises(IntegrityFailed, match=r"README\.md is missing from SHA256SUMS"):
        packager.sign(bundle, key=keys[0])
    assert not (bundle / "model.sig").exists()


# -- verify and load ------------------------------------------------------------------------


def test_an_unsigned_bundle_is_no_bundle_of_the_signer(bundle, keys, archive):
    for path in (bundle, archive):
        report = packager.verify(path, public_key=keys[1])
        assert not report.ok and report.signature.error.code == "signature-missing"
        assert report.parity == {"onnx": "not-checked", "torchscript": "not-checked"}
        with pytest.raises(SignatureMissing):
            packager.load(path, public_key=keys[1])


def test_a_signature_is_not_checked_without_a_key_and_said_so(bundle, keys):
    assert packager.verify(bundle, parity=False).signature is None
    packager.sign(bundle, key=keys[0])
    report = packager.verify(bundle, parity=False)
    assert report.ok
    assert report.as_json()["signature"] == {"verdict": "not-checked", "key_id": None, "subject": None, "error": None}
    assert any(note.startswith("signature: not checked") for note in report.notes)
    (bundle / "README.md").write_text("changed")
    assert packager.verify(bundle, parity=False).signature.verdict == "not-checked"
    assert packager.verify(bundle, public_key=keys[1], parity=False).signature.verdict == "not-checked"


def test_a_key_may_be_given_as_text_of_the_program(bundle, keys):
    packager.sign(bundle, key=keys[0])
    pem = keys[1].read_bytes()
    assert packager.load(bundle, public_key=pem, verify=False).backend == "onnx"
    assert packager.verify(bundle, public_key=pem, parity=False).ok


def test_a_key_makes_load_check_the_files_even_without_verify(bundle, keys):
    packager.sign(bundle, key=keys[0])
    (bundle / "README.md").unlink()
    packager.load(bundle, verify=False)
    with pytest.raises(IntegrityFailed):
        packager.load(bundle, verify=False, public_key=keys[1])


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "large"])
def test_a_model_sig_that_is_no_file_of_its_size_is_refused(bundle, keys, tmp_path, kind):
    import os

    packager.sign(bundle, key=keys[0])
    path = (bundle / "model.sig").rename(tmp_path / "model.sig")
    target = bundle / "model.sig"
    if kind == "link":
        target.symlink_to(path)
    elif kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.write_bytes(path.read_bytes() + b" " * (1 << 20))
    assert not packager.verify(bundle, public_key=keys[1], parity=False).ok
    with pytest.raises(packager.PackagerError) as caught:
        packager.load(bundle, public_key=keys[1])
    assert caught.value.code in ("signature-wrong", "integrity-failed")
    with pytest.raises(IntegrityFailed, match=r"model\.sig"):
        packager.sign(bundle, key=keys[0])


def test_a_pem_file_of_megabytes_is_refused_unread(bundle, tmp_path):
    path = tmp_path / "chain.pem"
    path.write_bytes(b"\n" * ((1 << 20) + 1))
    for trust in ({"public_key": path}, {"certificate_chain": path}):
        with pytest.raises(KeyUnusable) as caught:
            packager.verify(bundle, **trust)
        assert f"more than {1 << 20} bytes" in caught.value.why
