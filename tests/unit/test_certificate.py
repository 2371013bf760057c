"""The certificate that is written as bytes is what a library of certificates reads and writes."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from meshnode.identity.keys import Identity
from meshnode.quic.engines.certificate import certificate_of, key_of, pem, private_key_of

SOME = Identity(bytes(range(32)))


def test_it_is_to_the_byte_what_a_library_writes() -> None:
    key = Ed25519PrivateKey.from_private_bytes(SOME.seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    built = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=datetime.datetime(2020, 1, 1),
        not_valid_after=datetime.datetime(2120, 1, 1),
    ).sign(key, None)
    assert certificate_of(SOME) == built.public_bytes(Encoding.DER)


def test_its_key_is_the_node_key_and_signs_it() -> None:
    read = x509.load_pem_x509_certificate(pem("CERTIFICATE", certificate_of(SOME)))
    public = read.public_key()
    assert isinstance(public, Ed25519PublicKey)
    assert public.public_bytes(Encoding.Raw, PublicFormat.Raw) == SOME.id.raw
    public.verify(read.signature, read.tbs_certificate_bytes)
    private = load_pem_private_key(pem("PRIVATE KEY", private_key_of(SOME)), None)
    assert private.public_key() == public


def test_a_key_of_another_kind_is_none() -> None:
    key = Ed25519PrivateKey.generate().public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key_of(spki) == key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert key_of(spki.replace(bytes.fromhex("2b6570"), bytes.fromhex("2b656e"))) is None, "X25519"
    assert key_of(b"") is None
