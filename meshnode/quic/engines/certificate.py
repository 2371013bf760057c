"""The self-signed certificate whose key IS the node key; its name and dates say nothing about the node.

Written as bytes: all certificates are one form of 206 bytes (RFC 5280, RFC 8410) with the key and the signature filled
in, and a library that writes them costs 9 MB and 10 ms at every start (measured).
"""

from __future__ import annotations

import base64
import textwrap

from meshnode.identity.keys import Identity

ED25519 = bytes.fromhex("300506032b6570")  # the algorithm's identifier
PUBLIC_KEY = b"\x30\x2a" + ED25519 + b"\x03\x21\x00"  # a SubjectPublicKeyInfo up to its 32 bytes
PRIVATE_KEY = b"\x30\x2e\x02\x01\x00" + ED25519 + b"\x04\x22\x04\x20"  # a PKCS #8 key up to its 32 bytes
NAME = b"\x30\x0f\x31\x0d\x30\x0b\x06\x03\x55\x04\x03\x0c\x04node"  # issuer and subject: CN=node
VALIDITY = b"\x30\x20\x17\x0d200101000000Z\x18\x0f21200101000000Z"  # from 2020 to 2120
SIGNED = b"\x30\x7f\xa0\x03\x02\x01\x02\x02\x01\x01" + ED25519 + NAME + VALIDITY + NAME + PUBLIC_KEY  # v3, number 1


def certificate_of(identity: Identity) -> bytes:
    """Return the certificate of ``identity`` (X.509, DER).

    It is the same to the byte at every start, for Ed25519 signatures are deterministic.
    """
    signed = SIGNED + identity.id.raw
    return b"\x30\x81\xcb" + signed + ED25519 + b"\x03\x41\x00" + identity.sign(signed)


def private_key_of(identity: Identity) -> bytes:
    """Return the secret of ``identity`` (PKCS #8, DER)."""
    return PRIVATE_KEY + identity.seed


def key_of(public_key: bytes) -> bytes | None:
    """Return the raw Ed25519 key (32 bytes) of a SubjectPublicKeyInfo, None when it is of another kind."""
    return public_key.removeprefix(PUBLIC_KEY) if public_key.startswith(PUBLIC_KEY) else None


def pem(kind: str, der: bytes) -> bytes:
    """Return ``der`` as text (RFC 7468); ``kind`` is ``CERTIFICATE`` or ``PRIVATE KEY``."""
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""]).encode()
