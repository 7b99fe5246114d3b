"""The format of model.sig: OpenSSF Model Signing 1.0, as the `model_signing` library writes it.

model.sig is a Sigstore bundle (JSON) with the signer's key id or certificates, and a DSSE envelope. The envelope has a
payload and an ECDSA signature over `DSSEv1 LENGTH TYPE LENGTH PAYLOAD`. The payload is an in-toto statement, whose
predicate lists the SHA-256 of every file of the bundle, SHA256SUMS and FINGERPRINT included, and model.sig excluded.
All of these digests follow from the text of SHA256SUMS (`signed_digests`), so no file is read to check a statement.

The envelope is not covered by anything, so it is read strictly: a field that is unknown, appears twice, or is encoded
in a second way, is an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.bundle import layout
from packager.common.strict_json import parse_strict_json

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_FIXED_BYTES, _BYTES_PER_FILE, _BYTES_PER_CHARACTER = 256 << 10, 1 << 10, 16


class SignatureMalformed(Exception):
    """model.sig, or the statement in it, is not in the format."""


@dataclass(frozen=True)
class ParsedSignature:
    """The content of model.sig, of which nothing is verified.

    A signature names its signer either by `key_id` or by `certificates`, in DER, the signer's own first.
    """

    payload: bytes
    signature: bytes
    key_id: str | None
    certificates: tuple[bytes, ...]

    @property
    def signed_bytes(self) -> bytes:
        """Return the bytes that the signature covers: DSSE's pre-authentication encoding of the payload."""
        return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(self.payload), self.payload)


def signed_digests(sums: Mapping[str, str], fingerprint: str) -> dict[str, str]:
    """Return the SHA-256 of every file that a signature covers, in hex by path.

    `sums` are the digests in SHA256SUMS, and `fingerprint` is that of the bundle, from which the digests of SHA256SUMS
    and FINGERPRINT follow.
    """
    seal = {
        layout.SUMS: base64.b64decode(fingerprint.removeprefix("h1:")).hex(),
        layout.FINGERPRINT: hashlib.sha256(f"{fingerprint}\n".encode()).hexdigest(),
    }
    return {**sums, **seal}


def size_limit(digests: Mapping[str, str]) -> int:
    """Return the size in bytes that no model.sig for these files exceeds."""
    return _FIXED_BYTES + sum(_BYTES_PER_FILE + _BYTES_PER_CHARACTER * len(path) for path in digests)


def parse_signature(content: bytes) -> ParsedSignature:
    """Parse the bytes of model.sig. Raises `SignatureMalformed`."""
    try:
        return _parse_bundle(parse_strict_json(content))
    except SignatureMalformed:
        raise
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise SignatureMalformed(f"{type(error).__name__}: {error}"[:200]) from None


def parse_statement(payload: bytes) -> dict[str, str]:
    """Parse the payload of a signature into the SHA-256 of each file, in hex by path. Raises `SignatureMalformed`."""
    try:
        return _parse_statement(parse_strict_json(payload))
    except SignatureMalformed:
        raise
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise SignatureMalformed(f"its statement: {type(error).__name__}: {error}"[:200]) from None


def _parse_bundle(bundle: dict[str, Any]) -> ParsedSignature:
    _check_fields(bundle, "mediaType", "verificationMaterial", "dsseEnvelope")
    if bundle["mediaType"] != _MEDIA_TYPE:
        raise SignatureMalformed(f"its media type is {str(bundle['mediaType'])[:100]!r}, expected {_MEDIA_TYPE!r}")
    material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
    if "certificate" in material or material.get("tlogEntries", []) != []:
        raise SignatureMalformed("it is a keyless signature of Sigstore; `model_signing verify sigstore` checks those")
    key_id: str | None = None
    certificates: tuple[bytes, ...] = ()
    if "publicKey" in material:
        _check_fields(material, "publicKey", optional="tlogEntries")
        _check_fields(material["publicKey"], "hint")
        key_id = str(material["publicKey"]["hint"])
    else:
        _check_fields(material, "x509CertificateChain", optional="tlogEntries")
        _check_fields(material["x509CertificateChain"], "certificates")
        certificates = tuple(_parse_certificate(entry) for entry in material["x509CertificateChain"]["certificates"])
        if not certificates:
            raise SignatureMalformed("it has no certificate")
    _check_fields(envelope, "payload", "payloadType", "signatures")
    if envelope["payloadType"] != _PAYLOAD_TYPE:
        raise SignatureMalformed(f"its payload is {str(envelope['payloadType'])[:100]!r}, expected {_PAYLOAD_TYPE!r}")
    (signature,) = envelope["signatures"]
    _check_fields(signature, "sig", optional="keyid")
    if signature.get("keyid") not in ("", None):
        raise SignatureMalformed("it has a key id inside its envelope")
    return ParsedSignature(_decode(envelope["payload"]), _decode(signature["sig"]), key_id, certificates)


def _parse_certificate(entry: dict[str, Any]) -> bytes:
    _check_fields(entry, "rawBytes")
    return _decode(entry["rawBytes"])


def _check_fields(mapping: dict[str, Any], *names: str, optional: str | None = None) -> None:
    """Raise `SignatureMalformed` unless a JSON object has exactly these fields, and perhaps the optional one."""
    if not isinstance(mapping, dict) or mapping.keys() - {optional} != set(names):
        raise SignatureMalformed(f"expected the fields {', '.join(names)}, found {', '.join(mapping)[:100] or 'none'}")


def _decode(text: str) -> bytes:
    """Decode base64, and refuse a second spelling of the same bytes."""
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error:
        content = b""
    if not content or base64.b64encode(content).decode() != text:
        raise SignatureMalformed("a field is not base64")
    return content


def _parse_statement(statement: dict[str, Any]) -> dict[str, str]:
    for field, expected in (("_type", _STATEMENT_TYPE), ("predicateType", _PREDICATE_TYPE)):
        if statement[field] != expected:
            raise SignatureMalformed(f"its statement has the {field} {str(statement[field])[:100]!r}, not {expected!r}")
    serialization = statement["predicate"]["serialization"]
    if (serialization["method"], serialization["hash_type"]) != ("files", "sha256"):
        raise SignatureMalformed("it has digests that are not the SHA-256 of whole files")
    digests: dict[str, str] = {}
    root = hashlib.sha256()
    for resource in statement["predicate"]["resources"]:
        if resource["algorithm"] != "sha256" or resource["name"] in digests:
            raise SignatureMalformed(f"its statement has an unusable entry for {str(resource['name'])[:100]!r}")
        digests[resource["name"]] = resource["digest"]
        root.update(bytes.fromhex(resource["digest"]))
    (subject,) = statement["subject"]
    if subject["digest"] != {"sha256": root.hexdigest()}:
        raise SignatureMalformed("the digest of its subject is not that of its files")
    return digests
