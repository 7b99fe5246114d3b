"""Keys, certificates, and the `model_signing` library and command, which others verify bundles with."""

import base64
import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing import hashing, verifying

CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
CODE_SIGNING, SERVER_AUTH = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def write_key(folder, name="key", curve="P-256", password=None):
    """Write a new private key, and its public key beside it. Returns both paths."""
    key = ec.generate_private_key(CURVES[curve]())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def encrypt(key, path, password):
    """Write a private key under a password. Returns the path."""
    encryption = BestAvailableEncryption(password.encode())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return path


def read_statement(bundle):
    """Return the statement in the model.sig of a bundle."""
    return json.loads(base64.b64decode(json.loads((bundle / "model.sig").read_text())["dsseEnvelope"]["payload"]))


def certify(subject, key, issuer=None, *, authority=None, path_length=None, usage=(), purposes=(), days=(-1, 365)):
    """Return a certificate of `key`; `issuer` is the certificate and the key of its issuer, itself by default."""
    start, end = (datetime.now(timezone.utc) + timedelta(days=day) for day in days)
    issuer_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]) if issuer is None else issuer[0].subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, path_length), critical=True)
    if usage:
        allowed = x509.KeyUsage(**{name: name in usage for name in _USAGES})
        builder = builder.add_extension(allowed, critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return builder.sign(key if issuer is None else issuer[1], hashes.SHA256())


def write_certificates(path, *certificates):
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return path


class Authorities:
    """A root and an intermediate, and a signer's key that the intermediate certifies as a test wishes."""

    def __init__(self, folder, **intermediate):
        self.folder = folder
        self.root_key, self.intermediate_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = certify("root", self.root_key, authority=True, usage=("key_cert_sign",))
        settings = {"authority": True, "path_length": 0, "usage": ("key_cert_sign",), **intermediate}
        self.intermediate = certify("intermediate", self.intermediate_key, (self.root, self.root_key), **settings)
        self.key_file = folder / "signer.pem"
        self.key_file.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.root_file = write_certificates(folder / "root.pem", self.root)
        self.intermediate_file = write_certificates(folder / "intermediate.pem", self.intermediate)

    def certify(self, **settings):
        """Write the signer's certificate, by default a good one. Returns its path."""
        settings = {"authority": False, "usage": ("digital_signature",), "purposes": [CODE_SIGNING], **settings}
        issuer = (self.intermediate, self.intermediate_key)
        return write_certificates(self.folder / "signer.crt.pem", certify("signer", self.key, issuer, **settings))


def model_signing(*arguments):
    """Run the command `model_signing` as a receiver would. Returns its exit status."""
    done = subprocess.run([sys.executable, "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode


def theirs_accepts(bundle, *, public_key=None, certificates=(), ignore_git_paths=False):
    """Return whether the library accepts the bundle's model.sig, as its command `verify` does, in this process."""
    config = verifying.Config()
    if public_key is not None:
        config.use_elliptic_key_verifier(public_key=public_key)
    else:
        config.use_certificate_verifier(certificate_chain=certificates)
    paths = hashing.Config().set_ignored_paths(paths=["model.sig"], ignore_git_paths=ignore_git_paths)
    try:
        config.set_hashing_config(paths).verify(bundle, bundle / "model.sig")
    except Exception:  # noqa: BLE001 (it raises whatever its libraries do)
        return False
    return True
