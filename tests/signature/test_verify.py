"""Who signed, from plain values: every change of model.sig is refused, and every certificate that may not sign."""

import base64
import hashlib
import json

import pki
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import packager
from packager.bundle.fingerprint import read_sums
from packager.errors import CertificateRefused, Refused, SignatureWrong
from packager.signature.certificates import (
    CertificateProblem,
    accept_certificates,
    check_chain,
    check_signing_certificate,
)
from packager.signature.keys import compute_key_id
from packager.signature.statement import SignatureMalformed, parse_signature, parse_statement, signed_digests
from packager.signature.verify import check_signature, read_trust


@pytest.fixture(scope="module")
def signed(built, tmp_path_factory):
    """Return the bytes of a model.sig, the digests and the fingerprint that it signs, whom to trust, and the key."""
    import shutil

    folder = tmp_path_factory.mktemp("signed")
    bundle = shutil.copytree(built.bundle, folder / built.bundle.name)
    private, public = pki.write_key(folder)
    packager.sign(bundle, key=private)
    fingerprint, sums = read_sums(bundle)
    return (bundle / "model.sig").read_bytes(), sums, fingerprint, read_trust(public), private


def accepted(content, signed):
    try:
        check_signature(content, *signed[1:4], "bundle")
    except Refused:
        return False
    return True


def test_every_flipped_byte_of_a_signature_is_refused(signed):
    content = signed[0]
    assert accepted(content, signed)
    for mask in (0x01, 0x20, 0x80):
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= mask
            assert not accepted(bytes(changed), signed), (mask, content[max(0, position - 20) : position + 20])


def test_every_truncated_signature_is_refused(signed):
    assert [size for size in range(0, len(signed[0]), 7) if accepted(signed[0][:size], signed)] == []
    assert not accepted(signed[0] + b"x", signed)


def edited(content, *path, value):
    """Return the JSON with the field at `path` replaced."""
    record = json.loads(content)
    parent = record
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mediaType",), "application/json"),
        (("extra",), 1),
        (("verificationMaterial", "tlogEntries"), [{}]),
        (("verificationMaterial", "publicKey"), {"hint": "0" * 64}),
        (("verificationMaterial", "publicKey"), None),
        (("verificationMaterial",), {}),
        (("verificationMaterial",), {"certificate": {"rawBytes": "AA=="}}),
        (("verificationMaterial",), {"x509CertificateChain": {"certificates": []}}),
        (("verificationMaterial",), {"x509CertificateChain": {"certificates": [{"rawBytes": "AA=="}]}}),
        (("dsseEnvelope", "payloadType"), "text/plain"),
        (("dsseEnvelope", "payload"), ""),
        (("dsseEnvelope", "payload"), 7),
        (("dsseEnvelope", "signatures"), []),
        (("dsseEnvelope", "signatures", 0, "sig"), "AAAA"),
        (("dsseEnvelope", "signatures", 0, "keyid"), "x"),
        (("dsseEnvelope",), []),
    ],
    ids=str,
)
def test_a_field_that_is_not_of_the_format_is_refused(signed, path, value):
    assert accepted(json.dumps(json.loads(signed[0])).encode(), signed)
    assert not accepted(edited(signed[0], *path, value=value), signed)


def test_a_keyless_signature_is_named(signed):
    content = edited(
        signed[0], "verificationMaterial", value={"certificate": {"rawBytes": "AA=="}, "tlogEntries": [{}]}
    )
    with pytest.raises(SignatureWrong, match="keyless signature of Sigstore"):
        check_signature(content, *signed[1:4], "bundle")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b'{"mediaType": 1, "mediaType": 1}', b"\xff"])
def test_anything_but_a_signature_is_refused(signed, content):
    assert not accepted(content, signed)


def test_two_signatures_in_one_envelope_are_refused(signed):
    record = json.loads(signed[0])
    assert not accepted(
        edited(signed[0], "dsseEnvelope", "signatures", value=record["dsseEnvelope"]["signatures"] * 2), signed
    )


def sign_payload(signed, change):
    """Return a model.sig whose statement the signer itself signed, after `change`."""
    record = json.loads(signed[0])
    statement = json.loads(base64.b64decode(record["dsseEnvelope"]["payload"]))
    payload = json.dumps(change(statement) or statement).encode()
    key = load_pem_private_key(signed[4].read_bytes(), None)
    kind = b"application/vnd.in-toto+json"
    signature = key.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload), ec.ECDSA(hashes.SHA256()))
    record["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    record["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(record).encode()


def test_a_statement_that_is_signed_again_unchanged_is_accepted(signed):
    assert accepted(sign_payload(signed, lambda statement: None), signed)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda s: s.update(subject=[]),
        lambda s: s.update(subject=s["subject"] * 2),
        lambda s: s["subject"][0].update(digest={"sha256": "0" * 64}),
        lambda s: s["predicate"].pop("serialization"),
        lambda s: s["predicate"]["serialization"].update(method="shards"),
        lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
        lambda s: s["predicate"].update(resources=[]),
        lambda s: s["predicate"]["resources"].pop(),
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        lambda s: s["predicate"]["resources"].append({"name": "x", "algorithm": "sha256", "digest": "0" * 64}),
        lambda s: s["predicate"]["resources"][0].update(algorithm="md5"),
        lambda s: s["predicate"]["resources"][0].update(digest="xyz"),
        lambda s: s["predicate"]["resources"][0].update(name=[]),
        lambda s: [s],
    ],
)
def test_a_statement_about_anything_else_is_refused_even_if_it_is_signed(signed, change):
    with pytest.raises(SignatureWrong):
        check_signature(sign_payload(signed, change), *signed[1:4], "bundle")


def test_a_file_that_a_statement_lists_twice_is_refused(signed):
    def change(statement):
        resources = statement["predicate"]["resources"]
        resources.append(resources[0])
        root = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources))
        statement["subject"][0]["digest"]["sha256"] = root.hexdigest()

    assert not accepted(sign_payload(signed, change), signed)


@pytest.mark.parametrize("text", ["AB==", "AAB=", "AA==\n", "AA", "A-A="])
def test_a_second_spelling_of_the_same_bytes_is_refused(signed, text):
    with pytest.raises(SignatureMalformed, match="not base64"):
        parse_signature(edited(signed[0], "dsseEnvelope", "signatures", 0, "sig", value=text))
    assert parse_signature(edited(signed[0], "dsseEnvelope", "signatures", 0, "sig", value="AA==")).signature == b"\0"


def test_a_statement_lists_every_file_but_the_signature(signed):
    content, sums, fingerprint, _, _ = signed
    digests = parse_statement(parse_signature(content).payload)
    assert digests == signed_digests(sums, fingerprint)
    assert digests.keys() - sums.keys() == {"SHA256SUMS", "FINGERPRINT"}


def test_the_key_id_is_what_a_shell_computes(signed):
    public = signed[4].with_name("key.pub.pem")
    assert compute_key_id(signed[3].public_key) == hashlib.sha256(public.read_bytes()).hexdigest()


# -- certificates ---------------------------------------------------------------------------


def problem(check, *arguments):
    with pytest.raises(CertificateProblem) as caught:
        check(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"usage": ("key_agreement",)}, "digitalSignature"),
        ({"usage": ("key_agreement",), "purposes": [pki.CODE_SIGNING]}, "digitalSignature"),
        ({"usage": ("digital_signature",), "purposes": [pki.SERVER_AUTH]}, "codeSigning"),
        ({"usage": (), "purposes": [pki.SERVER_AUTH]}, "codeSigning"),
        ({"usage": (), "purposes": ()}, "does not say"),
        ({"usage": ("digital_signature",), "days": (-9, -1)}, "expired"),
        ({"usage": ("digital_signature",), "days": (1, 9)}, "not valid before"),
    ],
)
def test_a_certificate_that_may_not_sign_is_refused(settings, reason):
    certificate = pki.certify("signer", ec.generate_private_key(ec.SECP256R1()), **settings)
    assert reason in problem(check_signing_certificate, certificate)


@pytest.mark.parametrize(
    "settings",
    [
        {"usage": ("digital_signature",)},
        {"purposes": [pki.CODE_SIGNING]},
        {"usage": ("digital_signature",), "purposes": [pki.SERVER_AUTH, pki.CODE_SIGNING]},
    ],
)
@pytest.mark.parametrize("curve", pki.CURVES)
def test_a_certificate_that_may_sign_is_accepted(settings, curve):
    key = ec.generate_private_key(pki.CURVES[curve]())
    assert check_signing_certificate(pki.certify("signer", key, **settings)) == key.public_key()


@pytest.mark.parametrize(
    ("intermediate", "reason"),
    [
        ({"authority": False}, "cA"),
        ({"authority": None}, "basicConstraints"),
        ({"usage": ("digital_signature",)}, "may not do so"),
        ({"days": (-9, -1)}, "not valid at validation time"),
    ],
)
def test_a_chain_over_a_certificate_that_may_not_issue_others_is_refused(tmp_path, intermediate, reason):
    settings = {"path_length": None, **intermediate}
    authorities = pki.Authorities(tmp_path, **settings)
    signer = x509.load_pem_x509_certificate(authorities.certify().read_bytes())
    assert reason in problem(check_chain, [signer, authorities.intermediate], [authorities.root])


def test_a_chain_without_its_intermediate_is_refused_unless_the_receiver_has_it(tmp_path):
    authorities = pki.Authorities(tmp_path)
    signer = x509.load_pem_x509_certificate(authorities.certify().read_bytes())
    assert "no certificate given" in problem(check_chain, [signer], [authorities.root])
    check_chain([signer], [authorities.root, authorities.intermediate])
    check_chain([signer, authorities.intermediate], [authorities.root])


def test_a_certificate_cannot_vouch_for_itself_by_being_in_the_signature(tmp_path):
    authorities = pki.Authorities(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    own = pki.certify("root", key, authority=True, usage=("digital_signature", "key_cert_sign"))
    problem(check_chain, [own, own], [authorities.root])
    check_chain([own], [own])  # as a root that the receiver gives, it is its own choice


def test_a_longer_chain_than_an_authority_allows_is_refused(tmp_path):
    authorities = pki.Authorities(tmp_path)  # with a path length of 0
    below = ec.generate_private_key(ec.SECP256R1())
    issuer = pki.certify(
        "below",
        below,
        (authorities.intermediate, authorities.intermediate_key),
        authority=True,
        usage=("key_cert_sign",),
    )
    signer = pki.certify("signer", authorities.key, (issuer, below), usage=("digital_signature",))
    assert "path length" in problem(check_chain, [signer, issuer, authorities.intermediate], [authorities.root])


def test_every_flipped_byte_of_a_signature_with_certificates_is_refused(bundle, tmp_path):
    authorities = pki.Authorities(tmp_path)
    packager.sign(bundle, key=authorities.key_file, certificates=authorities.certify())
    fingerprint, sums = read_sums(bundle)
    content = (bundle / "model.sig").read_bytes()
    trust = read_trust(None, [authorities.root_file, authorities.intermediate_file])
    values = content, sums, fingerprint, trust
    assert accepted(content, values)
    second = content.index(b"rawBytes", content.index(b"rawBytes") + 8)  # the signer's own again, for their reader
    for position in (*range(second), *range(content.index(b"dsseEnvelope"), len(content))):
        for mask in (0x01, 0x20):
            changed = bytearray(content)
            changed[position] ^= mask
            if accepted(bytes(changed), values):
                before, after = (parse_signature(text).certificates[0] for text in (content, bytes(changed)))
                assert describe(after) == describe(before), content[max(0, position - 20) : position + 20]


def describe(certificate):
    """Return all that a certificate says, and its issuer's signature: not how many bits its last byte leaves unused."""
    parsed = x509.load_der_x509_certificate(certificate)
    return parsed.tbs_certificate_bytes, parsed.signature


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_flipped_byte_of_a_certificate_is_refused_or_says_the_same(tmp_path):
    authorities = pki.Authorities(tmp_path)
    content = x509.load_pem_x509_certificate(authorities.certify().read_bytes()).public_bytes(Encoding.DER)
    trusted = [authorities.root, authorities.intermediate]
    assert accept_certificates([content], trusted)[1] == "CN=signer"
    for position in range(len(content)):
        for mask in (0x01, 0x02, 0x10, 0x80, 0xFF):
            changed = bytearray(content)
            changed[position] ^= mask
            try:
                accept_certificates([bytes(changed)], trusted)
            except CertificateProblem:
                continue
            assert describe(bytes(changed)) == describe(content), position


def test_a_refused_certificate_is_named(bundle, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    authorities, others = pki.Authorities(here), pki.Authorities(there)
    packager.sign(bundle, key=authorities.key_file, certificates=[authorities.certify(), authorities.intermediate_file])
    fingerprint, sums = read_sums(bundle)
    content = (bundle / "model.sig").read_bytes()
    with pytest.raises(CertificateRefused, match="CN=signer"):
        check_signature(content, sums, fingerprint, read_trust(None, others.root_file), "bundle")
    with pytest.raises(SignatureWrong, match="public key is given"):
        check_signature(content, sums, fingerprint, read_trust(pki.write_key(tmp_path)[1]), "bundle")
