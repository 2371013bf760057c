"""Envelopes: the one signed form of what nodes keep and pass on for others, records and gossip entries.

Layout: 64-byte Ed25519 signature over ``domain + body``, then ``body``, one canonical CBOR item. The domain names the
kind and its version, so that no signature counts for another kind. Opening and verifying are two steps, because the
body names the signer and reading it is far cheaper than checking a signature.
"""

from __future__ import annotations

from enum import Enum

from meshnode.base.wire import NotCanonical, WireError, decode, encode
from meshnode.identity.keys import Identity, verify
from meshnode.identity.node_id import NodeId

SIGNATURE_LENGTH = 64


class EnvelopeReject(Enum):
    """Why bytes are no envelope."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    NOT_CANONICAL = "not_canonical"


class EnvelopeError(ValueError):
    """Bytes that are no envelope; ``reason`` says why."""

    def __init__(self, reason: EnvelopeReject, message: str = "") -> None:
        super().__init__(message or reason.value)
        self.reason = reason


def sign_envelope(identity: Identity, domain: bytes, item: object, most: int) -> bytes:
    """Return the envelope of a CBOR item.

    Args:
        identity: The signer.
        domain: Names the kind and its version; signed, not sent. No domain may be the beginning of another.
        item: The body, of the types that ``base/wire.py`` has. It must name the signer, for the envelope does not.
        most: The most bytes that envelopes of this kind have, signature included.

    Raises:
        EnvelopeError: It would be longer than ``most``.
    """
    body = encode(item)
    size = SIGNATURE_LENGTH + len(body)
    if size > most:
        raise EnvelopeError(EnvelopeReject.OVERSIZED, f"at most {most} bytes, not {size}")
    return identity.sign(domain + body) + body


def open_envelope(encoded: bytes, most: int) -> object:
    """Return the item inside, without checking the signature.

    Raises EnvelopeError, with the reason: longer than ``most`` bytes, not the canonical encoding, or malformed.
    """
    if len(encoded) > most:
        raise EnvelopeError(EnvelopeReject.OVERSIZED)
    try:
        return decode(encoded[SIGNATURE_LENGTH:], most)
    except NotCanonical as error:
        raise EnvelopeError(EnvelopeReject.NOT_CANONICAL) from error
    except WireError as error:
        raise EnvelopeError(EnvelopeReject.MALFORMED) from error


def verify_envelope(signer: NodeId, domain: bytes, encoded: bytes) -> bool:
    """Return whether ``signer`` signed this envelope for this domain.

    The bytes are verified as they came, never encoded again. It takes 43 us, so check everything cheaper before.
    """
    return verify(signer, domain + encoded[SIGNATURE_LENGTH:], encoded[:SIGNATURE_LENGTH])
