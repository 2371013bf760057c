"""Endpoint records: where a node can be reached, signed by its key.

An envelope (``envelope.py``) of ``DOMAIN`` around the array
``[version, id, seq, issued ms, ttl s, [[kind, address], ...], [relay id, ...], [capability, ...]]``. At most
1,000 bytes in all, so that a record also fits a BEP 44 item. The newest valid seq wins everywhere.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

from meshnode.base.address import Addr, pack_addr, unpack_dialable
from meshnode.base.limits import (
    MAX_CAPABILITIES,
    MAX_CAPABILITY_LENGTH,
    MAX_ENDPOINTS,
    MAX_OPENED_RECORDS,
    MAX_RECORD,
    MAX_RECORD_FUTURE_S,
    MAX_RECORD_TTL_S,
    MAX_RELAYS,
    MAX_WAKE_URL,
)
from meshnode.base.value import frozen
from meshnode.base.wake_url import WAKE
from meshnode.base.wire import as_bytes, as_list, as_number
from meshnode.errors import RecordError, RecordExpired, RecordReject
from meshnode.identity.envelope import EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import KEY_LENGTH, NodeId, known_id

DOMAIN = b"meshnode endpoint record v1\x00"
VERSION = 1
LEAF = "leaf"  # a capability: the node does nothing for others


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


_LAST_KIND = int(max(EndpointKind))


@frozen
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


@frozen
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
            number), ``symmetric`` (its NAT gives it another port for each destination), ``leaf`` (see
            ``is_leaf``), ``wake:URL`` (see ``wake``).
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

    @property
    def is_leaf(self) -> bool:
        """Whether the node is at the mesh's edge: it stores, relays and watches nothing for others."""
        return LEAF in self.capabilities

    @property
    def wake(self) -> str:
        """The URL to which one HTTPS request starts this node where it sleeps; "" when there is none."""
        return next((text.removeprefix(WAKE) for text in self.capabilities if text.startswith(WAKE)), "")

    def to_json(self) -> dict[str, object]:
        """Return the record as ``meshnode resolve --json`` prints it.

        Returns:
            A dict of JSON values: the id, its number and dates, the endpoints as text.
        """
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
    """Return a signed record.

    Args:
        identity: The node.
        seq: Higher than in every record before, also of an earlier process: Unix milliseconds serve.
        issued_ms: When it is signed, in Unix milliseconds.
        ttl: For how many seconds it holds, at most a day.
        endpoints: Best first. Repeated ones, and those past ``MAX_ENDPOINTS`` or 1,000 bytes, are left out, last first.
        relays: At most ``MAX_RELAYS``.
        capabilities: At most ``MAX_CAPABILITIES`` of at most ``MAX_CAPABILITY_LENGTH`` characters.

    Raises:
        RecordError: It is longer than 1,000 bytes without any endpoint.
    """
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
    """Verify a record from any source, cheapest checks first.

    Args:
        encoded: The signed bytes.
        wall: Unix seconds. The record's time and its seq may be up to ``MAX_RECORD_FUTURE_S`` ahead of it.
        expected: The node that was asked for; None when any will do.

    Raises:
        RecordExpired: It was valid once.
        RecordError: It is not valid; ``reason`` says why.
    """
    try:
        record = _parsed(encoded)
    except EnvelopeError as error:
        raise RecordError(RecordReject(error.reason.value)) from error
    except (ValueError, TypeError) as error:
        raise RecordError(RecordReject.MALFORMED) from error
    if expected is not None and record.id != expected:
        raise RecordError(RecordReject.WRONG_ID)
    if is_ahead(record, wall):
        raise RecordError(RecordReject.FUTURE)
    if record.expires_ms < wall * 1000:
        raise RecordExpired(RecordReject.EXPIRED)
    if not _signed(record.id, encoded):
        raise RecordError(RecordReject.FORGED)
    return record


def read_record(encoded: bytes) -> EndpointRecord | None:
    """Return what a record says that was verified before; None when it is none."""
    try:
        return _parsed(encoded)
    except (EnvelopeError, ValueError, TypeError):
        return None


# One record comes by many ways (connection, watch, several holders): it is parsed and verified once.
@lru_cache(maxsize=MAX_OPENED_RECORDS)
def _parsed(encoded: bytes) -> EndpointRecord:
    return _parse(open_envelope(encoded, MAX_RECORD), encoded)


@lru_cache(maxsize=MAX_OPENED_RECORDS)
def _signed(signer: NodeId, encoded: bytes) -> bool:
    return verify_envelope(signer, DOMAIN, encoded)


def _parse(fields: object, encoded: bytes) -> EndpointRecord:
    if not isinstance(fields, list) or len(fields) != 8:
        raise ValueError("wrong fields")
    as_number(fields[0], VERSION, VERSION)
    _, raw, seq, issued, ttl, endpoints, relays, capabilities = fields
    if not isinstance(raw, bytes):
        raise ValueError("no id")
    return EndpointRecord(
        known_id(raw),
        as_number(seq, 0, 2**63 - 1),
        as_number(issued, 0, 2**53 - 1),
        as_number(ttl, 0, MAX_RECORD_TTL_S),
        tuple(_parse_endpoint(item) for item in as_list(endpoints, MAX_ENDPOINTS)),
        tuple(NodeId(as_bytes(relay, KEY_LENGTH, KEY_LENGTH)) for relay in as_list(relays, MAX_RELAYS)),
        tuple(_parse_capability(item) for item in as_list(capabilities, MAX_CAPABILITIES)),
        encoded,
    )


def _parse_endpoint(item: object) -> Endpoint:
    kind, packed = as_list(item, 2)
    return Endpoint(unpack_dialable(as_bytes(packed, 6, 18)), EndpointKind(as_number(kind, 0, _LAST_KIND)))


def _parse_capability(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError("wrong capability")
    if len(item) > (len(WAKE) + MAX_WAKE_URL if item.startswith(WAKE) else MAX_CAPABILITY_LENGTH):
        raise ValueError("wrong capability")
    return item


def is_ahead(record: EndpointRecord, wall: float) -> bool:
    """Return whether a record is issued, or numbered, further ahead of ``wall`` (Unix seconds) than clocks differ.

    No node takes such a record, and one that was taken while the taker's own clock was ahead is as good as none: its
    number would outrank all that its owner signs until that time.
    """
    return max(record.issued, record.seq) > latest_ms(wall)


def latest_ms(wall: float) -> float:
    """Return the highest issue time and seq that is believed at ``wall``, in Unix milliseconds."""
    return (wall + MAX_RECORD_FUTURE_S) * 1000


def newer(a: EndpointRecord, b: EndpointRecord) -> bool:
    """Return whether ``a`` supersedes ``b``, both of one node: by the higher seq.

    At the same seq the greater bytes win, so that all nodes agree on one even if the owner signed two.
    """
    return (a.seq, a.encoded) > (b.seq, b.encoded)
