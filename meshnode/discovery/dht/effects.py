"""Effects that the DHT core asks its driver to carry out: a closed union of values."""

from __future__ import annotations

from meshnode.base.address import Addr
from meshnode.base.value import value
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord


@value
class SendSealed:
    """Seal ``body`` to ``peer`` and send it to ``addr``.

    ``unasked``: this node begins it; else it is due to a datagram that came from ``addr``, or says so.
    """

    peer: NodeId
    addr: Addr
    body: bytes
    unasked: bool = False


@value
class Proven:
    """``peer`` receives at ``addr``: it answered there what was sent since ``since``, or showed a token."""

    peer: NodeId
    addr: Addr
    since: float


@value
class LookupStats:
    """Cost of a lookup. ``first_s`` is the time to the first valid record, None without one."""

    rpcs: int
    hops: int
    answered: int
    junk: int
    seconds: float
    first_s: float | None


@value
class Found:
    """A lookup met a valid record, newer than any that it met before."""

    lookup_id: int
    record: EndpointRecord
    hops: int


@value
class LookupDone:
    """A lookup ended; ``record`` is the newest valid one, None when no node had any."""

    lookup_id: int
    record: EndpointRecord | None
    stats: LookupStats


@value
class Published:
    """Our record is at ``n_holders`` nodes now."""

    n_holders: int


@value
class RecordPushed:
    """A watch brought a newer record."""

    record: EndpointRecord


@value
class ContactsChanged:
    """``contacts()`` has changed since the last time (at most once every few seconds)."""


Effect = SendSealed | Proven | Found | LookupDone | Published | RecordPushed | ContactsChanged
