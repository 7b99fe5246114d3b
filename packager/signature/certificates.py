"""Check the certificate of a signer: its key, its dates, what it may be used for, and who vouches for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from packager.signature.keys import is_supported

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion)


class CertificateProblem(Exception):
    """A certificate is not accepted, for the reason given. `subject` names it, if that could be read."""

    subject: str | None = None


def accept_certificates(
    chain: Sequence[bytes], trusted: Sequence[x509.Certificate]
) -> tuple[ec.EllipticCurvePublicKey, str]:
    """Return the key and the subject of a signer's certificate, the first of `chain`, which is in DER.

    Raises `CertificateProblem` unless it may sign, and `trusted` vouch for it.
    """
    subject = None
    try:
        certificates = [x509.load_der_x509_certificate(certificate) for certificate in chain]
        subject = certificates[0].subject.rfc4514_string()
        key = check_signing_certificate(certificates[0])
        check_chain(certificates, trusted)
    except CertificateProblem as error:
        error.subject = subject
        raise
    except _UNREADABLE as error:  # the parts of a certificate are parsed when they are used
        raise CertificateProblem(f"it cannot be read: {str(error)[:100]}") from None
    return key, subject


def check_signing_certificate(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate that may sign a bundle today.

    Raises `CertificateProblem`, or ValueError and its like if it cannot be parsed.

    It must be valid now. Its key usage must include digitalSignature and its extended key usage codeSigning; either of
    them may be absent, which leaves the use open, and not both.
    """
    now = datetime.now(timezone.utc)
    if now > certificate.not_valid_after_utc:
        raise CertificateProblem(f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    if now < certificate.not_valid_before_utc:
        raise CertificateProblem(f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}")
    key, extensions = certificate.public_key(), certificate.extensions
    usage, purposes = _find(extensions, x509.KeyUsage), _find(extensions, x509.ExtendedKeyUsage)
    if usage is None and purposes is None:
        raise CertificateProblem("it does not say that its key may sign")
    if usage is not None and not usage.digital_signature:
        raise CertificateProblem("its key usage does not include digitalSignature")
    if purposes is not None and ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise CertificateProblem("its extended key usage does not include codeSigning")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_supported(key):
        raise CertificateProblem("its key is not on one of the curves P-256, P-384 and P-521")
    return key


def check_chain(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> None:
    """Check that the first certificate of `chain` leads to a self-signed one of `trusted`, which vouches for it.

    The other certificates of both may be links in between. Every one of them must be valid now, and those that issue
    others must be allowed to. Raises `CertificateProblem`.
    """
    authorities = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)  # which must say cA
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_certificate_signing)
    )
    roots = [certificate for certificate in trusted if is_self_issued(certificate)]
    links = [*chain[1:], *(certificate for certificate in trusted if not is_self_issued(certificate))]
    verifier = (
        PolicyBuilder()
        .store(Store(roots))
        .time(datetime.now(timezone.utc))
        .extension_policies(ca_policy=authorities, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        verifier.verify(chain[0], links)
    except (VerificationError, ValueError) as error:
        reason = str(error).partition(" (encountered processing")[0].removeprefix("validation failed: ")
        if "no interior errors" in reason:
            reason = "no certificate given here issued it"
        raise CertificateProblem(f"the certificates given do not vouch for it: {reason[:200]}") from None


def is_self_issued(certificate: x509.Certificate) -> bool:
    """Return whether a certificate names itself as its issuer, as a root does."""
    return certificate.issuer == certificate.subject


def _require_certificate_signing(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a certificate that issued another one may not do so")


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
