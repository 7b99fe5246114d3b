"""Sign a bundle: `package sign`. Needs the `model_signing` library, of the extra `sign`.

The library makes the statement, signs it and writes the file. It is given the digests of the seal, which has just been
checked, instead of hashing the files a second time: so what is signed is what was checked, and the statement has the
bundle's own name, wherever the bundle lies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from packager.bundle import layout
from packager.bundle.archive import open_as_folder, write_archive
from packager.bundle.files import is_archive, open_bundle
from packager.bundle.seal import check_intact, read_signature
from packager.errors import ExtraMissing, IntegrityFailed, KeyUnusable, OutputRefused
from packager.runtime.verify import check_structure
from packager.signature.report import Signer
from packager.signature.statement import parse_signature, signed_digests
from packager.signature.verify import check_signed_files, report_signature

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from model_signing.signing import Config

_EXTRA = "pip install 'torch-packager[sign]'"


@dataclass(frozen=True)
class SignResult:
    """The bundle that was signed, a folder or an archive, its fingerprint, and who signed it."""

    bundle: Path
    fingerprint: str
    signer: Signer

    def as_json(self) -> dict[str, object]:
        """Return the object that `package sign --json` prints."""
        signature = {"key_id": self.signer.key_id, "subject": self.signer.subject}
        return {"bundle": str(self.bundle), "fingerprint": self.fingerprint, "signature": signature}


def sign(
    bundle: str | Path,
    *,
    key: str | Path,
    password: str | None = None,
    certificates: str | Path | Sequence[str | Path] = (),
) -> SignResult:
    """Sign a bundle, given as a folder or an archive, and write model.sig into it in place of an earlier one.

    - `key`: the PEM file of an elliptic curve private key (P-256, P-384 or P-521).
    - `password`: the password of the key, if it is encrypted.
    - `certificates`: PEM files with the certificate of the key first, then those that lead to its root.

    The files are checked against the seal first; parity is not replayed. Raises `KeyUnusable` if the key or the
    certificate cannot sign, `ExtraMissing` without the library, `IntegrityFailed` if the bundle is not whole, and
    `OutputRefused` if model.sig cannot be written. Raises what `open_bundle` raises, too, and
    `BundleSchemaUnknown`.
    """
    path = Path(bundle)
    private_key, chain = _read_signer(Path(key), password, certificates)
    from packager.signature.keys import compute_key_id  # needs the extra, like the call above

    with open_as_folder(path) as folder:
        name, sums, fingerprint = _check_bundle(folder)
        content = _create_signature(name, signed_digests(sums, fingerprint), private_key, chain)
        public_key = private_key.public_key()
        check_signed_files(parse_signature(content), public_key, sums, fingerprint, str(folder))
        try:
            _write_signature(folder, content)
            if is_archive(path):
                write_archive(folder, path)
        except OSError as error:
            hint = "the bundle and the folder it is in must be writable"
            raise OutputRefused(str(path), str(error.strerror), hint, what="the signature") from None
    subject = chain[0].subject.rfc4514_string() if chain else None
    return SignResult(path, fingerprint, Signer(compute_key_id(public_key), subject))


def _check_bundle(folder: Path) -> tuple[str, Mapping[str, str], str]:
    """Return NAME-VERSION, the digests in SHA256SUMS and the fingerprint of a bundle that is intact and well formed."""
    path = str(folder)
    with open_bundle(folder) as files:
        config, seal = check_intact(files, models=False, evidence=True)
        signature = report_signature(read_signature(files), seal.sums, seal.fingerprint, None, path)
        if signature is not None and signature.error is not None:  # what is there is no signature: it is not replaced
            raise IntegrityFailed(path, str(signature.error.why))
        if problems := check_structure(files, config, seal.sums):
            raise IntegrityFailed(path, "\n".join(problems))
    return layout.folder_name(config["name"], config["version"]), seal.sums, seal.fingerprint


def _read_signer(
    key: Path, password: str | None, certificates: str | Path | Sequence[str | Path]
) -> tuple[ec.EllipticCurvePrivateKey, tuple[x509.Certificate, ...]]:
    """Read the key and its certificates. Raises `KeyUnusable` unless they belong together and may sign today."""
    try:
        from packager.signature import keys
        from packager.signature.certificates import CertificateProblem, check_signing_certificate
    except ModuleNotFoundError as error:
        raise ExtraMissing(error.name or "cryptography", "package sign", _EXTRA) from None
    paths = [certificates] if isinstance(certificates, (str, Path)) else list(certificates)
    private_key, chain = keys.read_private_key(key, password), keys.read_certificates(paths)
    if chain:
        try:
            certified = check_signing_certificate(chain[0])
        except (CertificateProblem, ValueError) as error:
            hint = "get a certificate for signing code, and put it before those of its issuers"
            raise KeyUnusable(str(paths[0]), "the signer's certificate", str(error), hint) from None
        if keys.compute_key_id(certified) != keys.compute_key_id(private_key.public_key()):
            hint = "put the certificate of the key before those of its issuers"
            raise KeyUnusable(str(paths[0]), "the signer's certificate", f"it is not one of the key {key}", hint)
    return private_key, chain


def _create_signature(
    name: str, digests: Mapping[str, str], key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]
) -> bytes:
    """Return the bytes of a model.sig that the library made for a bundle's name and its digests by path."""
    try:
        from model_signing import hashing, manifest
        from model_signing._hashing.hashing import Digest  # its public modules take digests and do not export the class
    except ModuleNotFoundError as error:
        raise ExtraMissing(error.name or "model_signing", "package sign", _EXTRA) from None

    class SealedDigests(hashing.Config):
        """Digests that are known, where the library would hash the files of a folder."""

        def hash(self, model_path: object, *, files_to_hash: object = None) -> manifest.Manifest:  # noqa: ARG002
            how = {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [layout.SIGNATURE],
            }
            items = [
                manifest.FileManifestItem(path=PurePosixPath(path), digest=Digest("sha256", bytes.fromhex(digest)))
                for path, digest in digests.items()
            ]
            return manifest.Manifest(name, items, manifest.SerializationType.from_args(how))

    with TemporaryDirectory(prefix="packager-") as scratch:
        target = Path(scratch) / layout.SIGNATURE
        with _configure_signer(key, chain, Path(scratch)) as config:
            config.set_hashing_config(SealedDigests()).sign(name, target)  # type: ignore[no-untyped-call]  # theirs
        return target.read_bytes()


@contextmanager
def _configure_signer(
    key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate], scratch: Path
) -> Iterator[Config]:
    """Yield the library's configuration with the signer set.

    The library reads keys from files, and only such that are not encrypted (its own --password raises TypeError). It is
    given a pipe, so that the key is never on a disk in the clear.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from model_signing import signing

    config = signing.Config()  # type: ignore[no-untyped-call]  # theirs
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as stream:
            stream.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        if not chain:
            yield config.use_elliptic_key_signer(private_key=f"/dev/fd/{reader}")
            return
        own, issuers = scratch / "certificate.pem", scratch / "issuers.pem"
        own.write_bytes(chain[0].public_bytes(Encoding.PEM))
        # The library cannot read an empty list of issuers; a certificate among its own issuers changes nothing.
        issuers.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain[1:] or chain))
        yield config.use_certificate_signer(
            private_key=f"/dev/fd/{reader}", signing_certificate=own, certificate_chain=[issuers]
        )
    finally:
        os.close(reader)


def _write_signature(folder: Path, content: bytes) -> None:
    """Write model.sig of the bundle in `folder` in one step, in place of an earlier one. Raises OSError."""
    with TemporaryDirectory(
        prefix=".sign-", dir=folder.resolve().parent
    ) as scratch:  # in the bundle it would be an intruder
        staged = Path(scratch) / layout.SIGNATURE
        staged.write_bytes(content)
        staged.replace(folder / layout.SIGNATURE)
