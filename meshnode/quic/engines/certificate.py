"""The self-signed certificate whose key IS the node key; its name and dates say nothing about the node."""

from __future__ import annotations

import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from meshnode.identity.keys import Identity


@lru_cache(maxsize=1024)
def certificate_of(identity: Identity) -> tuple[x509.Certificate, Ed25519PrivateKey]:
    """Return the certificate and the private key of ``identity``.

    The certificate is the same to the byte at every start: serial number 1, valid from 2020 to 2120, name "node", and
    Ed25519 signatures are deterministic. Cached for 1,024 identities, which matters to simulations alone.
    """
    private = Ed25519PrivateKey.from_private_bytes(identity.seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .sign(private, None)
    )
    return certificate, private


def key_of(certificate: x509.Certificate | None) -> bytes | None:
    """Return the raw Ed25519 key (32 bytes) of a certificate.

    None when there is no certificate yet, or its key is of another kind: then nothing is proven that could be a
    node's key.
    """
    public = certificate.public_key() if certificate is not None else None
    if not isinstance(public, Ed25519PublicKey):
        return None
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)
