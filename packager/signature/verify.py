"""Check who signed a bundle, from plain values: the bytes of model.sig, and the digests in SHA256SUMS.

The seal must have been checked before: a signature covers the files through their digests there. Needs `cryptography`,
which is imported only where a key or certificates are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import CertificateRefused, ExtraMissing, Refused, SignatureMissing, SignatureWrong
from packager.signature.report import SignatureReport, Signer
from packager.signature.statement import (
    ParsedSignature,
    SignatureMalformed,
    parse_signature,
    parse_statement,
    signed_digests,
    size_limit,
)

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_EXTRA = "pip install 'torch-packager[verify-signature]'"
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Trust:
    """Whose signature is accepted: that of `public_key`, or one whose certificate `certificates` vouch for."""

    public_key: ec.EllipticCurvePublicKey | None
    certificates: tuple[x509.Certificate, ...] = ()


def read_trust(
    public_key: str | Path | bytes | None, certificate_chain: str | Path | Sequence[str | Path] = ()
) -> Trust | None:
    """Read the key or the certificates that a signature is checked with; None if neither is given.

    `public_key` is a PEM file, or PEM as bytes. Raises `KeyUnusable` or `ExtraMissing`.
    """
    paths = [certificate_chain] if isinstance(certificate_chain, (str, Path)) else list(certificate_chain)
    if public_key is None and not paths:
        return None
    try:
        from packager.signature import certificates, keys
    except ModuleNotFoundError as error:
        raise ExtraMissing(error.name or "cryptography", "checking a signature", _EXTRA) from None
    from packager.errors import KeyUnusable

    if public_key is not None and paths:
        why, hint = "a public key and certificates are given", "give one of the two"
        raise KeyUnusable(str(paths[0]), "the signer's certificates", why, hint)
    if public_key is not None:
        return Trust(keys.read_public_key(public_key))
    chain = keys.read_certificates(paths)
    if not any(certificates.is_self_issued(certificate) for certificate in chain):
        why, hint = "none of its certificates is a root, which is self-signed", "add the root of the chain"
        raise KeyUnusable(str(paths[0]), "the signer's certificates", why, hint)
    return Trust(None, chain)


def check_signature(
    content: bytes | None, sums: Mapping[str, str], fingerprint: str, trust: Trust, path: str
) -> Signer:
    """Check model.sig against the seal and against whom to trust. Returns who signed.

    `content` are the bytes of model.sig, None if there is no such file. `sums` and `fingerprint` are those of the
    seal, which must be intact. `path` names the bundle in messages. Raises `SignatureMissing`, `SignatureWrong` or
    `CertificateRefused`.
    """
    from packager.signature import keys

    if content is None:
        raise SignatureMissing(path)
    _check_size(content, sums, path)
    try:
        parsed = parse_signature(content)
    except SignatureMalformed as error:
        raise SignatureWrong(path, f"model.sig is malformed: {error}") from None
    key, subject = _accept_signer(parsed, trust, path)
    check_signed_files(parsed, key, sums, fingerprint, path)
    return Signer(keys.compute_key_id(key), subject)


def check_signed_files(
    parsed: ParsedSignature, key: ec.EllipticCurvePublicKey, sums: Mapping[str, str], fingerprint: str, path: str
) -> None:
    """Check that `key` signed these files, all of them and no others. Raises `SignatureWrong`."""
    from packager.signature import keys

    if not keys.is_signed_by(key, parsed.signature, parsed.signed_bytes):
        raise SignatureWrong(path, "model.sig was changed after it was signed, or was not made by this signer")
    try:
        signed = parse_statement(parsed.payload)
    except SignatureMalformed as error:
        raise SignatureWrong(path, f"model.sig is malformed: {error}") from None
    expected = signed_digests(sums, fingerprint)
    if signed != expected:
        raise SignatureWrong(path, f"it was made for other files\n{_describe_difference(signed, expected)}")


def report_signature(
    content: bytes | None, sums: Mapping[str, str], fingerprint: str, trust: Trust | None, path: str
) -> SignatureReport | None:
    """Return the outcome of `check_signature`, None for an unsigned bundle that need not be signed.

    Without `trust`, only the size of model.sig is checked.
    """
    try:
        if content is not None:
            _check_size(content, sums, path)
        if trust is None:
            return SignatureReport("not-checked") if content is not None else None
        return SignatureReport("pass", check_signature(content, sums, fingerprint, trust, path))
    except Refused as error:
        return SignatureReport("fail", error=error)


def _check_size(content: bytes, sums: Mapping[str, str], path: str) -> None:
    """Raise `SignatureWrong` before a model.sig is parsed that is too large for these files."""
    if len(content) > size_limit(sums):
        raise SignatureWrong(path, "model.sig is larger than any signature of these files")


def _accept_signer(parsed: ParsedSignature, trust: Trust, path: str) -> tuple[ec.EllipticCurvePublicKey, str | None]:
    """Return the key that must have signed, and the subject of its certificate.

    Raises `SignatureWrong` if model.sig names a signer that is not trusted, or `CertificateRefused`.
    """
    from packager.signature import certificates, keys

    if trust.public_key is None:
        if not parsed.certificates:
            raise SignatureWrong(path, "it was made with a bare key, and certificates are given")
        try:
            return certificates.accept_certificates(parsed.certificates, trust.certificates)
        except certificates.CertificateProblem as error:
            raise CertificateRefused(path, error.subject, str(error)) from None
    if parsed.key_id is None:
        raise SignatureWrong(path, "it was made with a certificate, and a public key is given")
    key_id = keys.compute_key_id(trust.public_key)
    if parsed.key_id != key_id:
        why = f"it was made with a different key\ngiven:     {key_id}\nmodel.sig: {parsed.key_id[:64]}"
        raise SignatureWrong(path, why)
    return trust.public_key, None


def _describe_difference(signed: Mapping[str, str], present: Mapping[str, str]) -> str:
    lists = {
        "not signed": sorted(present.keys() - signed.keys()),
        "not in the bundle": sorted(signed.keys() - present.keys()),
        "different": sorted(path for path in present.keys() & signed.keys() if present[path] != signed[path]),
    }
    lines = []
    for title, paths in lists.items():
        more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
        lines += [f"{title}: {', '.join(paths[:_NAMES_SHOWN])}{more}"] if paths else []
    return "\n".join(lines)
