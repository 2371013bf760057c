"""Revocations: signed statements that a key, or one grant, counts no longer. They hold for ever.

An envelope (``identity/envelope.py``) of ``DOMAIN`` around the array ``[1, issuer, target, time ms, ends ms, reason,
[grant, ...]]``. The mesh's authority revokes any key and any grant, by itself. A delegate revokes what its own grants
made, and a key itself; both show the grants that make them members, so that no stranger's statement is kept.
``ends`` is when no grant that is meant can hold any more: at a node that has too many, what ends first goes first.
"""

from __future__ import annotations

import hashlib
from enum import Enum

from meshnode.base.limits import GRANT_SKEW_S, MAX_CHAIN, MAX_GRANT, MAX_REASON, MAX_REVOCATION
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_list, as_number
from meshnode.errors import GrantError
from meshnode.identity.envelope import SIGNATURE_LENGTH, EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import KEY_LENGTH, NodeId
from meshnode.trust.chain import Chain, verify_chain
from meshnode.trust.grant import ID_LENGTH, LAST_MS

DOMAIN = b"meshnode revocation v1\x00"
VERSION = 1
NAME_LENGTH = 16
FIELDS = 7
HEAD = bytes([0x80 + FIELDS])  # how the array begins; that of a record has 8 items
KEY_LENGTH_DHT = 20


class RevocationReject(Enum):
    """Why bytes are no revocation that this node takes."""

    MALFORMED = "malformed"
    FUTURE = "future"
    UNPROVEN = "unproven"
    FORGED = "forged"


class RevocationError(ValueError):
    """Bytes that are no revocation; ``reason`` says why."""

    def __init__(self, reason: RevocationReject) -> None:
        super().__init__(f"this is no revocation: {reason.value}")
        self.reason = reason


@value
class Revocation:
    """One statement.

    Attributes:
        issuer: The key that signs it.
        target: A node's key (32 bytes), or the id of a grant (8 bytes).
        time: Unix milliseconds; when it was made.
        ends: Unix milliseconds after which no grant that is meant holds; ``LAST_MS`` when that is not known.
        reason: For people.
        chain: The issuer's grants; none where it is the authority.
        name: 16 bytes that name it among nodes.
        encoded: The signed bytes.
    """

    issuer: NodeId
    target: bytes
    time: int
    ends: int
    reason: str
    chain: Chain
    name: bytes
    encoded: bytes

    @property
    def is_key(self) -> bool:
        """Whether a key is revoked, not a single grant."""
        return len(self.target) == KEY_LENGTH

    @property
    def of_itself(self) -> bool:
        """Whether a key revokes itself."""
        return self.target == bytes(self.issuer)

    @property
    def target_text(self) -> str:
        """The id of the node, or of the grant, as text."""
        return str(NodeId(self.target)) if self.is_key else self.target.hex()

    def to_json(self) -> dict[str, object]:
        """Return what is shown of it; times in Unix seconds."""
        return {
            "id": self.target_text,
            "kind": "key" if self.is_key else "grant",
            "issuer": str(self.issuer),
            "time": self.time / 1000,
            "reason": self.reason,
        }


def sign_revocation(
    issuer: Identity, target: bytes, *, time: int, ends: int = LAST_MS, reason: str = "", chain: Chain = ()
) -> Revocation:
    """Return a signed revocation of a key or of a grant.

    Raises RevocationError: every receiver would refuse it.
    """
    item = [VERSION, bytes(issuer.id), target, time, ends, reason, list(chain)]
    try:
        return _parse(sign_envelope(issuer, DOMAIN, item, MAX_REVOCATION))
    except EnvelopeError as error:
        raise RevocationError(RevocationReject.MALFORMED) from error


def open_revocation(encoded: bytes, authority: NodeId, wall: float) -> Revocation:
    """Verify a revocation, cheapest checks first; whether its issuer was revoked itself plays no part.

    So any two nodes judge the same bytes alike, in whichever order they hear of them. Raises RevocationError.
    """
    found = _parse(encoded)
    if found.target == bytes(authority):
        raise RevocationError(RevocationReject.MALFORMED)  # it would end the mesh, which no statement can
    if found.time > (wall + GRANT_SKEW_S) * 1000:
        raise RevocationError(RevocationReject.FUTURE)
    if not verify_envelope(found.issuer, DOMAIN, encoded):
        raise RevocationError(RevocationReject.FORGED)
    if found.issuer != authority:
        try:
            verify_chain(found.chain, found.issuer, authority, found.time / 1000)
        except GrantError as error:
            raise RevocationError(RevocationReject.UNPROVEN) from error
    return found


def is_revocation(encoded: bytes) -> bool:
    """Return whether bytes are laid out like a revocation, and not like a record; nothing is verified."""
    return encoded[SIGNATURE_LENGTH : SIGNATURE_LENGTH + 1] == HEAD


def dht_key_of(target: bytes) -> bytes:
    """Return the key under which the DHT has what is said of a target."""
    return hashlib.blake2b(target, digest_size=KEY_LENGTH_DHT, person=b"mesh-revoke-dht").digest()


def name_of(encoded: bytes) -> bytes:
    """Return the 16 bytes that name a statement."""
    return hashlib.blake2b(encoded, digest_size=NAME_LENGTH, person=b"mesh-revoke").digest()


def parse_target(text: str) -> bytes:
    """Return what a text names: a node's id, or the 16 hexadecimal digits of a grant's.

    Raises InvalidId.
    """
    text = text.strip()
    if len(text) == 2 * ID_LENGTH and all(c in "0123456789abcdef" for c in text):
        return bytes.fromhex(text)
    return bytes(NodeId.parse(text))


def _parse(encoded: bytes) -> Revocation:
    try:
        fields = as_list(open_envelope(encoded, MAX_REVOCATION), FIELDS)
        if len(fields) != FIELDS:
            raise WireError("wrong fields")
        version, issuer, target, time, ends, reason, chain = fields
        as_number(version, VERSION, VERSION)
        target = as_bytes(target, ID_LENGTH, KEY_LENGTH)
        if len(target) not in (ID_LENGTH, KEY_LENGTH):
            raise WireError("neither a key nor a grant")
        if not isinstance(reason, str) or len(reason) > MAX_REASON or not reason.isprintable():
            raise WireError("wrong reason")
        return Revocation(
            NodeId(as_bytes(issuer, KEY_LENGTH, KEY_LENGTH)),
            target,
            as_number(time, 0, LAST_MS),
            as_number(ends, 0, LAST_MS),
            reason,
            tuple(as_bytes(grant, 1, MAX_GRANT) for grant in as_list(chain, MAX_CHAIN + 1)),
            name_of(encoded),
            encoded,
        )
    except ValueError as error:  # EnvelopeError and WireError are ones
        raise RevocationError(RevocationReject.MALFORMED) from error
