"""Read the keys and certificates that users name: PEM files of elliptic curve keys and X.509 certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from packager.errors import KeyUnusable

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_MAX_PEM_BYTES = 1 << 20  # hundreds of certificates
_PUBLIC_KEY, _PRIVATE_KEY = "a public key", "a private key"
_GENERATE = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 makes one; docs/signing.md has the steps"


def read_public_key(source: str | Path | bytes) -> ec.EllipticCurvePublicKey:
    """Read a public key from a PEM file, or from PEM given as bytes. Raises `KeyUnusable`."""
    pem, name = _read_pem(source, _PUBLIC_KEY)
    hint = "write the public key of a private key with `openssl pkey -in KEY -pubout`"
    if b"-----BEGIN CERTIFICATE-----" in pem:
        hint = "pass certificates with --certificate-chain"
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(name, _PUBLIC_KEY, "it has no public key in PEM", hint) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise KeyUnusable(name, _PUBLIC_KEY, _describe_unsupported(key), hint)
    return key


def read_private_key(path: Path, password: str | None) -> ec.EllipticCurvePrivateKey:
    """Read a private key from a PEM file; `password` is used if the key is encrypted. Raises `KeyUnusable`."""
    pem, name = _read_pem(path, _PRIVATE_KEY)
    try:
        try:
            key = serialization.load_pem_private_key(pem, None)
        except TypeError:  # it is encrypted
            if password is None:
                hint = "set PACKAGER_KEY_PASSWORD, or run the command in a terminal"
                raise KeyUnusable(name, _PRIVATE_KEY, "it is encrypted, and there is no password", hint) from None
            key = _decrypt(pem, password, name)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(name, _PRIVATE_KEY, "it has no private key in PEM", _GENERATE) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise KeyUnusable(name, _PRIVATE_KEY, _describe_unsupported(key), _GENERATE)
    return key


def _decrypt(pem: bytes, password: str, name: str) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(name, _PRIVATE_KEY, "the password is wrong", "correct PACKAGER_KEY_PASSWORD") from None


def is_encrypted(path: Path) -> bool:
    """Return whether a PEM file has a private key that needs a password. Raises `KeyUnusable` if it is unreadable."""
    pem, _ = _read_pem(path, _PRIVATE_KEY)
    try:
        serialization.load_pem_private_key(pem, None)
    except TypeError:
        return True
    except (ValueError, UnsupportedAlgorithm):
        return False
    return False


def read_certificates(sources: Sequence[str | Path]) -> tuple[x509.Certificate, ...]:
    """Read all certificates of PEM files, in order. Raises `KeyUnusable`."""
    certificates: list[x509.Certificate] = []
    for source in sources:
        pem, name = _read_pem(source, "a certificate")
        try:
            loaded = x509.load_pem_x509_certificates(pem)
            _ = [(certificate.subject, certificate.issuer) for certificate in loaded]  # parsed when they are used
        except ValueError:
            hint = "pass a file that starts with -----BEGIN CERTIFICATE-----"
            raise KeyUnusable(name, "a certificate", "it has no certificate in PEM", hint) from None
        certificates += loaded
    return tuple(certificates)


def compute_key_id(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key as PEM, in hex, which is what model.sig has as the key's hint."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def is_signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    """Return whether an ECDSA signature of `content` was made with the private key of `key`."""
    try:
        key.verify(signature, content, ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def is_supported(key: object) -> bool:
    """Return whether a public key is of a kind and curve that the format allows."""
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _HASHES


def _read_pem(source: str | Path | bytes, what: str) -> tuple[bytes, str]:
    """Return PEM and a name for messages."""
    if isinstance(source, bytes):
        return source, "the PEM given"
    try:
        if Path(source).stat().st_size > _MAX_PEM_BYTES:
            why = f"it has more than {_MAX_PEM_BYTES} bytes"
            raise KeyUnusable(str(source), what, why, "name a PEM file with nothing but what is needed")
        return Path(source).read_bytes(), str(source)
    except OSError as error:
        raise KeyUnusable(str(source), what, str(error.strerror), "name a PEM file that you may read") from None


def _describe_unsupported(key: object) -> str:
    if isinstance(key, (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)):
        return f"its curve is {key.curve.name}; the format has P-256, P-384 and P-521"
    kind = type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey")
    return f"it is a key for {kind.strip('_')}; the format has the elliptic curves P-256, P-384 and P-521"
