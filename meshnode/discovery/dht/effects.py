"""Effects that the DHT core asks its driver to carry out: a closed union of values."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.base.address import Addr
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord


@dataclass(frozen=True, slots=True)
class SendSealed:
    """Seal ``body`` to ``peer`` and send it to ``addr``."""

    peer: NodeId
    addr: Addr
    body: bytes


@dataclass(frozen=True, slots=True)
class LookupStats:
    """Cost of a lookup. ``first_s`` is the time to the first valid record, None without one."""

    rpcs: int
    hops: int
    answered: int
    junk: int
    seconds: float
    first_s: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """A lookup met a valid record, newer than any that it met before."""

    lookup_id: int
    record: EndpointRecord
    hops: int


@dataclass(frozen=True, slots=True)
class LookupDone:
    """A lookup ended; ``record`` is the newest valid one, None when no node had any."""

    lookup_id: int
    record: EndpointRecord | None
    stats: LookupStats


@dataclass(frozen=True, slots=True)
class Published:
    """Our record is at ``n_holders`` nodes now."""

    n_holders: int


@dataclass(frozen=True, slots=True)
class RecordPushed:
    """A watch brought a newer record."""

    record: EndpointRecord


@dataclass(frozen=True, slots=True)
class ContactsChanged:
    """``contacts()`` has changed since the last time (at most once every few seconds)."""


Effect = SendSealed | Found | LookupDone | Published | RecordPushed | ContactsChanged
