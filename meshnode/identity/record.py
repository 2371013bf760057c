"""Endpoint records: where a node can be reached, signed by its key.

An envelope (``envelope.py``) of ``DOMAIN`` around the array
``[version, id, seq, issued ms, ttl s, [[kind, address], ...], [relay id, ...], [capability, ...]]``. At most
1,000 bytes in all, so that a record also fits a BEP 44 item. The newest valid seq wins everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from meshnode.base.address import Addr, is_dialable, pack_addr, unpack_addr
from meshnode.base.limits import (
    MAX_CAPABILITIES,
    MAX_CAPABILITY_LENGTH,
    MAX_ENDPOINTS,
    MAX_OPENED_RECORDS,
    MAX_RECORD,
    MAX_RECORD_FUTURE_S,
    MAX_RECORD_TTL_S,
    MAX_RELAYS,
)
from meshnode.errors import RecordError, RecordExpired, RecordReject
from meshnode.identity.envelope import EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId, known_id

DOMAIN = b"meshnode endpoint record v1\x00"
VERSION = 1


class EndpointKind(IntEnum):
    """How an address came to be known."""

    HOST = 0
    """An address of the host itself."""
    REFLEXIVE = 1
    """What other nodes see behind a NAT."""
    MAPPED = 2
    """A port that the router granted, or an address from ``Config.advertise``."""
    RELAY = 3
    """Reserved; relays are in ``EndpointRecord.relays``."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a node; prints as ``HOST:PORT``.

    Attributes:
        addr: The address, with ``host`` and ``port``.
        kind: How it came to be known.
    """

    addr: Addr
    kind: EndpointKind = EndpointKind.HOST

    def __str__(self) -> str:
        return str(self.addr)


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """Where a node is, signed by its key: verified, or just signed.

    Attributes:
        id: The node.
        seq: Of two records the one with the higher number is newer.
        issued: When it was signed, in Unix milliseconds.
        ttl: For how many seconds it holds.
        endpoints: The node's addresses, best first; each prints as ``HOST:PORT``.
        relays: The nodes that relay for it.
        capabilities: What it is to others: ``seed``, ``relay``, ``wss`` (takes WebSockets on the TCP port of the same
            number), ``symmetric`` (its NAT gives it another port for each destination).
        encoded: The signed bytes, as other nodes get them.
    """

    id: NodeId
    seq: int
    issued: int
    ttl: int
    endpoints: tuple[Endpoint, ...]
    relays: tuple[NodeId, ...] = ()
    capabilities: tuple[str, ...] = ()
    encoded: bytes = b""

    @property
    def expires_ms(self) -> int:
        """Unix milliseconds after which the record must not be used."""
        return self.issued + self.ttl * 1000

    def to_json(self) -> dict[str, object]:
        """Return the record as ``meshnode resolve --json`` prints it."""
        return {
            "id": str(self.id),
            "address": str(self.id.overlay),
            "seq": self.seq,
            "issued": self.issued / 1000,
            "ttl": self.ttl,
            "endpoints": [str(e) for e in self.endpoints],
            "kinds": [e.kind.name.lower() for e in self.endpoints],
            "relays": [str(r) for r in self.relays],
            "capabilities": list(self.capabilities),
        }


def sign_record(
    identity: Identity,
    *,
    seq: int,
    issued_ms: int,
    ttl: int,
    endpoints: tuple[Endpoint, ...],
    relays: tuple[NodeId, ...] = (),
    capabilities: tuple[str, ...] = (),
) -> EndpointRecord:
    """Return a signed record; endpoints past ``MAX_ENDPOINTS`` or past 1,000 bytes are left out, last first."""
    kept = list(dict.fromkeys(endpoints))[:MAX_ENDPOINTS]
    while True:
        fields = [
            VERSION,
            bytes(identity.id),
            seq,
            issued_ms,
            ttl,
            [[int(e.kind), pack_addr(e.addr)] for e in kept],
            [bytes(r) for r in relays],
            list(capabilities),
        ]
        try:
            encoded = sign_envelope(identity, DOMAIN, fields, MAX_RECORD)
            break
        except EnvelopeError as error:
            if not kept:
                raise RecordError(RecordReject.OVERSIZED) from error
            kept.pop()
    return EndpointRecord(identity.id, seq, issued_ms, ttl, tuple(kept), relays, capabilities, encoded)


def open_record(encoded: bytes, wall: float, *, expected: NodeId | None = None) -> EndpointRecord:
    """Verify a record that somebody handed us, cheapest checks first.

    Raises RecordError with its ``reason`` (RecordExpired when it was valid once).
    """
    try:
        record = _parsed(encoded)
    except EnvelopeError as error:
        raise RecordError(RecordReject(error.reason.value)) from error
    except (ValueError, TypeError) as error:
        raise RecordError(RecordReject.MALFORMED) from error
    if expected is not None and record.id != expected:
        raise RecordError(RecordReject.WRONG_ID)
    if record.issued > (wall + MAX_RECORD_FUTURE_S) * 1000 or record.seq > (wall + MAX_RECORD_FUTURE_S) * 1000 + 1e9:
        raise RecordError(RecordReject.FUTURE)
    if record.expires_ms < wall * 1000:
        raise RecordExpired(RecordReject.EXPIRED)
    if not _signed(record.id, encoded):
        raise RecordError(RecordReject.FORGED)
    return record


# One record comes by many ways (connection, watch, several holders): it is parsed and verified once.
@lru_cache(maxsize=MAX_OPENED_RECORDS)
def _parsed(encoded: bytes) -> EndpointRecord:
    return _parse(open_envelope(encoded, MAX_RECORD), encoded)


@lru_cache(maxsize=MAX_OPENED_RECORDS)
def _signed(signer: NodeId, encoded: bytes) -> bool:
    return verify_envelope(signer, DOMAIN, encoded)


def _parse(fields: object, encoded: bytes) -> EndpointRecord:
    if not isinstance(fields, list) or len(fields) != 8 or fields[0] != VERSION:
        raise ValueError("wrong fields")
    _, raw, seq, issued, ttl, endpoints, relays, capabilities = fields
    for number, limit in ((seq, 2**63), (issued, 2**53), (ttl, MAX_RECORD_TTL_S + 1)):
        if type(number) is not int or not 0 <= number < limit:
            raise ValueError("number out of range")
    if not isinstance(raw, bytes) or not isinstance(endpoints, list) or len(endpoints) > MAX_ENDPOINTS:
        raise ValueError("wrong endpoints")
    if not isinstance(relays, list) or len(relays) > MAX_RELAYS:
        raise ValueError("wrong relays")
    if not isinstance(capabilities, list) or len(capabilities) > MAX_CAPABILITIES:
        raise ValueError("wrong capabilities")
    if not all(isinstance(c, str) and len(c) <= MAX_CAPABILITY_LENGTH for c in capabilities):
        raise ValueError("wrong capabilities")
    parsed = []
    for item in endpoints:
        kind, packed = item
        addr = unpack_addr(packed)
        if not is_dialable(addr):
            raise ValueError("an endpoint nobody can dial")
        parsed.append(Endpoint(addr, EndpointKind(kind)))
    return EndpointRecord(
        known_id(raw),
        seq,
        issued,
        ttl,
        tuple(parsed),
        tuple(NodeId(r) for r in relays),
        tuple(capabilities),
        encoded,
    )


def newer(a: EndpointRecord, b: EndpointRecord) -> bool:
    """True when ``a`` supersedes ``b``: higher seq, or the greater bytes at the same seq (so all agree)."""
    return (a.seq, a.encoded) > (b.seq, b.encoded)
